// Arms or runs: which the filters leave, which meet the budgets, which are on the front.
const table = () => data[state.unit];
const value = (row, key) => (table().values[key] ? table().values[key][row] : null);
const sdOf = (row, key) => (state.unit === "arms" && table().sd[key] ? table().sd[key][row] : null);
const runsOf = (row) => (state.unit === "arms" ? data.arms.runs[row] : [row]);
const technique = (row) => data.techniques[table().tech[row]];
function reason(row, key) {
  const why = data.runs.why[key];
  const found = why ? runsOf(row).map((run) => why[run]).find((number) => number >= 0) : undefined;
  return found === undefined ? "not measured" : data.reasons[found];
}
const COMPARE = {
  "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "<": (a, b) => a < b, ">": (a, b) => a > b,
};
function misses(row) {
  return state.budgets.filter((budget) => {
    const found = value(row, budget.key);
    return budget.on && (found === null || !COMPARE[budget.sign](found, budget.limit));
  });
}
function missed(row, budget) {
  const found = value(row, budget.key);
  const label = `misses ${budget.text}`;
  return found === null ? `${label}: not measured (${reason(row, budget.key)})` : `${label}: ${written(budget.key, found)}`;
}
const objectives = () => [...new Set([state.x, state.y, ...state.more])];

function front(rows, keys) {
  const burdens = rows.map((row) => keys.map((key) => {
    const found = value(row, key);
    return measures.get(key).better === "lower" ? found : -found;
  }));
  const beats = (one, two) => {
    let better = false;
    for (let k = 0; k < one.length; k++) {
      if (one[k] > two[k]) return false;
      if (one[k] < two[k]) better = true;
    }
    return better;
  };
  return burdens.map((own) => !burdens.some((other) => beats(other, own)));
}

function compute() {
  const all = table();
  const keys = objectives();
  const items = [];
  let hidden = 0;
  const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  for (let row = 0; row < all.label.length; row++) {
    if (all.set[row] !== state.set) continue;
    const told = `${all.label[row]} ${data.models[all.model[row]]} ${technique(row)}`.toLowerCase();
    const failed = misses(row);
    if (!words.every((word) => told.includes(word)) || (state.tech && technique(row) !== state.tech)
      || (state.model && data.models[all.model[row]] !== state.model) || (state.hide && failed.length)) {
      hidden++;
      continue;
    }
    items.push({ row, failed, whole: keys.every((key) => value(row, key) !== null), front: false });
  }
  const fit = items.filter((item) => item.whole && !item.failed.length);
  front(fit.map((item) => item.row), keys).forEach((best, place) => { fit[place].front = best; });
  view = { items, hidden, shown: new Map(), positive: new Map(), wide: new Map() };
}
