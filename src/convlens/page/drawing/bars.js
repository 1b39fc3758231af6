// Probabilities as bars, a class a row; what they were before a channel went out stays as a mark.

import { h, percent } from "./elements.js";
import { say } from "../words.js";

const MOST = 12; // classes that are told; of more the likeliest

export function bars(classes, { label = "", most = MOST } = {}) {
  const list = h("ol", { class: "bars", "aria-label": label });
  let rows = [];

  function build(chosen) {
    rows = chosen.map((k) => {
      const fill = h("span", { class: "fill" }), mark = h("span", { class: "mark", hidden: true }), value = h("span", { class: "value" });
      const name = h("span", { class: "name", title: classes[k] }, classes[k]);
      return { k, fill, mark, value, item: h("li", {}, name, h("span", { class: "track" }, fill, mark), value) };
    });
    list.replaceChildren(...rows.map((row) => row.item));
  }

  function show(probabilities, before = null) {
    const order = probabilities.map((p, k) => [p, k]).sort((a, b) => b[0] - a[0]).slice(0, most).map(([, k]) => k);
    const chosen = classes.length <= most ? classes.map((_, k) => k) : order;
    if (rows.map((row) => row.k).join() !== chosen.join()) build(chosen);
    const best = probabilities.indexOf(Math.max(...probabilities));
    for (const row of rows) {
      const p = probabilities[row.k];
      row.fill.style.transform = `scaleX(${p})`;
      row.value.textContent = percent(p);
      row.item.classList.toggle("best", row.k === best);
      row.mark.hidden = !before;
      if (before) {
        row.mark.style.left = `${before[row.k] * 100}%`;
        row.mark.title = say("bars.before", { p: percent(before[row.k]) });
      }
    }
  }

  function clear() {
    build(classes.map((_, k) => k).slice(0, most));
    rows.forEach((row) => { row.value.textContent = ""; });
  }

  clear();
  return { element: list, show, clear };
}
