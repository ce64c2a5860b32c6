// The scatter plot: scales, marks, error bars, the line of the front, keyboard and tooltip.
function range(numbers) {
  let low = Math.min(...numbers);
  let high = Math.max(...numbers);
  if (low === high) { const more = Math.abs(low) * 0.1 || 1; low -= more; high += more; }
  return [low, high];
}
function shown(key) { // remembered until the next look
  if (!view.shown.has(key)) {
    view.shown.set(key, view.items.map((item) => value(item.row, key)).filter((number) => number !== null));
  }
  return view.shown.get(key);
}
function canLog(key) {
  if (!view.positive.has(key)) view.positive.set(key, shown(key).length > 0 && shown(key).every((number) => number > 0));
  return view.positive.get(key);
}
function isLog(key) {
  if (!canLog(key)) return false;
  if (key in state.log) return state.log[key];
  if (!view.wide.has(key)) {
    const [low, high] = range(shown(key));
    view.wide.set(key, measures.get(key).unit !== "fraction" && low > 0 && high / low > 20);
  }
  return view.wide.get(key);
}
function scale(key, numbers, from, to) {
  const log = isLog(key);
  let [low, high] = range(numbers);
  if (log && low <= 0) low = Math.min(...numbers.filter((number) => number > 0));
  const bend = log ? Math.log : (number) => number;
  let a = bend(low);
  let b = bend(high);
  const margin = (b - a) * 0.06 || 1;
  a -= margin;
  b += margin;
  const unbend = log ? Math.exp : (number) => number;
  const place = (number) => from + (bend(number) - a) / (b - a) * (to - from);
  const ticks = (log ? logTicks : evenTicks)(unbend(a), unbend(b), Math.max(3, Math.round(Math.abs(to - from) / (from < to ? 95 : 55))));
  return { place, ticks, low: unbend(a) };
}
function evenTicks(low, high, about) {
  const raw = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}
function logTicks(low, high, about) {
  const first = Math.floor(Math.log10(low));
  const last = Math.ceil(Math.log10(high));
  let found = [];
  for (const multiples of [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1, 3], [1]]) {
    found = [];
    for (let e = first; e <= last; e++) for (const m of multiples) {
      const tick = m * 10 ** e;
      if (tick >= low && tick <= high) found.push(Number(tick.toPrecision(12)));
    }
    if (found.length <= about) break;
  }
  return found.length > 1 ? found : evenTicks(low, high, about);
}
function tickText(key, number) {
  const unit = measures.get(key).unit;
  if (unit === "fraction") return `${Number((number * 100).toPrecision(6))} %`;
  if (unit === "ms" || unit === "MB" || unit === "nats") return `${Number(number.toPrecision(6))}`;
  if (["parameters", "MACs/image", "FLOPs/image"].includes(unit)) {
    const [factor, letter] = number >= 1e9 ? [1e9, " G"] : number >= 1e6 ? [1e6, " M"] : number >= 1e3 ? [1e3, " k"] : [1, ""];
    return `${Number((number / factor).toPrecision(6))}${letter}`;
  }
  return unit === "s" ? duration(number) : number.toLocaleString("en", { maximumSignificantDigits: 4 });
}

const SHAPES = [
  "M-5,0 A5,5 0 1 0 5,0 A5,5 0 1 0 -5,0 Z", "M-4.6,-4.6 H4.6 V4.6 H-4.6 Z", "M0,-6 L5.6,4.4 H-5.6 Z",
  "M0,-6.4 L6.4,0 L0,6.4 L-6.4,0 Z", "M0,6 L5.6,-4.4 H-5.6 Z",
  "M-1.8,-5.6 H1.8 V-1.8 H5.6 V1.8 H1.8 V5.6 H-1.8 V1.8 H-5.6 V-1.8 H-1.8 Z",
  "M-5.6,-2 L0,-6 L5.6,-2 L3.6,5 H-3.6 Z",
];
const techniques = [...data.techniques].sort((a, b) => (b === PLAIN) - (a === PLAIN) || a.localeCompare(b));
const style = (name) => Math.min(techniques.indexOf(name), SHAPES.length - 1);
const mark = (name, extra) => make("path", { class: `mark k${style(name)}${extra || ""}`, d: SHAPES[style(name)] });

