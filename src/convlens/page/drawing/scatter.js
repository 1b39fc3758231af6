// What a function of single numbers does, as the numbers of one map show it: before on the level axis, after upright.

import { h, s } from "./elements.js";

const [WIDE, HIGH, EDGE] = [260, 170, 14];

export function scatter(before, after, caption) {
  const reach = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [0, 0]);
  const [x0, x1] = reach(before), [y0, y1] = reach(after);
  const x = (value) => EDGE + ((value - x0) / (x1 - x0 || 1)) * (WIDE - 2 * EDGE);
  const y = (value) => HIGH - EDGE - ((value - y0) / (y1 - y0 || 1)) * (HIGH - 2 * EDGE);
  const every = Math.max(Math.floor(before.length / 400), 1);
  const points = Array.from(before, (value, i) => [value, after[i]]).filter((_, i) => i % every === 0).sort((a, b) => a[0] - b[0]);
  const dot = s("circle", { class: "here", r: 6 });
  const svg = s("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": caption },
    s("path", { class: "axes", d: `M${EDGE} ${y(0)}H${WIDE - EDGE}M${x(0)} ${EDGE}V${HIGH - EDGE}` }),
    s("path", { class: "line", d: points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("") }), dot);
  return {
    element: h("figure", { class: "scatter" }, svg, h("figcaption", {}, caption)),
    at: (a, b) => { dot.setAttribute("cx", x(a)); dot.setAttribute("cy", y(b)); },
  };
}
