// Lines over the epochs, as SVG, with the numbers of the epoch under the pointer.

import { h, number, s } from "./elements.js";

const [HIGH, LEFT, BOTTOM, TOP, RIGHT] = [200, 48, 26, 8, 8]; // pixels; as wide as its place
const STYLES = ["one", "two", "three", "four"];

function ticks(low, high, wanted = 4) {
  const rough = (high - low || 1) / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const first = Math.ceil(low / step) * step;
  return Array.from({ length: Math.floor((high - first) / step + 1e-9) + 1 }, (_, i) => first + i * step);
}

// 1, 2 and 5 of every power of ten, or only the powers where there are many; even steps where there are hardly any
function decades(low, high) {
  const powers = Array.from({ length: Math.ceil(high) - Math.floor(low) + 1 }, (_, i) => 10 ** (Math.floor(low) + i));
  const levels = powers.flatMap((power) => (high - low > 2 ? [power] : [power, 2 * power, 5 * power])).filter((level) => Math.log10(level) >= low && Math.log10(level) <= high);
  return levels.length < 3 ? ticks(10 ** low, 10 ** high) : levels;
}

// series [{name, points: [[epoch, value], ...]}]; `as` makes text of a value
export function curves({ title, label, unit = "", as = (value) => number(value, 3), log = false }) {
  const svg = s("svg", { role: "img", "aria-label": label });
  const legend = h("p", { class: "keys small" });
  const element = h("figure", { class: "curves" }, h("h3", {}, title), svg, legend);
  let shown = [], last = 1, chosen = null, wide = 0, told = [];

  function show(series, epochs = 1) {
    told = [series, epochs];
    if (!wide) return; // not yet in the page
    shown = series.filter((each) => each.points.length);
    last = Math.max(...shown.flatMap((each) => each.points.map(([x]) => x)), epochs, 2);
    const values = shown.flatMap((each) => each.points.map(([, y]) => y)).filter((y) => Number.isFinite(y));
    if (!values.length) { svg.replaceChildren(); return; }
    const change = log ? Math.log10 : (value) => value;
    let [low, high] = [Math.min(...values.map(change)), Math.max(...values.map(change))];
    const slack = (high - low || Math.abs(high) || 1) * 0.06;
    [low, high] = [low - slack, high + slack];
    if (unit === "%") high = Math.min(high, 1);
    const x = (epoch) => LEFT + ((epoch - 1) / (last - 1)) * (wide - LEFT - RIGHT);
    const y = (value) => TOP + (1 - (change(value) - low) / (high - low)) * (HIGH - TOP - BOTTOM);
    const levels = log ? decades(low, high) : ticks(low, high);
    const marks = ticks(1, last, Math.min(last - 1, 8)).filter((each) => Number.isInteger(each));
    svg.replaceChildren(
      ...levels.map((level) => s("g", {}, s("line", { class: "level", x1: LEFT, x2: wide - RIGHT, y1: y(level), y2: y(level) }), s("text", { x: LEFT - 8, y: y(level) + 4, "text-anchor": "end" }, as(level, true)))),
      ...marks.map((mark) => s("text", { x: x(mark), y: HIGH - 6, "text-anchor": "middle" }, String(mark))),
      ...shown.map((each, i) => s("g", { class: `series ${STYLES[i]}` },
        s("polyline", { points: each.points.filter(([, value]) => Number.isFinite(value)).map(([epoch, value]) => `${x(epoch).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }),
        each.points.length < 40 ? each.points.map(([epoch, value]) => s("circle", { cx: x(epoch), cy: y(value), r: 2.6 })) : [])),
      chosen !== null ? s("line", { class: "cursor", x1: x(chosen), x2: x(chosen), y1: TOP, y2: HIGH - BOTTOM }) : s("g"));
    tell(chosen);
  }

  function tell(epoch) {
    legend.replaceChildren(...shown.map((each, i) => {
      const point = epoch === null ? each.points.at(-1) : each.points.find(([at]) => at === epoch);
      return h("span", { class: STYLES[i] }, h("i", { "aria-hidden": "true" }), each.name, " ", h("b", {}, point ? as(point[1]) : "–"));
    }));
  }

  svg.addEventListener("pointermove", (event) => {
    const bounds = svg.getBoundingClientRect();
    const at = (event.clientX - bounds.left - LEFT) / (wide - LEFT - RIGHT);
    tell(Math.min(Math.max(Math.round(1 + at * (last - 1)), 1), last));
  });
  new ResizeObserver(() => {
    if (svg.clientWidth === wide) return;
    wide = svg.clientWidth;
    svg.setAttribute("viewBox", `0 0 ${wide} ${HIGH}`); // for the saved picture
    if (told.length) show(...told);
  }).observe(svg);
  svg.addEventListener("pointerleave", () => tell(chosen));
  return { element, show, choose: (epoch) => { chosen = epoch; } };
}