function draw() {
  const box = at("plot");
  const width = Math.max(300, Math.round(box.clientWidth));
  const height = width < 560 ? 340 : 460;
  const [left, right, top, bottom] = [58, 18, 30, 48];
  const keys = [state.x, state.y];
  const plotted = view.items.filter((item) => keys.every((key) => value(item.row, key) !== null));
  box.replaceChildren();
  hideTip();
  const empty = at("plot-empty");
  empty.hidden = plotted.length > 0;
  if (!plotted.length) {
    const missing = keys.find((key) => !shown(key).length) || state.x;
    empty.textContent = view.items.length
      ? `Nothing to draw: ${measures.get(missing).label} was not measured here (${reason(view.items[0].row, missing)}).`
      : "Nothing is left: widen the filters.";
    return;
  }
  const ends = (key) => plotted.flatMap((item) => {
    const found = value(item.row, key);
    const sd = sdOf(item.row, key) || 0;
    return [found - sd, found + sd].map((end) => (isLog(key) && end <= 0 ? found : end));
  });
  const x = scale(state.x, ends(state.x), left, width - right);
  const y = scale(state.y, ends(state.y), height - bottom, top);
  const chart = make("svg", {
    class: "scatter", width, height, viewBox: `0 0 ${width} ${height}`, role: "group",
    "aria-label": `${measures.get(state.y).label} against ${measures.get(state.x).label}; arrow keys go from point to point`,
  });
  for (const tick of y.ticks) {
    const place = y.place(tick).toFixed(1);
    chart.append(
      make("line", { class: "grid", x1: left, x2: width - right, y1: place, y2: place }),
      make("text", { x: left - 8, y: Number(place) + 4, "text-anchor": "end" }, tickText(state.y, tick)),
    );
  }
  for (const tick of x.ticks) {
    const place = x.place(tick).toFixed(1);
    chart.append(
      make("line", { class: "grid", x1: place, x2: place, y1: top, y2: height - bottom }),
      make("text", { x: place, y: height - bottom + 18, "text-anchor": "middle" }, tickText(state.x, tick)),
    );
  }
  chart.append(make("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
  const named = (key) => `${measures.get(key).title}${isLog(key) ? ", log scale" : ""}, ${measures.get(key).better} is better`;
  chart.append(
    make("text", { class: "name", x: left, y: 14 }, `↑ ${named(state.y)}`),
    make("text", { class: "name", x: width - right, y: height - 8, "text-anchor": "end" }, `${named(state.x)} →`),
  );
  bounds(chart, x, y, { left, right: width - right, top, bottom: height - bottom });
  staircase(chart, plotted, x, y, { left, right: width - right, top, bottom: height - bottom });
  const points = make("g", { class: "points" });
  // dominated first: the front lies on top
  const rank = (item) => (item.front ? 2 : item.failed.length ? 0 : 1);
  for (const item of [...plotted].sort((a, b) => rank(a) - rank(b))) points.append(point(item, x, y));
  chart.append(points);
  box.append(chart);
  roving(points, plotted);
}

function bounds(chart, x, y, frame) {
  for (const budget of state.budgets.filter((one) => one.on)) {
    const vertical = budget.key === state.x;
    if (!vertical && budget.key !== state.y) continue;
    if (isLog(budget.key) && budget.limit <= 0) continue;
    const place = (vertical ? x : y).place(budget.limit);
    const [from, to] = vertical ? [frame.left, frame.right] : [frame.top, frame.bottom];
    if (place < from || place > to) continue;
    const ends = vertical
      ? { x1: place, x2: place, y1: frame.top, y2: frame.bottom }
      : { x1: frame.left, x2: frame.right, y1: place, y2: place };
    chart.append(make("line", { class: "bound", ...ends }, make("title", {}, budget.text)));
  }
}

function staircase(chart, plotted, x, y, frame) {
  if (objectives().length !== 2) return; // with more objectives the front is no line
  const best = plotted.filter((item) => item.front).sort((a, b) => value(a.row, state.x) - value(b.row, state.x));
  if (!best.length) return;
  const spots = best.map((item) => [x.place(value(item.row, state.x)), y.place(value(item.row, state.y))]);
  const xLower = measures.get(state.x).better === "lower";
  const up = measures.get(state.y).better === "higher";
  const path = [];
  // what is beaten lies right of (or left of) each point and below (or above) it
  if (xLower) path.push(`M${spots[0][0].toFixed(1)},${up ? frame.bottom : frame.top}`, `V${spots[0][1].toFixed(1)}`);
  else path.push(`M${frame.left},${spots[0][1].toFixed(1)}`, `H${spots[0][0].toFixed(1)}`);
  for (let i = 1; i < spots.length; i++) {
    const [h, v] = [`H${spots[i][0].toFixed(1)}`, `V${spots[i][1].toFixed(1)}`];
    path.push(...(xLower ? [h, v] : [v, h]));
  }
  path.push(xLower ? `H${frame.right}` : `V${up ? frame.bottom : frame.top}`);
  chart.append(make("path", { class: "front-line", d: path.join(" ") }));
}

function point(item, x, y) {
  const { row } = item;
  const [px, py] = [x.place(value(row, state.x)), y.place(value(row, state.y))];
  const chosen = state.chosen.indexOf(row);
  const kind = item.front ? " best" : item.failed.length ? " missing" : " beaten";
  const group = make("g", {
    class: `point${kind}${chosen >= 0 ? " chosen" : ""}`, role: "button", tabindex: "-1", "data-row": row,
    transform: `translate(${px.toFixed(1)} ${py.toFixed(1)})`, "aria-pressed": String(chosen >= 0),
    "aria-label": describe(item).join("; "),
    onclick: () => choose(row), onmouseenter: () => tip(item, px, py), onmouseleave: hideTip,
    onfocus: () => { state.focus = row; tip(item, px, py); }, onblur: hideTip,
  });
  for (const [key, along, place, centre] of [[state.x, "x", x.place, px], [state.y, "y", y.place, py]]) {
    const sd = sdOf(row, key);
    if (!sd) continue;
    const found = value(row, key);
    const low = isLog(key) && found - sd <= 0 ? found : found - sd;
    const [a, b] = [place(low) - centre, place(found + sd) - centre].map((number) => number.toFixed(1));
    group.append(make("path", {
      class: "error", d: along === "x" ? `M${a},0 H${b} M${a},-3 V3 M${b},-3 V3` : `M0,${a} V${b} M-3,${a} H3 M-3,${b} H3`,
    }));
  }
  group.append(make("circle", { class: "target", r: 12 }), mark(technique(row)));
  if (item.failed.length) group.append(make("path", { class: "cross", d: "M-4,-4 L4,4 M-4,4 L4,-4" }));
  if (chosen >= 0) {
    group.append(
      make("circle", { class: "halo", r: 10 }),
      make("text", { class: "number", x: 11, y: -9 }, String(chosen + 1)),
    );
  }
  return group;
}

function roving(points, plotted) {
  const order = [...plotted].sort((a, b) => value(a.row, state.x) - value(b.row, state.x)).map((item) => item.row);
  const node = (row) => points.querySelector(`[data-row="${row}"]`);
  const start = order.includes(state.focus) ? state.focus : order[0];
  node(start).setAttribute("tabindex", "0");
  points.addEventListener("keydown", (event) => {
    const row = Number(event.target.dataset.row);
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(row);
      const again = at("plot").querySelector(`[data-row="${row}"]`);
      if (again) again.focus();
    } else if (event.key === "Escape") hideTip();
    else if (step || event.key === "Home" || event.key === "End") {
      event.preventDefault();
      const last = order.length - 1;
      const next = event.key === "Home" ? 0 : event.key === "End" ? last
        : Math.min(last, Math.max(0, order.indexOf(row) + step));
      node(row).setAttribute("tabindex", "-1");
      node(order[next]).setAttribute("tabindex", "0");
      node(order[next]).focus();
    }
  });
}

function describe(item) {
  const { row } = item;
  const lines = [table().label[row]];
  for (const key of objectives()) {
    const found = value(row, key);
    const sd = sdOf(row, key);
    const count = state.unit === "arms" && data.arms.count[key] ? data.arms.count[key][row] : 0;
    const over = sd === null || sd === undefined ? "" : ` ± ${spread(key, sd)} (s.d. over ${count} runs)`;
    lines.push(found === null ? `${measures.get(key).label}: not measured` : `${measures.get(key).label} ${written(key, found)}${over}`);
  }
  lines.push(...item.failed.map((budget) => missed(row, budget)));
  if (item.front) lines.push("on the front");
  else if (!item.failed.length && item.whole) lines.push("dominated: another is at least as good in all of these");
  return lines;
}

function tip(item, px, py) {
  const box = at("tip");
  const [head, ...rest] = describe(item);
  box.replaceChildren(make("strong", {}, head), ...rest.map((line) => make("span", {}, line)));
  box.hidden = false;
  const width = at("plot").clientWidth;
  const left = Math.min(Math.max(0, px + 14), width - box.offsetWidth);
  box.style.left = `${Math.max(0, left)}px`;
  box.style.top = `${py - box.offsetHeight - 14 < -30 ? py + 16 : py - box.offsetHeight - 14}px`;
}
function hideTip() { at("tip").hidden = true; }

function key() {
  const used = new Set(view.items.map((item) => technique(item.row)));
  const sample = (...nodes) => make("svg", { class: "scatter key", viewBox: "-9 -9 18 18", "aria-hidden": "true" }, ...nodes);
  const entries = techniques.filter((name) => used.has(name)).map((name) =>
    make("li", {}, sample(make("g", { class: "point best" }, mark(name))), name));
  const first = techniques.find((name) => used.has(name)) || PLAIN;
  entries.push(make("li", {}, sample(make("g", { class: "point beaten" }, mark(first))), "faded: dominated"));
  if (state.budgets.length) {
    const crossed = make("g", { class: "point missing" }, mark(first), make("path", { class: "cross", d: "M-4,-4 L4,4 M-4,4 L4,-4" }));
    entries.push(make("li", {}, sample(crossed), "hollow, crossed: misses a budget"));
  }
  if (state.unit === "arms") {
    entries.push(make("li", {}, sample(make("path", { class: "error", d: "M-7,0 H7 M-7,-3 V3 M7,-3 V3" })),
      "bars: ± 1 standard deviation over seeds"));
  }
  put("key", ...entries);
}
