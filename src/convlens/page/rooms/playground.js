// Playground: one window over any picture, every number of it a slider; all is computed here in the browser.

import { ask, blobOf, pictureOf, Problem } from "../fetching.js";
import { extentOf, colour, ink, paint } from "../drawing/colours.js";
import { h, keeping, number, within } from "../drawing/elements.js";
import { CLASSIC, formula, receptive, slide } from "../drawing/windows.js";
import { addressOf, change, state } from "../state.js";
import { say } from "../words.js";

const LONGEST = 160; // pixels of a picture's longer side: a slider answers at once
const OPERATIONS = ["convolution", "max", "mean"];
const SLIDERS = { kernel: [1, 7, 3, 1], stride: [1, 4, 1, 1], padding: [0, 4, 1, 1], dilation: [1, 4, 1, 1] };

export function enter(place, params) {
  const index = Number(params.run || 0), run = state.runs[index] ?? state.runs[0];
  let planes = null, own = null, learned = [], loaded = "";
  const before = h("canvas", { class: "pixels" }), after = h("canvas", { class: "pixels" });
  const beforeSize = h("p", { class: "caption" }), afterSize = h("p", { class: "caption" });
  const grid = h("div", { class: "weights" }), sums = h("div", { class: "formula" }), problem = h("div", {});
  const sliders = {}, outputs = {};
  // As torch has them: its mean pooling has no dilation, and no pooling pads by more than half its kernel.
  function settings(given) {
    const op = OPERATIONS.includes(given.op) ? given.op : OPERATIONS[0], whole = (name) => {
      const [low, high, usual] = SLIDERS[name], value = Number(given[name] || NaN);
      return Number.isInteger(value) || given[name] === "0" ? Math.min(Math.max(Number(given[name]), low), high) : usual;
    };
    const kernel = whole("kernel"), most = op === "convolution" ? SLIDERS.padding[1] : Math.floor(kernel / 2);
    const numbers = (given.weights ?? "").split(",").map(Number), typed = given.weights && numbers.length === kernel ** 2 && numbers.every(Number.isFinite);
    return { op, preset: fits(given.preset || "edge", kernel), kernel, stride: whole("stride"), padding: Math.min(whole("padding"), most), most,
      dilation: op === "mean" ? 1 : whole("dilation"), weights: typed ? Array.from({ length: kernel }, (_, i) => numbers.slice(i * kernel, (i + 1) * kernel)) : null };
  }

  for (const [name, [low, high, value, step]] of Object.entries(SLIDERS)) {
    outputs[name] = h("output", { for: `s-${name}` });
    sliders[name] = h("input", { type: "range", id: `s-${name}`, min: low, max: high, step, value, oninput: () => {
      change({ [name]: sliders[name].value, ...(name === "kernel" ? { weights: "", preset: fits(state.params.preset || "edge", Number(sliders[name].value)) } : {}) }, true);
    } });
  }
  const fits = (preset, k) => ((sizeOf(preset) ?? k) === k ? preset : "blur");
  const operations = OPERATIONS.map((op) => h("button", { data: { op }, onclick: () => change({ op }) }, say(`play.${op}`)));
  const presets = h("div", { class: "presets" });
  const file = h("input", { type: "file", accept: "image/*", class: "unseen", tabindex: -1, "aria-hidden": "true", onchange: () => { own = file.files[0]; file.value = ""; loaded = ""; show(state.params); } });

  place.append(h("div", { class: "lead" }, h("h1", {}, say("play.title")), h("p", {}, say("play.lead"))),
    h("div", { class: "playing" },
      h("section", { class: "card", "aria-label": say("play.window") }, h("h2", {}, say("play.window")),
        h("div", { class: "row segmented", role: "group", "aria-label": say("play.window") }, operations),
        ...Object.entries(sliders).map(([name, input]) => h("div", { class: "slider" }, h("label", { for: `s-${name}` }, say(`play.${name}`)), outputs[name], input, h("p", { class: "soft small" }, say(`play.${name}.what`)))),
        h("h3", {}, say("play.weights")), presets, grid, h("p", { class: "soft small" }, say("play.weights.what"))),
      h("section", { class: "card", "aria-label": say("play.pictures") },
        h("div", { class: "row" }, h("h2", {}, say("play.pictures")),
          h("div", { class: "row" },
            h("button", { onclick: () => { own = null; change({ ref: `test:${Math.floor(Math.random() * (run.splits.test ?? 1))}` }); } }, say("inside.any")),
            h("button", { onclick: () => file.click() }, say("try.file")), file)),
        problem,
        h("div", { class: "pair" },
          h("figure", {}, h("div", { class: "shown" }, before), beforeSize),
          h("figure", {}, h("div", { class: "shown" }, after), afterSize)),
        sums)));

  const presetNames = () => [...Object.keys(CLASSIC).filter((name) => name !== "sepia" || planes.channels.length === 3), ...learned.map((_, i) => `learned${i}`)];
  const sizeOf = (name) => (name.startsWith("learned") ? learned[Number(name.slice(7))]?.length : CLASSIC[name]?.length); // undefined: any

  async function load(now) {
    const ref = own ? "own" : now.ref || "test:0";
    if (ref === loaded) return;
    if (!own && !ref.startsWith("up:") && run.data === false) throw new Problem(say("try.nodata", { dataset: run.dataset }));
    const image = new Image();
    image.src = URL.createObjectURL(own ?? await blobOf(pictureOf(ref, index)));
    await image.decode().catch(() => { throw new Problem(say("play.nopicture")); });
    URL.revokeObjectURL(image.src);
    const scale = Math.min(1, LONGEST / Math.max(image.naturalWidth, image.naturalHeight));
    const [width, height] = [image.naturalWidth, image.naturalHeight].map((side) => Math.max(Math.round(side * scale), 1));
    const canvas = h("canvas");
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, width, height);
    const { data } = context.getImageData(0, 0, width, height);
    const gray = data.every((_, i) => i % 4 || (data[i] === data[i + 1] && data[i] === data[i + 2]));
    planes = { height, width, channels: (gray ? [0] : [0, 1, 2]).map((c) => Float32Array.from({ length: height * width }, (_, i) => data[4 * i + c] / 255)) };
    before.width = width;
    before.height = height;
    before.getContext("2d").drawImage(canvas, 0, 0);
    loaded = ref;
  }

  function drawWeights(now, set) {
    const k = now.kernel;
    grid.hidden = now.op !== "convolution";
    presets.hidden = now.op !== "convolution";
    keeping(presets, () => presets.replaceChildren(...presetNames().map((name) => h("button", { "aria-pressed": String(name === now.preset && !now.weights), data: { keep: name },
      onclick: () => change({ preset: name, kernel: sizeOf(name) ?? k, weights: "" }) },
      name.startsWith("learned") ? say("play.learned", { channel: name.slice(7) }) : say(`play.${name}`)))));
    if (now.op !== "convolution" || now.preset === "sepia") { grid.hidden = true; return; }
    const extent = extentOf(set.flat());
    if (grid.childElementCount !== k * k) {
      grid.style.gridTemplateColumns = `repeat(${k}, 1fr)`;
      grid.replaceChildren(...Array.from({ length: k * k }, (_, i) => h("input", { type: "number", step: 0.1, "aria-label": say("play.weight", { row: Math.floor(i / k), column: i % k }),
        oninput: (event) => change({ weights: kernelOf(settings(state.params)).flat().map((value, j) => Number((j === i ? Number(event.target.value) || 0 : value).toFixed(4))).join() }, true) })));
    }
    set.flat().forEach((value, i) => {
      const cell = grid.children[i];
      if (document.activeElement !== cell) cell.value = Number(value.toFixed(3));
      cell.style.backgroundColor = colour(value / extent);
      cell.style.color = ink(value / extent);
    });
  }

  const kernelOf = (now) => {
    if (now.weights) return now.weights;
    if (now.preset.startsWith("learned")) return learned[Number(now.preset.slice(7))] ?? Array.from({ length: now.kernel }, () => Array(now.kernel).fill(0));
    const classic = CLASSIC[now.preset];
    return classic ?? Array.from({ length: now.kernel }, () => Array(now.kernel).fill(1 / now.kernel ** 2));
  };

  function compute(now) {
    if (!planes) return;
    const { height, width, channels } = planes, set = kernelOf(now);
    drawWeights(now, set);
    const out = slide(planes, { ...now, weights: set });
    if (!out) {
      sums.replaceChildren(h("p", { class: "problem" }, say("play.toosmall")));
      after.width = after.height = 1;
      afterSize.textContent = "";
    } else {
      after.width = out.width;
      after.height = out.height;
      const signed = now.op === "convolution" && now.preset !== "sepia" && out.channels.some((plane) => plane.some((value) => value < -0.02));
      if (signed) {
        const sum = Float32Array.from(out.channels[0], (_, i) => out.channels.reduce((all, plane) => all + plane[i], 0));
        paint(after, sum, out.height, out.width, extentOf(sum));
      } else {
        const context = after.getContext("2d"), image = context.createImageData(out.width, out.height);
        for (let i = 0; i < out.height * out.width; i++) {
          for (let c = 0; c < 3; c++) image.data[4 * i + c] = 255 * (out.channels[Math.min(c, out.channels.length - 1)][i]);
          image.data[4 * i + 3] = 255;
        }
        context.putImageData(image, 0, 0);
      }
      afterSize.textContent = say(signed ? "play.after.signed" : "play.after", { size: `${out.height} × ${out.width}` });
      const step = { kernel: now.kernel, stride: now.stride, dilation: now.dilation };
      const fields = receptive([step, step, step]);
      sums.replaceChildren(h("h3", {}, say("formula.title")),
        h("p", {}, h("code", {}, `${say("formula.height")} = ${formula(height, now)} = ${out.height}`)),
        height !== width ? h("p", {}, h("code", {}, `${say("formula.width")} = ${formula(width, now)} = ${out.width}`)) : "",
        h("p", { class: "soft small" }, say("formula.what", { n: height, k: now.kernel, s: now.stride, p: now.padding }), now.dilation > 1 ? ` ${say("formula.dilation", { d: now.dilation })}` : ""),
        h("h3", {}, say("play.field")), h("p", {}, say("play.field.what", { one: fields[0], two: fields[1], three: fields[2] })));
    }
    beforeSize.textContent = say("play.before", { size: `${height} × ${width}` });
    for (const [canvas, size] of [[before, [height, width]], [after, [out?.height ?? 1, out?.width ?? 1]]]) { // to scale: a smaller map is smaller
      canvas.style.width = `${(100 * size[1]) / Math.max(height, width, out?.height ?? 0, out?.width ?? 0)}%`;
    }
  }

  async function show(given) {
    const now = settings(given);
    for (const [name, input] of Object.entries(sliders)) {
      input.max = name === "padding" ? now.most : SLIDERS[name][1];
      input.value = now[name];
      outputs[name].textContent = now[name];
      input.disabled = (name === "dilation" && now.op === "mean") || (name === "padding" && !now.most);
    }
    operations.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.op === now.op)));
    await within(problem, async () => {
      await load(given);
      problem.replaceChildren();
      compute(now);
    });
  }

  show(params);
  const first = run.layers.find((layer) => layer.kind === "Conv2d");
  if (first) ask("filters", { layer: first.name, ...(index ? { run: index } : {}) }).then((found) => { // a colour network's three slices as their mean
    const [tall, wide] = [found.weights[0][0].length, found.weights[0][0][0].length];
    if (tall !== wide || tall > SLIDERS.kernel[1]) return; // no slider reaches it
    learned = found.weights.slice(0, 6).map((slices) => slices[0].map((row, i) => row.map((_, j) => slices.reduce((sum, slice) => sum + slice[i][j], 0) / slices.length)));
    show(state.params);
  }).catch(() => {});
  return { show };
}
