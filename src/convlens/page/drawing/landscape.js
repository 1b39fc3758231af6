// The network as a landscape: a column for every layer from the input to the probabilities, its maps as thumbnails, those
// first that move the answer most. A layer's maps are asked for when it comes into view, so that a hundred layers are no
// more work than those that are seen.

import { ask, bytesOf, pictureOf } from "../fetching.js";
import { bars } from "./bars.js";
import { colour, depicted } from "./colours.js";
import { h, number, s } from "./elements.js";
import { heightOf, jumps, stacked, weave } from "./shortcuts.js";
import { kindOf, say } from "../words.js";
import { readOff } from "../state.js";

const SHOWN = 16, UNITS = 12; // maps of a layer in its column, and units
const HEIGHT = 400; // pixels that a column of maps fills
const LARGEST = 60, UNIT = 24; // pixels of a thumbnail as large as the image, and of a unit
const MANY = 24; // layers from which on only those that weigh or pool are shown at first

export const sizeOf = (layer) => layer.output.join(" × ");
const minor = (layer) => !/conv|pool|linear|input|softmax/i.test(layer.kind);

export function landscape(run, run_index, { choose, more, all, failed }) {
  const side = Math.max(...run.input.size);
  const list = h("ol", { class: "layers" });
  const threads = s("svg", { class: "threads", "aria-hidden": "true" });
  const far = jumps(run.layers), count = new Set(far.filter(({ how }) => how).map(({ layer }) => layer)).size;
  const curves = s("svg", { class: "shortcuts", ...(count ? { role: "img", "aria-label": say("inside.shortcuts.alt", { count }) } : { "aria-hidden": "true" }) });
  const scroller = h("div", { class: "scroller", tabindex: 0, role: "region", "aria-label": say("inside.landscape") }, h("div", { class: "woven" }, curves, threads, list));
  const chart = bars(run.classes, { label: say("try.bars"), most: 10 });
  const apart = h("p", { class: "soft small", role: "status" });
  const legend = h("p", { class: "soft small" }, say("inside.shortcuts"));
  const columns = new Map();
  const picture = h("img", { class: "pixels", alt: say("inside.input.alt") });
  let shown = { ref: "", off: "", extra: {} }, every = run.layers.length <= MANY, threading = 0, spans = [];

  function column(layer, inside) {
    const head = h("button", { class: "head", onclick: () => choose(layer.name, "") }, // the strongest of it
      h("strong", {}, kindOf(layer.kind)), h("span", {}, sizeOf(layer)), junctionOf(layer) ? h("span", { class: "unseen" }, joined(junctionOf(layer))) : "");
    const item = h("li", { class: `layer ${layer.kind}${layer.output.length < 3 ? " narrow" : ""}`, data: { name: layer.name }, title: layer.name }, head, inside);
    return { layer, item, head };
  }

  // Whose input it is that the network's own code put together: the layer's, or that of one before it which is not shown
  function junctionOf(layer) {
    if (!layer || layer.joins) return layer;
    return layer.from?.length === 1 && !columns.has(layer.from[0]) ? junctionOf(run.layers.find((each) => each.name === layer.from[0])) : null;
  }

  // What was put together, in words
  function joined({ joins: { how, of } }) {
    const parts = of.map(([name, part]) => say(`inside.part.${part}`, { layer: name === "input" ? kindOf("Input") : `${kindOf(run.layers.find((each) => each.name === name).kind)} ${name}` }));
    return say(`inside.joined.${parts.length > 1 ? how : "same"}`, { parts: parts.join(say("inside.and")) });
  }

  function bend() {
    weave(curves, spans, [...columns.values()].map(({ item }) => item.offsetLeft + item.offsetWidth));
    emphasise();
  }

  function emphasise() {
    const here = [shown.layer, junctionOf(columns.get(shown.layer)?.layer)?.name];
    for (const curve of curves.children) curve.classList.toggle("near", here.includes(curve.dataset.to) || curve.dataset.from === shown.layer);
  }

  // The place of a layer's maps, as large as they will be; they are made when it comes into view
  function slotsOf(layer) {
    const [height = 1, width = 1] = layer.output.length === 3 ? layer.output.slice(1) : [];
    const unit = layer.output.length < 3;
    const px = unit ? UNIT : Math.max(UNIT, Math.round(LARGEST * Math.sqrt(Math.max(height, width) / side)));
    const count = Math.min(layer.channels, unit ? UNITS : SHOWN);
    const gap = unit ? 4 : 6;
    const across = Math.ceil(count / Math.floor(HEIGHT / (px + gap))), down = Math.ceil(count / across);
    const box = h("div", { class: `maps${unit ? " units" : ""}`, role: "group", "aria-label": say("inside.maps", { kind: kindOf(layer.kind), size: sizeOf(layer) }) });
    box.style.gridTemplateRows = `repeat(${down}, auto)`;
    box.style.setProperty("--px", `${px}px`);
    box.style.width = `${across * (px + gap) - gap}px`;
    box.style.minHeight = `${down * (px * (unit ? 1 : height / width) + gap) - gap}px`;
    const make = () => Array.from({ length: count }, (_, k) => {
      const image = unit ? null : h("img", { class: "pixels", alt: "", decoding: "sync" }); // else it would go out while the next is decoded
      const button = h("button", { class: unit ? "map unit" : "map", "aria-pressed": "false", tabindex: k ? -1 : 0, onclick: () => button.dataset.channel && choose(layer.name, Number(button.dataset.channel)) }, image);
      if (!unit) button.style.aspectRatio = `${width} / ${height}`;
      box.append(button);
      return { button, image };
    });
    const rest = layer.channels - count;
    const pager = rest > 0 ? h("button", { class: "more plain", "aria-label": say("inside.more.alt", { count: rest }), title: say("inside.more.alt", { count: rest }), onclick: () => more(layer.name) }, say("inside.more", { count: rest })) : null;
    return { box: h("div", {}, box, pager), make, unit };
  }

  async function fill(entry) {
    const { ref, off, base, extra } = shown, key = `${ref} ${off} ${extra.epoch ?? ""} ${extra.stamp ?? ""}`;
    if (!ref || entry.filled === key) return;
    entry.filled = key;
    const { layer, slots, unit } = entry;
    let found;
    try {
      found = await ask("maps", { ref, off, layer: layer.name, from: 0, count: slots.length, ...extra });
    } catch (trouble) {
      if (entry.filled !== key) return;
      entry.filled = ""; // to be asked for again
      failed(trouble);
      return;
    }
    if (entry.filled !== key) return; // another picture came in between
    const bytes = bytesOf(found.data), [height, width] = found.size, size = height * width;
    // while channels are switched on and off each keeps its place
    const steady = base.layers.find((each) => each.name === layer.name)?.order ?? [];
    let order = found.channels.map((channel, i) => [channel, i]);
    if (steady.length >= found.channels.length && found.channels.every((channel) => steady.slice(0, slots.length).includes(channel))) {
      order = order.sort((a, b) => steady.indexOf(a[0]) - steady.indexOf(b[0]));
    }
    const silent = new Set(readOff(off)[layer.name.split("#")[0]] ?? []);
    const ranked = shown.look.layers.find((each) => each.name === layer.name);
    const scores = new Map(ranked?.order.map((channel, i) => [channel, ranked.scores[i]]));
    const extent = Math.max(Math.abs(found.low), Math.abs(found.high), 1e-12);
    order.forEach(([channel, i], k) => {
      const { button, image } = slots[k];
      button.dataset.channel = channel;
      button.classList.toggle("off", silent.has(channel));
      const score = scores.get(channel);
      button.setAttribute("aria-label", say("inside.channel.alt", { channel, effect: score === undefined ? "?" : number(score, 2) }) + (silent.has(channel) ? `, ${say("off")}` : ""));
      button.title = say("inside.channel.title", { channel, effect: score === undefined ? "?" : number(score, 2) });
      if (unit) {
        const value = found.low + (bytes[i * size] / 255) * (found.high - found.low);
        button.style.backgroundColor = colour(value / extent);
      } else {
        image.src = depicted(bytes.subarray(i * size, (i + 1) * size), height, width, found.low, found.high);
      }
    });
    press();
  }

  function press() {
    for (const { layer, slots, item, head } of columns.values()) {
      const here = layer.name === shown.layer;
      item.classList.toggle("chosen", here);
      head.setAttribute("aria-pressed", String(here));
      slots?.forEach(({ button }) => button.setAttribute("aria-pressed", String(here && button.dataset.channel === String(shown.channel))));
    }
    emphasise();
    cancelAnimationFrame(threading);
    threading = requestAnimationFrame(thread);
  }

  // The columns whose very numbers a layer was given; layers that are not shown go number by number
  function givers(layer) {
    return (layer?.from ?? []).flatMap((name) => columns.get(name) ?? givers(run.layers.find((each) => each.name === name)));
  }

  // Threads from what the chosen map was made of: all maps before for what sums over them, or those of its group, else the
  // same channel's. Where the network's own code lies in between there is none, and that is said.
  function thread() {
    const entry = columns.get(shown.layer), before = givers(entry?.layer);
    threads.replaceChildren();
    const junction = junctionOf(entry?.layer), unsaid = entry && !before.length && !["input", "softmax"].includes(shown.layer);
    apart.textContent = junction ? joined(junction) : unsaid ? say("inside.apart") : "";
    const to = entry?.slots?.find(({ button }) => button.dataset.channel === String(shown.channel))?.button;
    if (!to || entry.layer.kind === "Flatten") return;
    const { kind, groups, input, channels } = entry.layer, sums = /conv|linear/i.test(kind);
    const read = (channel) => groups === 1 || Math.floor(channel / (input[0] / groups)) === Math.floor(shown.channel / (channels / groups));
    const ends = before.flatMap(({ item }) => {
      const all = [...item.querySelectorAll(".map")];
      return all.filter((button) => all.length === 1 || (sums ? read(Number(button.dataset.channel)) : button.dataset.channel === String(shown.channel)));
    });
    const origin = list.getBoundingClientRect(), end = to.getBoundingClientRect();
    threads.replaceChildren(...ends.map((button) => {
      const box = button.getBoundingClientRect();
      const [x0, y0, x1, y1] = [box.right - origin.left, box.top + box.height / 2 - origin.top, end.left - origin.left, end.top + end.height / 2 - origin.top];
      const middle = (x0 + x1) / 2;
      return s("path", { d: `M${x0} ${y0}C${middle} ${y0} ${middle} ${y1} ${x1} ${y1}` });
    }));
  }

  const watch = new IntersectionObserver((entries) => entries.forEach((entry) => {
    const column_ = columns.get(entry.target.dataset.name);
    column_.near = entry.isIntersecting;
    entry.target.classList.toggle("far", !entry.isIntersecting); // thousands of maps out of sight are not painted
    if (!entry.isIntersecting) return;
    column_.slots ??= column_.make();
    fill(column_);
  }), { root: scroller, rootMargin: "0px 400px" });

  function build() {
    columns.clear();
    watch.disconnect();
    const layers = run.layers.filter((layer) => every || !minor(layer));
    const first = column({ name: "input", kind: "Input", output: [run.input.channels, ...run.input.size] },
      h("button", { class: "map picture", "aria-label": say("inside.input.alt"), onclick: () => choose("input", 0) }, picture));
    columns.set("input", first);
    for (const layer of layers) {
      const { box, make, unit } = slotsOf(layer);
      columns.set(layer.name, { ...column(layer, box), make, unit, slots: null });
    }
    const last = column({ name: "softmax", kind: "Softmax", output: [run.classes.length] }, h("div", { class: "answer" }, chart.element));
    columns.set("softmax", last);
    list.replaceChildren(...[...columns.values()].map((each) => each.item));
    for (const each of columns.values()) if (each.make) watch.observe(each.item);
    let columns_ = 0; // on the left of each gap, besides the picture
    spans = stacked(far, [0, ...run.layers.map(({ name }) => columns_ += columns.has(name))]);
    scroller.style.setProperty("--lane", `${heightOf(spans)}px`);
  }

  // Arrow keys: up and down within a layer, left and right to the next one
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: [0, 1], ArrowUp: [0, -1], ArrowRight: [1, 0], ArrowLeft: [-1, 0] }[event.key];
    if (!step || !event.target.classList.contains("map")) return;
    event.preventDefault();
    const own = (item) => [...item.querySelectorAll("button.map")];
    const item = event.target.closest(".layer");
    const at = own(item).indexOf(event.target);
    let to = own(item)[at + step[1]];
    if (step[0]) {
      let next = item;
      do { next = step[0] > 0 ? next.nextElementSibling : next.previousElementSibling; } while (next && !own(next).length);
      to = next && own(next)[Math.min(at, own(next).length - 1)];
    }
    to?.focus();
  });

  const placed = new ResizeObserver(() => requestAnimationFrame(bend)); // once the columns have their places, and new ones
  if (far.length) placed.observe(list);
  build();
  const check = h("input", { type: "checkbox", onchange: () => all(check.checked) });
  const switcher = run.layers.length > MANY ? h("label", { class: "check" }, check, h("span", {}, say("inside.every", { count: run.layers.length }))) : null;

  function spread(whole) { // whether minor layers are shown, too
    check.checked = whole;
    if (every === (whole || run.layers.length <= MANY)) return;
    every = !every;
    build();
    if (shown.ref) show({ ...shown, layer: "" }); // whose place is another now
  }

  // { ref, off, look, base: the look with every channel on, layer, channel }
  function show(now) {
    if (now.layer !== shown.layer) reveal(now.layer); // it asks where things are: before anything is changed, which would have to be laid out for it
    const anew = now.look !== shown.look;
    shown = now;
    if (anew) {
      const source = pictureOf(now.ref, run_index);
      if (!picture.src.endsWith(source)) picture.src = source;
      chart.show(now.look.probabilities, now.off ? now.base.probabilities : null);
    }
    for (const entry of columns.values()) if (entry.near && entry.slots) fill(entry);
    press();
  }

  function reveal(name) {
    const item = columns.get(name)?.item;
    if (!item || name === "softmax") return;
    const last = columns.get("softmax").item, kept = getComputedStyle(last).position === "sticky" ? last.clientWidth : 0;
    const wide = scroller.clientWidth - kept; // what the answer at the right edge does not cover
    if (item.offsetLeft < scroller.scrollLeft || item.offsetLeft + item.clientWidth > scroller.scrollLeft + wide) scroller.scrollLeft = item.offsetLeft - wide / 2 + item.clientWidth / 2;
  }

  return { element: h("div", { class: "landscape" }, scroller, far.length ? legend : "", apart, switcher), show, spread, close: () => { watch.disconnect(); placed.disconnect(); } };
}
