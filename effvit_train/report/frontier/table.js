// The sortable table.
function columns() {
  const wanted = [...objectives(), ...state.budgets.map((budget) => budget.key), ...HEADLINES];
  const have = data.measures.map((measure) => measure.key).filter((one) => shown(one).length || wanted.slice(0, 2).includes(one));
  const first = [...new Set(wanted)].filter((one) => have.includes(one));
  return state.every ? [...first, ...have.filter((one) => !first.includes(one))] : first;
}
const TEXTS = {
  name: { title: "Arm", of: (row) => table().label[row] },
  tech: { title: "Techniques", of: technique },
  count: { title: "Runs", of: (row) => runsOf(row).length },
  front: { title: "Front", of: (row, item) => (item.front ? 0 : item.failed.length ? 2 : 1) },
};
function sorted(keys) {
  if (!state.sort) { state.sort = state.y; state.down = measures.get(state.y).better === "higher"; }
  const by = TEXTS[state.sort]
    ? (item) => TEXTS[state.sort].of(item.row, item)
    : (item) => value(item.row, keys.includes(state.sort) ? state.sort : state.y);
  return [...view.items].sort((a, b) => {
    const [one, two] = [by(a), by(b)];
    if (one === null || two === null) return (one === null) - (two === null); // nulls last, whichever way
    const way = typeof one === "string" ? one.localeCompare(two, "en", { numeric: true }) : one - two;
    return state.down ? -way : way;
  });
}
function header(id, title, numeric, better) {
  const on = state.sort === id;
  const arrow = on ? (state.down ? " ▼" : " ▲") : "";
  return make("th", { scope: "col", class: numeric ? "num" : "", "aria-sort": on ? (state.down ? "descending" : "ascending") : "none" },
    make("button", {
      type: "button", "data-sort": id, title: better ? `${better} is better; sort by it` : "sort by it",
      onclick: () => {
        state.down = on ? !state.down : better === "higher";
        state.sort = id;
        rows();
        const again = at("table").querySelector(`[data-sort="${CSS.escape(id)}"]`);
        if (again) again.focus();
      },
    }, `${title}${arrow}`));
}
function rows() {
  const keys = columns();
  const unit = state.unit === "arms" ? "Arm" : "Run";
  const head = make("tr", {}, make("th", { scope: "col", class: "pick" }, make("span", { class: "unseen" }, "Select")),
    header("name", unit), header("front", "Front"), header("tech", "Techniques"),
    ...(state.unit === "arms" ? [header("count", "Runs", true)] : []),
    ...keys.map((one) => header(one, measures.get(one).label, true, measures.get(one).better)));
  const order = sorted(keys);
  const body = order.slice(0, state.rows).map((item) => line(item, keys));
  put("table", make("table", { class: "many" }, make("caption", { class: "unseen" }, "All that the filters leave, sortable"),
    make("thead", {}, head), make("tbody", {}, ...body)));
  const rest = order.length - body.length;
  at("more").hidden = rest <= 0;
  at("more").textContent = `Show ${rest.toLocaleString("en")} more`;
}
function line(item, keys) {
  const { row } = item;
  const place = state.chosen.indexOf(row);
  const standing = item.front ? "● front" : item.failed.length ? "✕ misses a budget" : item.whole ? "dominated" : "no number";
  const box = make("input", {
    type: "checkbox", "aria-label": `select ${table().label[row]}`, onchange: () => {
      choose(row);
      const again = at("table").querySelector(`tr[data-row="${row}"] input`);
      if (again) again.focus();
    },
  });
  box.checked = place >= 0;
  return make("tr", { class: item.front ? "best" : item.failed.length ? "missing" : "", "data-row": row },
    make("td", { class: "pick" }, box),
    make("th", { scope: "row" }, named(row)),
    make("td", { class: "stand", title: item.failed.map((budget) => missed(row, budget)).join("\n") || null }, standing),
    make("td", {}, technique(row)),
    ...(state.unit === "arms" ? [make("td", { class: "num" }, String(runsOf(row).length))] : []),
    ...keys.map((one) => {
      const found = value(row, one);
      const sd = sdOf(row, one);
      const text = sd ? withSpread(one, found, sd) : written(one, found);
      return make("td", { class: "num", title: found === null ? `not measured: ${reason(row, one)}` : `${found} ${measures.get(one).unit}` }, text);
    }));
}
function named(row) { // a run's name leads to its card, an arm's runs each to theirs
  const href = state.unit === "runs" ? data.runs.href[row] : "";
  const name = href ? make("a", { class: "what", href }, table().label[row]) : make("span", { class: "what" }, table().label[row]);
  const box = document.createDocumentFragment();
  box.append(name);
  if (state.unit === "arms") box.append(links(row) || "");
  return box;
}
function links(row) {
  const runs = runsOf(row);
  const known = runs.filter((run) => data.runs.href[run]);
  if (!known.length) return null;
  const box = make("span", { class: "cards" });
  for (const run of known.slice(0, 8)) {
    const name = runs.length === 1 ? "card" : `seed ${data.runs.seed[run]}`;
    box.append(make("a", { href: data.runs.href[run] }, name));
  }
  return box;
}
