// Controls, and how all hangs together.
function options(id, entries, chosen) {
  put(id, ...entries.map(([code, text]) => {
    const option = make("option", { value: code }, text);
    option.selected = String(code) === String(chosen);
    return option;
  }));
}
const axes = () => {
  // a choice of axes: what at least two of the data set have, and what is chosen already
  const inSet = [...data.runs.set.keys()].filter((run) => data.runs.set[run] === state.set);
  const enough = (one) => inSet.filter((run) => data.runs.values[one][run] !== null).length > 1;
  return data.measures.filter((one) => enough(one.key) || objectives().includes(one.key)).map((one) => [one.key, one.title]);
};
function controls() {
  options("x", axes(), state.x);
  options("y", axes(), state.y);
  options("also", [["", "add an objective …"], ...axes().filter(([one]) => !objectives().includes(one))], "");
  for (const [id, one] of [["log-x", state.x], ["log-y", state.y]]) {
    at(id).checked = isLog(one);
    at(id).disabled = !canLog(one);
  }
  put("further", ...state.more.filter((one) => one !== state.x && one !== state.y).map((one) => make("li", {}, measures.get(one).title,
    make("button", { type: "button", class: "small", "aria-label": `no objective: ${measures.get(one).label}`, onclick: () => { state.more = state.more.filter((each) => each !== one); all(); } }, "✕"))));
  put("budgets", ...state.budgets.map((budget, place) => {
    const box = make("input", { type: "checkbox", onchange: (event) => { budget.on = event.target.checked; all(); } });
    box.checked = budget.on;
    return make("li", {}, make("label", {}, box, ` ${budget.text}`),
      make("button", { type: "button", class: "small", "aria-label": `no budget: ${budget.text}`, onclick: () => { state.budgets.splice(place, 1); all(); } }, "✕"));
  }));
  options("bound-key", axes(), at("bound-key").value || state.x);
  const bound = measures.get(at("bound-key").value);
  put("bound-unit", bound ? (bound.unit === "fraction" ? "%" : bound.unit) : "");
  for (const unit of ["arms", "runs"]) at(unit).checked = state.unit === unit;
}
function filters() {
  const here = [...data.runs.set.keys()].filter((run) => data.runs.set[run] === state.set);
  const used = (list, column) => [...new Set(here.map((run) => list[column[run]]))].sort();
  options("tech", [["", "all"], ...used(data.techniques, data.runs.tech).map((name) => [name, name])], state.tech);
  options("model", [["", "all"], ...used(data.models, data.runs.model).map((name) => [name, name])], state.model);
  options("set", data.sets.map((one, place) => [place, `${one.label} (${plural(one.runs, "run")})`]), state.set);
  at("set-field").hidden = data.sets.length < 2;
  const told = data.privacy.filter((one) => one.sets.includes(state.set));
  at("search").hidden = !told.length;
  put("spent", ...told.flatMap((one) => one.sentences.map((text) => make("li", {}, text))));
}
function all() {
  compute();
  state.chosen = state.chosen.filter((row) => table().set[row] === state.set);
  controls();
  words();
  key();
  draw();
  rows();
  selection();
}
function on(id, event, change) {
  at(id).addEventListener(event, (happened) => { change(happened.target); all(); });
}
on("x", "change", (field) => { state.x = field.value; });
on("y", "change", (field) => { state.y = field.value; state.sort = null; });
on("also", "change", (field) => { if (field.value) state.more.push(field.value); });
on("log-x", "change", (field) => { state.log[state.x] = field.checked; });
on("log-y", "change", (field) => { state.log[state.y] = field.checked; });
on("text", "input", (field) => { state.text = field.value; });
on("tech", "change", (field) => { state.tech = field.value; });
on("model", "change", (field) => { state.model = field.value; });
on("hide", "change", (field) => { state.hide = field.checked; });
on("set", "change", (field) => {
  Object.assign(state, { set: Number(field.value), chosen: [], tech: "", model: "", reference: "" });
  filters();
});
for (const unit of ["arms", "runs"]) on(unit, "change", () => { Object.assign(state, { unit, chosen: [], reference: "", rows: FIRST }); });
on("every", "change", (field) => { state.every = field.checked; });
at("bound-key").addEventListener("change", controls);
at("more").addEventListener("click", () => { state.rows = Infinity; rows(); });
at("reset").addEventListener("click", () => {
  Object.assign(state, { text: "", tech: "", model: "", hide: false });
  at("text").value = "";
  at("hide").checked = false;
  filters();
  all();
});
at("bound").addEventListener("submit", (event) => {
  event.preventDefault();
  const [code, way] = [at("bound-key").value, at("bound-sign").value];
  const typed = Number(at("bound-limit").value);
  if (at("bound-limit").value.trim() === "" || !Number.isFinite(typed)) { at("bound-limit").focus(); return; }
  const share = measures.get(code).unit === "fraction";
  state.budgets.push({ key: code, sign: way, limit: share ? typed / 100 : typed, text: `${code}${way}${typed}${share ? "%" : ""}`, on: true });
  at("bound-limit").value = "";
  all();
});
let width = 0;
new ResizeObserver(() => {
  if (at("plot").clientWidth !== width) { width = at("plot").clientWidth; draw(); }
}).observe(at("plot"));
document.documentElement.classList.add("live");
at("filters").open = window.innerWidth > 700;
filters();
all();
