// What is shown, in words.
function words() {
  const unit = state.unit === "arms" ? "arm" : "run";
  const best = view.items.filter((item) => item.front).length;
  const missing = view.items.filter((item) => item.failed.length).length;
  const keys = objectives();
  const names = keys.map((one) => `${inside(measures.get(one).label)} (${measures.get(one).better} is better)`);
  const bounded = state.budgets.some((budget) => budget.on);
  const parts = [`${plural(best, unit)} of ${view.items.length.toLocaleString("en")} on the front of ${names.join(" and ")}`];
  if (bounded) parts.push(missing ? `${plural(missing, unit)} ${missing === 1 ? "misses" : "miss"} a budget` : "all meet every budget");
  put("status", `${parts.join("; ")}.`);
  const notes = [];
  const gaps = new Map();
  for (const item of view.items) for (const one of keys) {
    if (value(item.row, one) === null) {
      const why = `${measures.get(one).label}: ${reason(item.row, one)}`;
      gaps.set(why, (gaps.get(why) || 0) + 1);
    }
  }
  for (const [why, count] of gaps) notes.push(`${plural(count, unit)} cannot be on it without a number for it (${why}).`);
  if (view.hidden) notes.push(`${plural(view.hidden, unit)} hidden by the filters.`);
  const states = new Set(view.items.flatMap((item) => runsOf(item.row).map((run) => data.runs.condition[run])));
  if (states.size > 1 && keys.some((one) => timed.has(one))) {
    notes.push(`Times were measured under ${states.size} different conditions (processor, threads, precision …): between those they cannot be compared.`);
  }
  if (data.sets[state.set].note) notes.push(data.sets[state.set].note);
  put("notes", ...notes.map((note) => make("li", {}, note)));
  at("reset").hidden = !view.hidden;
}
