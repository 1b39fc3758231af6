// Small tables of numbers, coloured by the page's scale: patches, kernels, products.

import { colour, extentOf, ink } from "./colours.js";
import { h, number } from "./elements.js";

export function grid({ caption, label = caption, small = false }) {
  const body = h("div", { class: "cells", role: "img", "aria-label": label });
  const element = h("figure", { class: `grid${small ? " small" : ""}` }, body, caption ? h("figcaption", {}, caption) : null);
  let cells = [], shape = "";

  function show(rows, { extent = extentOf(rows.flat()), mark = null, digits = 2, gray = false } = {}) {
    const [height, width] = [rows.length, rows[0].length];
    if (shape !== `${height}x${width}`) {
      shape = `${height}x${width}`;
      body.style.gridTemplateColumns = `repeat(${width}, 1fr)`;
      body.className = `cells ${gray ? "pixels-told" : `k${Math.min(Math.max(height, width), 12)}`}`;
      cells = Array.from({ length: height * width }, () => h("span", {}));
      body.replaceChildren(...cells);
    }
    const told = Math.max(height, width) <= 7 || gray;
    rows.flat().forEach((value, i) => {
      const t = (value ?? 0) / extent;
      cells[i].style.backgroundColor = gray ? `rgb(${value},${value},${value})` : colour(t);
      cells[i].style.color = gray ? (value > 117 ? "#000" : "#fff") : ink(t);
      const text = !told ? "" : gray ? String(value) : value === null ? "−∞" : value.toFixed(Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 9.995 ? 1 : digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−");
      if (cells[i].textContent !== text) cells[i].textContent = text;
      cells[i].classList.toggle("mark", mark === i);
    });
    body.setAttribute("aria-label", `${label}: ${rows.map((row) => row.map((value) => number(value, digits)).join(" ")).join("; ").slice(0, 400)}`);
  }
  return { element, show };
}

// Addends as bars to both sides of a middle: [{name, value, chosen, pick}]
export function shares(rows, { extent = extentOf(rows.map((row) => row.value)), digits = 3, label } = {}) {
  return h("ul", { class: "shares", "aria-label": label }, rows.map((row) => {
    const t = Math.max(-1, Math.min(1, row.value / extent));
    const bar = h("span", { class: `bar ${row.value < 0 ? "below" : "above"}` });
    bar.style.width = `${Math.abs(t) * 50}%`;
    bar.style.left = t < 0 ? `${50 + t * 50}%` : "50%";
    const inner = [h("span", { class: "name" }, row.name), h("span", { class: "axis" }, bar), h("span", { class: "value" }, number(row.value, digits))];
    return h("li", { class: `${row.chosen ? "chosen" : ""}${row.pick ? " pick" : ""}` }, row.pick ? h("button", { class: "plain", data: { keep: `share ${row.name}` }, onclick: row.pick, "aria-pressed": String(!!row.chosen) }, inner) : inner);
  }));
}
