// The selected, on all axes: the 360 chart and its table.
function choose(row) {
  const place = state.chosen.indexOf(row);
  if (place >= 0) state.chosen.splice(place, 1);
  else if (state.chosen.length < MOST) state.chosen.push(row);
  else {
    put("said", `${MOST} at most: take one away first.`);
    rows();
    return;
  }
  put("said", place >= 0 ? `${table().label[row]} taken away` : `${table().label[row]} selected, number ${state.chosen.length}`);
  draw();
  rows();
  selection();
}
function reference() {
  const rowsHere = [...table().label.keys()].filter((row) => table().set[row] === state.set);
  if (state.reference !== "" && rowsHere.includes(Number(state.reference))) return Number(state.reference);
  const plain = rowsHere.filter((row) => technique(row) === PLAIN);
  const like = plain.find((row) => table().model[row] === table().model[state.chosen[0]]);
  return like !== undefined ? like : plain.length ? plain[0] : rowsHere[0];
}
function doubt(spoke, index, row, other) {
  const all = table();
  if (timed.has(spoke.key)) {
    const [here, there] = [all.condition[row], all.condition[other]];
    if (here === null || there === null || here !== there) return "other conditions";
    const [now, before] = [value(row, spoke.key), value(other, spoke.key)];
    if (before > 0 && Math.abs(now / before - 1) < data.scale.noise) return "within noise";
  }
  if (spoke.key === "spectral/log_norm_bound" && value(row, "cost/params") !== value(other, "cost/params")) return "other architecture";
  const difference = value(row, spoke.key) - value(other, spoke.key);
  if (state.unit === "arms") {
    const [here, there] = [sdOf(row, spoke.key), sdOf(other, spoke.key)];
    if (here === null || there === null) return "";
    const count = (one) => data.arms.count[spoke.key][one];
    const error = Math.sqrt(here ** 2 / count(row) + there ** 2 / count(other));
    return Math.abs(difference) <= 2 * error ? "within seed scatter" : "";
  }
  const [here, there] = [all.interval[index][row], all.interval[index][other]];
  if (!here || !there) return "";
  const low = difference - Math.hypot(value(row, spoke.key) - here[0], there[1] - value(other, spoke.key));
  const high = difference + Math.hypot(here[1] - value(row, spoke.key), value(other, spoke.key) - there[0]);
  return low <= 0 && high >= 0 ? "within noise" : "";
}
function reading(index, row, other) {
  const spoke = data.spokes[index];
  const now = table().logs[index][row];
  let then = table().logs[index][other];
  const stands = table().stands[spoke.key];
  if (then === null && stands) then = stands[other];
  if (now === null) return { words: `not measured: ${reason(row, spoke.key)}`, factor: null };
  if (then === null || then === undefined) return { words: "no factor: not measured of the reference", factor: null };
  if (Math.abs(then - now) < data.scale.same) return { words: "same", factor: Math.exp(then - now), kind: "same" };
  const factor = Math.exp(Math.min(700, Math.max(-700, then - now)));
  const doubtful = doubt(spoke, index, row, other);
  const text = `${times(factor)} ${factor > 1 ? "better" : "worse"}`;
  return { words: doubtful ? `${text}, ${doubtful}` : text, factor, kind: doubtful ? "unclear" : factor > 1 ? "better" : "worse" };
}
function selection() {
  const area = at("selected");
  area.hidden = !state.chosen.length;
  if (!state.chosen.length) return;
  const other = reference();
  const choice = make("select", { id: "reference", onchange: (event) => { state.reference = event.target.value; selection(); at("reference").focus(); } });
  const rowsHere = [...table().label.keys()].filter((row) => table().set[row] === state.set);
  for (const row of rowsHere.sort((a, b) => (technique(b) === PLAIN) - (technique(a) === PLAIN))) {
    const option = make("option", { value: row }, table().label[row]);
    option.selected = row === other;
    choice.append(option);
  }
  const list = state.chosen.map((row, place) => make("li", { class: `c${place}` },
    make("svg", { class: "swatch", viewBox: "0 0 40 14", "aria-hidden": "true" },
      make("line", { class: "outline", x1: 0, y1: 7, x2: 40, y2: 7 }), make("g", { transform: "translate(20 7)" }, make("path", { class: "mark", d: SHAPES[place] }))),
    make("span", {}, `${place + 1}. ${table().label[row]} `, links(row)),
    make("button", { type: "button", class: "small", "aria-label": `take away ${table().label[row]}`, onclick: () => choose(row) }, "✕")));
  const readings = data.spokes.map((spoke, index) => state.chosen.map((row) => reading(index, row, other)));
  put("selection",
    make("ul", { class: "chosen-list" }, ...list),
    make("p", { class: "field" }, make("label", { for: "reference" }, "Compared with (the circle)"), choice),
    make("div", { class: "pair wide" }, make("div", { class: "scroll" }, radial(readings)), comparison(readings, other)));
}
function radial(readings) {
  const [width, height, inner, outer] = [560, 420, 20, 132];
  const [cx, cy] = [width / 2, height / 2];
  const { limit, rings } = data.scale;
  const radius = (factor) => inner + (Math.log(Math.min(limit, Math.max(1 / limit, factor))) / Math.log(limit) + 1) / 2 * (outer - inner);
  const place = (index, distance) => {
    const turn = (index + 0.5) * 2 * Math.PI / data.spokes.length;
    return [cx + distance * Math.sin(turn), cy - distance * Math.cos(turn)];
  };
  const told = data.spokes.map((spoke, index) => `${spoke.name}: ${readings[index].map((one, n) => `${n + 1} ${one.words}`).join(", ")}`).join("; ");
  const chart = make("svg", { class: "chart c360", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "All axes against the reference" },
    make("desc", {}, told));
  const middle = (radius(1) + outer) / 2;
  chart.append(make("circle", { class: "outside", cx, cy, r: middle, "stroke-width": outer - radius(1) }), make("circle", { class: "inside", cx, cy, r: radius(1) }));
  for (const [factor, name] of rings) {
    chart.append(make("circle", { class: factor === 1 ? "ring unit" : "ring", cx, cy, r: radius(factor) }),
      make("text", { class: "scale", x: cx, y: cy - radius(factor) + 3.5, "text-anchor": "middle" }, name));
  }
  const spots = data.spokes.map((spoke, index) => place(index, outer + 22));
  for (const right of [true, false]) for (const way of [-1, 1]) { // labels of one side keep their distance
    const side = spots.map((spot, i) => i).filter((i) => (spots[i][0] > cx) === right && (spots[i][1] > cy) === (way > 0))
      .sort((a, b) => way * (spots[a][1] - spots[b][1]));
    for (let n = 1; n < side.length; n++) {
      const floor = way * spots[side[n - 1]][1] + 18;
      spots[side[n]][1] = way * Math.max(way * spots[side[n]][1], floor);
    }
  }
  data.spokes.forEach((spoke, index) => {
    const measured = readings[index].some((one) => one.factor !== null);
    const [x0, y0] = place(index, inner);
    const [x1, y1] = place(index, measured ? outer : outer + 4);
    chart.append(make("line", { class: measured ? "guide" : "dashed", x1: x0, y1: y0, x2: x1, y2: y1 }));
    if (!measured) { const [x, y] = place(index, outer + 8); chart.append(make("circle", { class: "open", cx: x, cy: y, r: 4.5 })); }
    const [lx, ly] = spots[index];
    chart.append(make("g", { class: measured ? "" : "null" }, make("text", { class: "axis-name", x: lx, y: ly + 4, "text-anchor": lx > cx ? "start" : "end" }, spoke.name)));
  });
  state.chosen.forEach((row, n) => {
    const group = make("g", { class: `c${n}` });
    data.spokes.forEach((spoke, index) => {
      const [here, there] = [readings[index][n], readings[(index + 1) % data.spokes.length][n]];
      if (here.factor === null || there.factor === null) return;
      const [[x1, y1], [x2, y2]] = [place(index, radius(here.factor)), place((index + 1) % data.spokes.length, radius(there.factor))];
      group.append(make("line", { class: "outline", x1, y1, x2, y2 }));
    });
    data.spokes.forEach((spoke, index) => {
      const here = readings[index][n];
      if (here.factor === null) return;
      const [x, y] = place(index, radius(here.factor));
      group.append(make("g", { transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})` },
        make("path", { class: "mark", d: SHAPES[n] }), make("title", {}, `${table().label[row]}, ${spoke.name}: ${here.words}`)));
    });
    chart.append(group);
  });
  return chart;
}
function comparison(readings, other) {
  const head = make("tr", {}, make("th", { scope: "col" }, "Measure"), make("th", { scope: "col", class: "num" }, "Reference"),
    ...state.chosen.map((row, n) => make("th", { scope: "col", class: `num c${n}`, title: table().label[row] }, String(n + 1))));
  const body = data.spokes.map((spoke, index) => [spoke, index]).filter(([spoke]) => measures.has(spoke.key)).map(([spoke, index]) => {
    const stands = table().stands[spoke.key];
    const before = value(other, spoke.key);
    const known = before === null && stands && stands[other] !== null ? (spoke.key === "privacy/epsilon" ? "no bound (∞)" : "exact (0)") : written(spoke.key, before);
    return make("tr", {}, make("th", { scope: "row", title: `${measures.get(spoke.key).about} Compared by ${spoke.by}.` }, spoke.name),
      make("td", { class: "num" }, known),
      ...readings[index].map((one, n) => make("td", { class: `num ${one.kind || "same"}`, title: one.words },
        make("span", { class: "now" }, written(spoke.key, value(state.chosen[n], spoke.key))),
        make("span", { class: "change" }, one.factor === null ? "–" : one.words))));
  });
  const nothing = data.spokes.filter((spoke) => !measures.has(spoke.key)).map((spoke) => spoke.name);
  return make("div", { class: "scroll" },
    make("table", { class: "many compared" }, make("caption", { class: "unseen" }, "Selected against the reference"), make("thead", {}, head), make("tbody", {}, ...body)),
    nothing.length ? make("p", { class: "hint" }, `Measured in no run: ${nothing.join(", ")}.`) : null);
}
