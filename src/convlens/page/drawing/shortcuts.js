// The curves over the landscape: numbers that go to a layer which does not come next. In a residual network each block has
// one, from what the block was given to the place where it is added. A place is the gap in front of layer i, of n gaps 0 to n.

import { s } from "./elements.js";

const LEVEL = 10, LEVELS = 7, LOWEST = 14, ROUND = 12, APART = 5; // pixels: a curve over another, and at most so many; corners; ends in one gap
const SIGNS = { add: "M-3 0H3M0 -3V3", multiply: "M-2 -2L2 2M2 -2L-2 2", join: "M-1.5 -3V3M1.5 -3V3", mix: "" };

// [{from, to: gaps, layer: the one that takes the numbers, part: [name, side] of what is taken, how, or "" where it is taken as it is}]
export function jumps(layers) {
  const places = new Map(layers.map((layer, i) => [layer.name, i]));
  const gap = ([name, side]) => (name === "input" ? 0 : places.get(name) + (side === "input" ? 0 : 1));
  return layers.flatMap((layer, to) => {
    const parts = layer.joins?.of ?? layer.from.map((name) => [name, "output"]);
    const how = parts.length > 1 && layer.joins ? layer.joins.how : "";
    const far = parts.map((part) => ({ from: gap(part), to, layer: layer.name, part, how }));
    return [...new Map(far.filter(({ from }) => from < to).map((jump) => [jump.from, jump])).values()]; // the part at hand is the way through the layers
  });
}

// Those that are seen, with how high they go: over all shorter ones that they meet, as far as there is room. `seen`: of
// every gap, how many columns are on its left.
export function stacked(found, seen) {
  const placed = [];
  const spans = found.map((jump) => ({ ...jump, left: seen[jump.from], right: seen[jump.to] })).filter(({ left, right }) => left < right);
  for (const span of spans.sort((a, b) => a.right - a.left - (b.right - b.left))) {
    const under = placed.filter((other) => other.left < span.right && span.left < other.right);
    placed.push({ ...span, level: Math.min(1 + Math.max(-1, ...under.map((other) => other.level)), LEVELS - 1) });
  }
  return placed;
}

export const heightOf = (spans) => (spans.length ? LOWEST + LEVEL * Math.max(...spans.map(({ level }) => level)) + 12 : 0);

// `edges`: of every number of columns, where they end, in pixels
export function weave(svg, spans, edges) {
  const foot = heightOf(spans) - 2, ends = new Map();
  svg.replaceChildren(...spans.map(({ left, right, level, how, layer, part }) => {
    const x0 = edges[left] + APART, x1 = edges[right] - APART, top = foot - LOWEST - LEVEL * level, round = Math.min(ROUND, (x1 - x0) / 2);
    if (how) ends.set(layer, s("g", { class: "junction", "data-to": layer, transform: `translate(${x1} ${foot})` }, s("circle", { r: 5.5 }), s("path", { d: SIGNS[how] })));
    return s("path", { class: how ? "shortcut" : "branch", "data-from": part[0], "data-to": layer,
      d: `M${x0} ${foot}V${top + round}Q${x0} ${top} ${x0 + round} ${top}H${x1 - round}Q${x1} ${top} ${x1} ${top + round}V${foot}` });
  }), ...ends.values());
}
