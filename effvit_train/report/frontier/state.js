// What is shown: the numbers in #data, what was chosen, and small tools. Text goes in as text nodes only: names are
// somebody else's.
const data = JSON.parse(document.getElementById("data").textContent);
const MOST = 5; // runs in one 360 chart
const FIRST = 200; // rows of the table at first
const PLAIN = "plain";
const HEADLINES = [
  "quality/accuracy", "cost/params", "cost/macs", "cost/latency_ms", "cost/throughput", "cost/size_mb",
  "calibration/ece", "fairness/worst_group_accuracy", "robustness/corruption_accuracy", "privacy/epsilon",
];
const measures = new Map(data.measures.map((measure) => [measure.key, measure]));
const timed = new Set(data.timed);
const at = (id) => document.getElementById(id);
const state = {
  unit: "arms", set: 0, x: data.x, y: data.y[0], more: data.y.slice(1), text: "", tech: "", model: "",
  budgets: data.budgets.map((budget) => ({ ...budget, on: true })),
  hide: false, chosen: [], reference: "", sort: null, down: false, every: false, rows: FIRST, focus: null,
  log: {},
};
let view;

const SVG = "http://www.w3.org/2000/svg";
function make(name, attributes, ...children) {
  const drawn = ["svg", "g", "path", "line", "text", "circle", "polyline", "title", "tspan", "desc"];
  const node = drawn.includes(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}
const put = (id, ...children) => at(id).replaceChildren(...children.filter((child) => child !== null));
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
