// The operation behind one map: what went in, what it was multiplied by, what came out; and the arithmetic of the one
// number under the pointer, as the server did it.

import { ask, floatsOf, latest } from "../fetching.js";
import { extentOf } from "./colours.js";
import { announce, calm, h, number, percent, within } from "./elements.js";
import { grid, shares } from "./grids.js";
import { sheet } from "./sheet.js";
import { scatter } from "./scatter.js";
import { softmax } from "./softmax.js";
import { stage } from "./stage.js";
import { change, readOff, toggled } from "../state.js";
import { kindOf, explain, say } from "../words.js";

const SWEEP = [2500, 7000, 14]; // milliseconds: shortest, longest, and for each number
const pair = (text, fallback) => { const parts = String(text || fallback).split("x").map(Number); return [parts[0], parts[1] ?? parts[0]]; };
const WINDOWS = ["convolution", "max", "mean"];

export function operation(place, { run, extra, now, look, base, still, failed }) {
  const layer = now.layer === "input" ? { name: "input", kind: "Input", output: [run.input.channels, ...run.input.size], channels: run.input.channels } :
    now.layer === "softmax" ? { name: "softmax", kind: "Softmax", output: [run.classes.length], channels: run.classes.length } :
    run.layers.find((each) => each.name === now.layer);
  const common = { ref: now.ref, off: now.off, layer: layer.name, ...extra };
  const body = h("div", { class: "body" }), only = latest(), closing = [];
  let point = () => {};

  // what has the keyboard keeps it when the panel is drawn anew
  const held = place.contains(document.activeElement) ? document.activeElement.dataset.keep : "";
  const refocus = () => {
    if (held && !place.contains(document.activeElement)) place.querySelector(`[data-keep="${held}"]`)?.focus({ preventScroll: true });
  };
  place.replaceChildren(...heading(), ...(layer.channels > 16 && layer.name !== "softmax" ? [sheet({ layer, common, now, closed: closing })] : []), body);
  const kind = layer.kind === "Softmax" ? drawSoftmax() : layer.kind === "Input" ? drawInput() : drawLayer();
  refocus();
  within(body, () => kind.then(refocus).catch(refused));
  return { point: (to) => point(to), close: () => closing.forEach((close) => close()) };

  function refused(trouble) { // a network that is gone: it is not this number alone that cannot be told
    if (trouble.status !== 409) throw trouble;
    failed(trouble);
  }

  function heading() {
    const ranked = base.layers.find((each) => each.name === layer.name);
    const effect = ranked?.scores[ranked.order.indexOf(now.channel)];
    const silent = (readOff(now.off)[layer.name.split("#")[0]] ?? []).includes(now.channel);
    const real = !["input", "softmax"].includes(layer.name);
    const predicted = base.predicted;
    const power = real ? h("button", { class: "power", role: "switch", data: { keep: "power" }, "aria-checked": String(!silent),
      onclick: () => change({ off: toggled(now.off, layer.name.split("#")[0], now.channel) }) },
      h("span", { class: "knob", "aria-hidden": "true" }), say(layer.output.length === 3 ? (silent ? "inside.isoff" : "inside.ison") : silent ? "inside.unitoff" : "inside.uniton", { channel: now.channel })) : null;
    return [
      h("div", { class: "title" }, h("h2", {}, kindOf(layer.kind), real ? h("code", {}, layer.name) : ""),
        real ? h("p", { class: "soft" }, say(layer.output.length === 3 ? "inside.which" : "inside.unit", { channel: now.channel, count: layer.channels })) : ""),
      h("p", { class: "explained" }, explain(layer.kind)),
      real ? h("div", { class: "facts" }, power,
        effect === undefined ? "" : h("p", {}, say("inside.effect", { effect: number(effect, 2), label: run.classes[predicted] })),
        now.off ? h("p", {}, say("inside.moved", { label: run.classes[predicted], z0: number(base.logits[predicted], 2), z1: number(look.logits[predicted], 2), before: percent(base.probabilities[predicted]), after: percent(look.probabilities[predicted]) })) : "",
      ) : "",
    ];
  }

  async function values(side, channel) {
    const found = await ask("values", { ...common, channel, ...(side ? { side } : {}) });
    return { data: floatsOf(found.data), size: found.size };
  }
  function numberAt(row, column, from = now.in) { return ask("number", { ...common, channel: now.channel, row, column, in: from }); }

  function facts() {
    const rows = [];
    const add = (name, value) => { if (value) rows.push(h("div", {}, h("dt", {}, name), h("dd", {}, value))); };
    add(say("fact.in"), layer.input?.join(" × "));
    add(say("fact.out"), layer.output.join(" × "));
    add(say("fact.parameters"), layer.parameters ? layer.parameters.toLocaleString("en-US") : "");
    add(say("fact.macs"), layer.macs ? layer.macs.toLocaleString("en-US") : "");
    add(say("fact.field"), layer.receptive_field && Math.max(...layer.receptive_field) > 1 ? layer.receptive_field.join(" × ") : "");
    return h("dl", { class: "about" }, rows);
  }

  function sizes() {
    if (!layer.formula) return "";
    const wide = layer.formula_width && layer.formula_width !== layer.formula;
    const [k, st, p, d] = [layer.kernel, layer.stride, layer.padding, layer.dilation];
    return h("div", { class: "formula" }, h("h3", {}, say("formula.title")),
      h("p", {}, h("code", {}, `${say("formula.height")} = ${pretty(layer.formula)}`)),
      wide ? h("p", {}, h("code", {}, `${say("formula.width")} = ${pretty(layer.formula_width)}`)) : "",
      h("p", { class: "soft small" }, say("formula.what", { n: layer.input?.[1] ?? "n", k, s: st, p: p || 0 }), d && d !== "1" ? ` ${say("formula.dilation", { d })}` : ""));
  }

  async function drawLayer() {
    const peek = layer.output.length === 3 ? await values("", now.channel) : null;
    let [row, column] = [Number(now.row || 0), Number(now.column || 0)];
    if (peek && (now.row === undefined || now.row === "")) [row, column] = strongest(peek);
    let found;
    try {
      found = await only(numberAt(row, column));
    } catch (problem) {
      if (problem.status === 409) throw problem;
      body.replaceChildren(h("p", { class: "soft" }, problem.message), facts());
      return;
    }
    if (WINDOWS.includes(found.kind)) await drawWindow(found, peek, row, column);
    else if (found.kind === "linear") drawLinear(found);
    else if (found.kind === "move") drawMove(found);
    else await drawPoint(found, peek, row, column);
  }

  // Convolution and pooling: a window slides over what went in
  async function drawWindow(first, output, startRow, startColumn) {
    const [, height = 1, width = 1] = layer.output, [, inHeight, inWidth] = layer.input; // the mean of a whole map is one number
    output ??= await values("", now.channel);
    const [kh, kw] = [first.shape[1], first.shape[2]];
    const stride = pair(layer.stride, 1), padding = pair(layer.padding, 0), dilation = pair(layer.dilation, 1);
    const conv = first.kind === "convolution", adaptive = !layer.stride;
    let found = first, at = [startRow, startColumn], playing = 0;
    const loud = (number_) => number_.shares.map(Math.abs).indexOf(Math.max(...number_.shares.map(Math.abs)));
    let slice = !conv ? 0 : now.in !== undefined && now.in !== "" ? found.channels.indexOf(Number(now.in)) : Math.max(loud(found), 0);
    const from = found.channels[slice]; // the server tells it with every number, also where many others add more
    let input = await values("input", from);
    let inExtent = extentOf(input.data);
    const outExtent = extentOf(output.data);

    const into = stage({ height: inHeight, width: inWidth, pad: padding.map(Math.ceil), label: say("window.in.alt"),
      onpixel: (row, column, held) => { // the output number whose window is centred there
        const to = (place_, side, k, st, p, most) => Math.min(Math.max(Math.round((place_ + p - (k - 1) / 2) / st), 0), most - 1);
        if (adaptive) return;
        stop(); settle(to(row, 0, kh * dilation[0] - dilation[0] + 1, stride[0], padding[0], height), to(column, 1, kw * dilation[1] - dilation[1] + 1, stride[1], padding[1], width), held).catch(failed);
      } });
    const out = stage({ height, width, label: say("window.out.alt", { size: `${height} × ${width}` }),
      onpixel: (row, column, held) => { stop(); settle(row, column, held).catch(failed); } });
    const inCaption = h("p", { class: "caption" }), outCaption = h("p", { class: "caption" });
    const patch = grid({ caption: say("window.patch") }), kernel = grid({ caption: say("window.kernel") }), product = grid({ caption: say("window.products") });
    const total = h("div", { class: "total", "aria-live": "off" }), adding = h("div", { class: "adding" });
    const play = h("button", { class: "play", onclick: () => (playing ? stop() : sweep()) }, say("window.play"));

    const corner = (row, column) => adaptive ? found.corner : [row * stride[0] - Math.floor(padding[0]), column * stride[1] - Math.floor(padding[1])];

    function place_(row, column) {
      at = [row, column];
      into.window(...corner(row, column), kh, kw, dilation);
      out.window(row, column);
    }

    const mode = conv ? layer.padding_mode || "zeros" : first.kind === "max" ? "none" : "zeros";
    const beyond = { reflect: (i, n) => (i < 0 ? -i : i >= n ? 2 * (n - 1) - i : i), circular: (i, n) => (i + n) % n,
      replicate: (i, n) => Math.min(Math.max(i, 0), n - 1) }[mode] ?? ((i) => i);

    function localPatch(row, column) { // one channel's, while the window slides
      const [top, left] = corner(row, column);
      return Array.from({ length: kh }, (_, i) => Array.from({ length: kw }, (_, j) => {
        const [y, x] = [beyond(top + i * dilation[0], inHeight), beyond(left + j * dilation[1], inWidth)];
        return y >= 0 && x >= 0 && y < inHeight && x < inWidth ? input.data[y * inWidth + x] : conv || first.kind === "mean" ? 0 : null;
      }));
    }

    function grids(rows) {
      const weights = found.weights?.[slice];
      patch.show(rows, { extent: inExtent, mark: first.kind === "max" ? rows.flat().indexOf(Math.max(...rows.flat().filter((value) => value !== null))) : null });
      if (conv) {
        kernel.show(weights);
        product.show(rows.map((row, i) => row.map((value, j) => value * weights[i][j])), { extent: inExtent * extentOf(weights.flat()) });
      }
    }

    function sums() {
      const value = found.value;
      if (conv) {
        const own = found.shares[slice];
        const many = first.shape[0];
        const order = found.channels.map((channel, i) => ({ name: say("channel", { channel }), value: found.shares[i], i, chosen: i === slice, channel }))
          .sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
        const sum = found.shares.reduce((a, b) => a + b, 0) + (found.rest || 0);
        const told = order.slice(0, 8);
        if (!told.some((each) => each.chosen)) told.push(order.find((each) => each.chosen));
        const left = first.shape[0] - told.length, rest = sum - told.reduce((all, each) => all + each.value, 0);
        adding.replaceChildren(...(many > 1 ? [h("h3", {}, say("window.channels", { count: first.shape[0] })),
          shares([...told.map((each) => ({ ...each, pick: () => change({ in: each.channel, row: at[0], column: at[1] }, true) })),
            ...(left ? [{ name: say("window.rest", { count: left }), value: rest }] : [])],
          { label: say("window.channels", { count: first.shape[0] }) })] : []));
        total.replaceChildren(
          ...(many > 1 ? [term(own, say("window.thissum"), 3, "quiet"), h("span", { class: "op" }, "→")] : []),
          term(sum, say("window.sum"), 4), h("span", { class: "op" }, "+"), term(found.bias, say("window.bias"), 4), h("span", { class: "op" }, "="), term(value, say("window.value"), 4, "result"));
      } else if (first.kind === "max") {
        total.replaceChildren(h("span", { class: "op" }, say("window.max")), h("span", { class: "op" }, "="), term(value, say("window.value"), 4, "result"));
      } else {
        const all = found.inputs.flat(2), weight = found.weights.flat(2)[0];
        total.replaceChildren(term(all.reduce((a, b) => a + b, 0), say("window.sum"), 4), h("span", { class: "op" }, "÷"), term(1 / weight, say("window.count"), 0),
          h("span", { class: "op" }, "="), term(value, say("window.value"), 4, "result"));
      }
      if (found.off) total.append(h("span", { class: "soft" }, say("inside.silenced")));
      total.dataset.value = found.off ? 0 : value;
    }

    async function settle(row, column, held) {
      place_(row, column);
      outCaption.textContent = say("window.at", { row, column, value: number(output.data[row * width + column], 4) });
      if (held) change({ row, column }, true);
      found = await only(numberAt(row, column, conv ? from : ""));
      if (conv) slice = found.channels.indexOf(from);
      if (adaptive) into.window(...found.corner, found.shape[1], found.shape[2]);
      grids(found.inputs[slice]);
      sums();
      if (held) announce(say("window.said", { row, column, value: number(found.value, 4) }));
    }

    function sweep() {
      const cells = height * width, lasts = Math.min(Math.max(cells * SWEEP[2], SWEEP[0]), SWEEP[1]);
      const rest = at, begun = performance.now();
      let lastGrid = 0, lastCell = -1;
      play.textContent = say("window.stop");
      for (const each of [adding, total]) each.style.visibility = "hidden"; // they are of the number where it rests
      const frame = (time) => {
        const cell = Math.floor(((time - begun) / lasts) * cells);
        if (cell >= cells) { stop(); settle(...rest).catch(failed); return; }
        if (cell !== lastCell && cell >= 0) {
          lastCell = cell;
          const [row, column] = [Math.floor(cell / width), cell % width];
          place_(row, column);
          out.uncover(row, column);
          if (time - lastGrid > 90) {
            lastGrid = time;
            if (!adaptive) grids(localPatch(row, column));
            outCaption.textContent = say("window.at", { row, column, value: number(output.data[cell], 4) });
          }
        }
        playing = requestAnimationFrame(frame);
      };
      playing = requestAnimationFrame(frame);
    }
    function stop() {
      if (!playing) return;
      cancelAnimationFrame(playing);
      playing = 0;
      out.uncover(null);
      for (const each of [adding, total]) each.style.visibility = "";
      play.textContent = say("window.play");
    }
    closing.push(stop);

    into.paint(input.data, inExtent);
    out.paint(output.data, outExtent);
    const padded = Math.max(...padding) > 0;
    inCaption.textContent = `${say(conv && first.shape[0] > 1 ? "window.in.channel" : "window.in", { channel: from, size: `${inHeight} × ${inWidth}` })}${padded ? ` ${say(`window.padded.${mode}`, { p: layer.padding })}` : ""}`;
    body.replaceChildren(
      h("div", { class: "flow" },
        h("div", { class: "side" }, h("h3", {}, say("window.in.title")), into.element, inCaption),
        h("div", { class: "middle" },
          h("h3", {}, say(`window.${first.kind}.title`)),
          h("div", { class: `sums k${Math.min(Math.max(kh, kw), 12)}` }, patch.element, ...(conv ? [h("span", { class: "op" }, "×"), kernel.element, h("span", { class: "op" }, "="), product.element] : [])),
          adding, total, h("p", { class: "soft small" }, say(`window.${first.kind}.what`))),
        h("div", { class: "side" }, h("h3", {}, say("window.out.title")), out.element, outCaption, play,
          h("p", { class: "soft small" }, say("window.hover")))),
      sizes(), facts());
    point = async (to) => {
      if (to.row !== undefined && to.row !== "" && (Number(to.row) !== at[0] || Number(to.column) !== at[1])) { stop(); await settle(Number(to.row), Number(to.column)).catch(failed); }
    };
    await settle(startRow, startColumn);
    if (!still && !calm() && !adaptive && (now.row === undefined || now.row === "")) sweep();
  }

  function term(value, name, digits, kind_ = "") {
    return h("span", { class: `term ${kind_}` }, h("b", {}, number(value, digits)), h("small", {}, name));
  }

  // Number by number: ReLU, normalisation, batch norm
  async function drawPoint(first, output, startRow, startColumn) {
    const map = layer.output.length === 3;
    const channel = layer.input && layer.input.length === 3 && layer.input[0] === 1 ? 0 : now.channel;
    const input = await values("input", channel);
    const [height, width] = input.size;
    output ??= await values("", now.channel);
    let at = [startRow, startColumn];
    const total = h("div", { class: "total" }), curve = scatter(input.data, output.data, say("point.curve"));
    const into = stage({ height, width, label: say("window.in.alt"), onpixel: (row, column, held) => settle(row, column, held).catch(failed) });
    const out = stage({ height, width, label: say("window.out.alt", { size: `${height} × ${width}` }), onpixel: (row, column, held) => settle(row, column, held).catch(failed) });
    const extent = extentOf(input.data);
    if (layer.kind === "Normalize") into.gray(input.data); else into.paint(input.data, extent);
    out.paint(output.data, layer.kind === "Normalize" ? extentOf(output.data) : Math.max(extentOf(output.data), layer.activation ? extent : 0));

    async function settle(row, column, held) {
      at = [row, column];
      into.window(row, column);
      out.window(row, column);
      if (held) change({ row, column }, true);
      const found = await only(numberAt(row, column));
      curve.at(input.data[row * width + column], output.data[row * width + column]);
      const given = [found.inputs].flat(3)[0], weight = [found.weights].flat(3)[0];
      if (found.kind === "affine") {
        total.replaceChildren(term(given, say("point.in"), 3), h("span", { class: "op" }, "×"), term(weight, say("point.scale"), 5), h("span", { class: "op" }, "+"),
          term(found.bias, say("point.shift"), 4), h("span", { class: "op" }, "="), term(found.value, say("window.value"), 4, "result"));
      } else {
        total.replaceChildren(term(given, say("point.in"), 4), h("span", { class: "op" }, layer.kind === "ReLU" ? "→ max(0, x)" : ""),
          ...(found.off ? [] : [h("span", { class: "op" }, "→"), term(found.value, say("window.value"), 4, "result")]));
      }
      if (found.off) total.append(h("span", { class: "soft" }, say("inside.silenced")));
      total.dataset.value = found.off ? 0 : found.value;
      if (held) announce(say("window.said", { row, column, value: number(found.value, 4) }));
    }
    point = async (to) => { if (to.row !== undefined && to.row !== "" && (Number(to.row) !== at[0] || Number(to.column) !== at[1])) await settle(Number(to.row), Number(to.column)).catch(failed); };
    body.replaceChildren(
      h("div", { class: `flow${map ? "" : " single"}` },
        map ? h("div", { class: "side" }, h("h3", {}, say("point.before")), into.element) : "",
        h("div", { class: "middle" }, h("h3", {}, say("point.title")), total, curve.element, h("p", { class: "soft small" }, say(first.kind === "affine" || layer.activation ? "point.what" : "point.unknown"))),
        map ? h("div", { class: "side" }, h("h3", {}, say("point.after")), out.element, h("p", { class: "soft small" }, say("window.hover"))) : ""),
      facts());
    await settle(startRow, startColumn);
  }

  // Flatten: the same number in another place
  function drawMove(found) {
    const [channels, height, width] = [1, 1, ...layer.input].slice(-3);
    const [row, column] = found.corner;
    body.replaceChildren(h("div", { class: "total" }, h("span", { class: "op" }, say("move.from", { channel: found.first, row, column })), h("span", { class: "op" }, "→"),
      h("span", { class: "op" }, say("move.to", { index: now.channel })), h("span", { class: "op" }, "="), term(found.value, say("window.value"), 4, "result")),
      h("p", {}, h("code", {}, `${found.first} · ${height} · ${width} + ${row} · ${width} + ${column} = ${now.channel}`)),
      h("p", { class: "soft" }, say("move.what", { channels, height, width, count: channels * height * width })), facts());
  }

  // Linear: every input times its weight; the mean of an ensemble: every member's number, all of one weight
  function drawLinear(found) {
    const members = layer.kind === "MeanLogits", [, height, width] = members ? [0, 0, 0] : mapsBefore();
    const own = run.layers.some((each) => each.kind === "MirrorImages") ? layer.input[0] / 2 : layer.input[0];
    const name = (i) => members ? say(i < own ? "linear.member" : "linear.mirrored", { index: i % own }) : height * width > 1 ?
      say("linear.map", { channel: Math.floor(i / (height * width)), row: Math.floor((i % (height * width)) / width), column: i % width }) : say("linear.unit", { index: i });
    const sum = found.strongest.reduce((total, each) => total + each.product, 0) + found.rest;
    const extent = Math.max(...found.strongest.map((each) => Math.abs(each.product)), 1e-12);
    const last = layer.output[0] === run.classes.length && run.layers.at(-1).name === layer.name;
    const told = found.strongest.slice(0, 12);
    const rest = sum - told.reduce((total, each) => total + each.product, 0);
    const inputs = members ? layer.input[0] : layer.input.at(-1);
    body.replaceChildren(
      h("h3", {}, last ? say("linear.class", { label: run.classes[now.channel] }) : say("linear.title", { count: told.length })),
      h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": say("linear.title", { count: told.length }) }, h("table", { class: "connections barred" },
        h("thead", {}, h("tr", {}, ...["linear.from", "linear.input", "linear.weight", "linear.product"].map((key) => h("th", { scope: "col" }, say(key))), h("th", {}, h("span", { class: "unseen" }, say("linear.bar"))))),
        h("tbody", {}, ...told.map((each) => {
          const t = each.product / extent, bar = h("span", { class: `bar ${t < 0 ? "below" : "above"}` });
          bar.style.width = `${Math.abs(t) * 50}%`;
          bar.style.left = t < 0 ? `${50 + t * 50}%` : "50%";
          return h("tr", {}, h("th", { scope: "row" }, name(each.index)), h("td", {}, number(each.input, 3)), h("td", {}, `× ${number(each.weight, 3)}`), h("td", {}, `= ${number(each.product, 3)}`), h("td", {}, h("span", { class: "axis" }, bar)));
        }),
        inputs > told.length ? h("tr", {}, h("th", { scope: "row" }, say("linear.rest", { count: inputs - told.length })), h("td", {}), h("td", {}), h("td", {}, `= ${number(rest, 3)}`), h("td", {})) : ""))),
      h("div", { class: "total", data: { value: found.off ? 0 : found.value } }, term(sum, say("linear.sum", { count: inputs }), 4),
        ...(members ? [] : [h("span", { class: "op" }, "+"), term(found.bias, say("window.bias"), 4)]), h("span", { class: "op" }, "="), term(found.value, say("window.value"), 4, "result"),
        found.off ? h("span", { class: "soft" }, say("inside.silenced")) : ""),
      members ? "" : h("p", { class: "soft small" }, say("linear.what")), facts());
  }

  // The maps whose numbers a linear unit reads: those that it was given, laid out by a Flatten or by the network's own
  // code; where that code lies in between, the last ones before, if it reads as many numbers.
  function mapsBefore() {
    const fits = (shape) => (shape?.length === 3 && shape[0] * shape[1] * shape[2] === layer.input.at(-1) ? shape : null);
    const named = (names) => run.layers.find((each) => each.name === names?.[0]);
    let source = named(layer.from);
    while (source?.activation && source.output.length === 1) source = named(source.from);
    const last = run.layers.slice(0, run.layers.indexOf(layer)).findLast((each) => each.output.length === 3);
    return fits(!source ? last?.output : source.kind === "Flatten" ? source.input : source.output) ?? [0, 0, 0];
  }

  async function drawSoftmax() {
    body.replaceChildren(softmax(run, look, now.channel));
  }

  async function drawInput() {
    const input = await values("", now.channel);
    const [height, width] = input.size, caption = h("p", { class: "caption" });
    const table = grid({ caption: say("input.around") });
    let at = [0, 0];
    const settle = (row, column, held) => {
      at = [row, column];
      into.window(row, column);
      caption.textContent = say("input.at", { row, column, value: Math.round(input.data[row * width + column]) });
      const side = Math.min(9, height, width), [top, left] = [[row, height], [column, width]].map(([to, most]) => Math.min(Math.max(to - 4, 0), most - side));
      table.show(Array.from({ length: side }, (_, i) => Array.from({ length: side }, (_, j) => Math.round(input.data[(top + i) * width + left + j]))),
        { gray: true, mark: (row - top) * side + column - left });
      if (held) { change({ row, column }, true); announce(caption.textContent); }
    };
    const into = stage({ height, width, label: say("window.in.alt"), onpixel: settle });
    into.gray(input.data);
    const channels = run.input.channels === 3 ? h("div", { class: "row" }, ...["red", "green", "blue"].map((name, i) =>
      h("button", { "aria-pressed": String(now.channel === i), onclick: () => change({ channel: i }) }, say(name)))) : "";
    body.replaceChildren(h("div", { class: "flow" }, h("div", { class: "side" }, channels, into.element, caption), h("div", { class: "middle" }, h("p", {}, say("input.what", { size: run.input.size.join(" × "), count: run.input.channels * height * width })), table.element)));
    point = (to) => { if (to.row && (Number(to.row) !== at[0] || Number(to.column) !== at[1])) settle(Number(to.row), Number(to.column)); };
    settle(Number(now.row || Math.floor(height / 2)), Number(now.column || Math.floor(width / 2)));
  }
}

function strongest({ data, size }) {
  let best = 0;
  data.forEach((value, i) => { if (value > data[best]) best = i; });
  return [Math.floor(best / size[1]), best % size[1]];
}

const pretty = (text) => text.replace("floor(", "⌊").replace("ceil(", "⌈").replace(/\) \/ (\d+)\) \+ 1/, text.startsWith("ceil") ? ") / $1⌉ + 1" : ") / $1⌋ + 1").replaceAll(" - ", " − ").replace("px left over", say("formula.left"));
