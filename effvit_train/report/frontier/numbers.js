// Numbers as on the cards: the same as report/format.py.
const sign = (number) => (number < 0 ? "−" : "");
function significant(number, digits = 3) {
  if (number === 0) return "0";
  const size = Math.abs(number);
  if (size < 1e-4 || size >= 1e9) {
    const [mantissa, exponent] = size.toExponential(digits - 1).split("e");
    const power = Math.abs(Number(exponent)).toString().padStart(2, "0");
    return `${sign(number)}${mantissa}e${exponent.startsWith("-") ? "-" : "+"}${power}`;
  }
  let decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
  if (Number(size.toFixed(decimals)) >= 10 ** (digits - decimals)) decimals = Math.max(0, decimals - 1);
  return sign(number) + size.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}
function percent(fraction) {
  const shown = fraction * 100;
  const hides = fraction !== 0 && fraction !== 1 && ["0.0", "100.0"].includes(shown.toFixed(1));
  return `${sign(shown)}${Math.abs(shown).toFixed(hides ? 2 : 1)} %`;
}
function parameters(count) {
  if (count >= 1e9) return `${(count / 1e9).toFixed(2)} G`;
  if (count >= 999500) return `${(count / 1e6).toFixed(1)} M`;
  return count >= 1e3 ? `${significant(count / 1e3)} k` : count.toFixed(0);
}
function operations(count) {
  if (count >= 9.995e11) return `${(count / 1e12).toFixed(2)} T`;
  if (count >= 9.995e8) return `${(count / 1e9).toFixed(2)} G`;
  if (count >= 9.995e5) return `${significant(count / 1e6)} M`;
  return count >= 1e3 ? `${significant(count / 1e3)} k` : count.toFixed(0);
}
function megabytes(number) {
  if (number >= 999.5) return `${(number / 1000).toFixed(2)} GB`;
  return `${number.toFixed(number >= 1 ? 1 : 2)} MB`;
}
function duration(seconds) {
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 120) return `${whole} s`;
  if (whole < 3600) return whole % 60 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${whole / 60} min`;
  const minutes = Math.round(seconds / 60);
  return minutes % 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${minutes / 60} h`;
}
function written(key, number) {
  if (number === null || number === undefined) return "–";
  const unit = measures.get(key).unit;
  if (unit === "fraction") return percent(number);
  if (unit === "parameters") return parameters(number);
  if (unit === "MACs/image" || unit === "FLOPs/image") return operations(number);
  if (unit === "s") return duration(number);
  if (unit === "MB") return megabytes(number);
  if (unit === "ms") return `${number.toFixed(number < 0.995 ? 2 : number < 99.95 ? 1 : 0)} ms`;
  if (unit === "nats") return `${sign(number)}${Math.abs(number).toFixed(3)} nats`;
  return unit === "" || unit === "ratio" ? significant(number) : `${significant(number)} ${unit}`;
}
function spread(key, sd) {
  const unit = measures.get(key).unit;
  if (unit === "fraction") return `${(sd * 100).toFixed(2)} pp`;
  if (["parameters", "MACs/image", "FLOPs/image", "s"].includes(unit)) return written(key, sd);
  return unit === "" || unit === "ratio" ? significant(sd, 2) : `${significant(sd, 2)} ${unit}`;
}
function withSpread(key, number, sd) { // a unit that both have is written once
  const [one, two] = [written(key, number), spread(key, sd)];
  const unit = two.includes(" ") ? two.slice(two.indexOf(" ")) : "";
  return `${unit && one.endsWith(unit) ? one.slice(0, -unit.length) : one} ± ${two}`;
}
function times(factor) {
  const ratio = Math.max(factor, 1 / factor);
  if (ratio >= 999999.5) return "over a million ×";
  return `${ratio < 1.995 ? ratio.toFixed(2) : ratio < 99.95 ? ratio.toFixed(1) : Math.round(ratio).toLocaleString("en")}×`;
}

const inside = (label) => (/^[A-Z][a-z]/.test(label) ? label[0].toLowerCase() + label.slice(1) : label); // a sentence
