// Logits become probabilities: e to the power of each, and its share of their sum.

import { h, number, percent } from "./elements.js";
import { change } from "../state.js";
import { say } from "../words.js";

const MOST = 20;

export function softmax(run, look, chosen) {
  const rows = look.softmax.map(([scaled, power, p], k) => ({ k, z: look.logits[k], scaled, power, p }));
  const sum = rows.reduce((total, row) => total + row.power, 0);
  const told = rows.length > MOST ? [...rows].sort((a, b) => b.p - a.p).slice(0, MOST) : rows;
  const top = Math.max(...rows.map((row) => row.scaled));
  const one = rows[chosen] ?? rows[look.predicted];
  const small = (value) => (value === 0 ? "0" : value >= 0.0001 ? value.toFixed(4) : value.toExponential(1).replace("-", "−"));
  return h("div", { class: "softmax" },
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": say("softmax.title") }, h("table", { class: "connections" },
      h("thead", {}, h("tr", {}, ...["softmax.class", "softmax.logit", "softmax.scaled", "softmax.power", "softmax.p"].map((key) => h("th", { scope: "col" }, say(key))))),
      h("tbody", {}, ...told.map((row) => h("tr", { class: row.k === one.k ? "chosen" : "" },
        h("th", { scope: "row" }, h("button", { class: "plain", data: { keep: `class ${row.k}` }, "aria-pressed": String(row.k === one.k), onclick: () => change({ channel: row.k }) }, run.classes[row.k])),
        h("td", {}, number(row.z, 3)), h("td", {}, number(row.scaled, 3)), h("td", {}, small(row.power)), h("td", {}, h("b", {}, percent(row.p)))))),
      rows.length > MOST ? "" : h("tfoot", {}, h("tr", {}, h("th", { scope: "row" }, say("softmax.sum")), h("td", {}), h("td", {}), h("td", {}, small(sum)), h("td", {}, "100 %"))))),
    h("div", {}, h("h3", {}, say("softmax.of", { label: run.classes[one.k] })),
      h("p", {}, h("code", {}, `${number(one.z, 3)} / ${number(look.temperature, 3)} = ${number(one.scaled, 3)}`)),
      h("p", {}, h("code", {}, `e^(${number(one.scaled, 3)} − ${top < 0 ? `(${number(top, 3)})` : number(top, 3)}) = ${small(one.power)}`)),
      h("p", {}, h("code", {}, `${small(one.power)} / ${small(sum)} = ${percent(one.p)}`)),
      h("p", { class: "soft small" }, say("softmax.what")),
      h("p", { class: "soft small" }, say(look.calibrated ? "softmax.temperature" : "softmax.plain", { t: number(look.temperature, 3) }))));
}
