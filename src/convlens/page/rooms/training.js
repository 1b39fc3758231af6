// Training: the curves, live while the run is trained; what it gets wrong now; its filters as they form; and a slider
// over the epochs whose weights were kept.

import { ask, forget, pictureOf, send } from "../fetching.js";
import { bars } from "../drawing/bars.js";
import { curves } from "../drawing/curves.js";
import { extentOf, paint } from "../drawing/colours.js";
import { announce, count, h, number, percent, within } from "../drawing/elements.js";
import { addressOf, change, setRun, state } from "../state.js";
import { say } from "../words.js";

const spent = (seconds) => (seconds >= 90 ? say("training.minutes", { m: Math.floor(seconds / 60), s: Math.round(seconds % 60) }) : say("training.seconds", { s: seconds.toFixed(seconds < 10 ? 1 : 0) }));

export function enter(place, params) {
  const index = Number(params.run ?? 0), extra = index ? { run: index } : {};
  let run = state.runs[index] ?? state.runs[0], rows = [...run.history], live = !run.finished && run.training, stopping = false, source = null, shown = "";
  const share = (value, axis) => (axis ? `${Number((100 * value).toPrecision(4))} %` : percent(value));
  const loss = curves({ title: say("training.loss"), label: say("training.loss.alt"), log: true, as: (value, axis) => (axis ? String(Number(value.toPrecision(3))) : number(value, 4)) });
  const accuracy = curves({ title: say("training.accuracy"), label: say("training.accuracy.alt"), unit: "%", as: share });
  const rate = curves({ title: say("training.lr"), label: say("training.lr.alt"), as: (value) => (value === 0 ? "0" : value < 0.001 ? value.toExponential(0) : String(Number(value.toPrecision(2)))) });
  const tiles = h("dl", { class: "tiles" }), status = h("p", { class: "status", role: "status" });
  const stop = h("button", { class: "first", hidden: true, onclick: async () => {
    stop.disabled = true;
    await within(problem, async () => {
      await send("training/stop", "", extra);
      problem.replaceChildren();
      stopping = true;
      draw();
    });
    stop.disabled = stopping;
  } }, say("training.stop"));
  const problem = h("div", {}), unanswered = h("div", {}), unlisted = h("div", {}), filters = h("div", { class: "filters-formed" }), gallery = h("ul", { class: "gallery small-gallery" }), wrong = h("p", { class: "soft" });
  const chart = bars(run.classes, { label: say("try.bars") });
  const picture = h("img", { class: "pixels seen-small", alt: say("inside.input.alt") });
  const told = h("output", { for: "epoch" }), slider = h("input", { type: "range", id: "epoch", min: 0, step: 1, value: 0, oninput: () => change({ epoch: run.kept[Number(slider.value)] }, true) });
  const answered = h("div", { class: "with" }, picture, chart.element), total = run.splits.test ?? 0;
  const choose = (place_) => change({ ref: `test:${(place_ + total) % total}` }), chosen = () => { const [split, at] = (state.params.ref ?? "test:0").split(":"); return split === "test" ? Number(at) : 0; };
  const chooser = run.data === false || !total ? [] : [
    h("button", { onclick: () => choose(chosen() - 1), "aria-label": say("inside.previous"), title: say("inside.previous") }, "←"),
    h("button", { onclick: () => choose(chosen() + 1), "aria-label": say("inside.next"), title: say("inside.next") }, "→"),
    h("button", { onclick: () => choose(Math.floor(Math.random() * total)) }, say("inside.any"))];
  const insideLink = h("a", { class: "button" }, say("training.inside"));
  const epochs = h("section", { class: "card", "aria-label": say("training.epochs") },
    h("h2", {}, say("training.epochs")), h("p", { class: "soft" }, say("training.epochs.what")), h("div", { class: "slider wide-slider" }, h("label", { for: "epoch" }, say("training.epoch")), told, slider),
    h("div", { class: "epoch" }, h("div", {}, h("h3", {}, say("training.filters")), filters), h("div", {}, h("h3", {}, say("training.answer")), answered, unanswered, h("div", { class: "row" }, chooser, insideLink)),
      h("div", {}, h("h3", {}, say("training.mistakes")), wrong, unlisted, gallery)));

  place.append(h("div", { class: "lead" }, h("h1", {}, say("training.title")), h("p", {}, say("training.lead"))),
    h("div", { class: "row livebar" }, status, stop), problem, tiles,
    h("section", { class: "card", "aria-label": say("training.curves") }, h("h2", {}, say("training.curves")), h("div", { class: "charts" }, loss.element, accuracy.element, rate.element), h("p", { class: "soft small" }, say("training.curves.what"))),
    epochs);

  const column = (name) => rows.filter((row) => row[name] !== undefined && row[name] !== null).map((row) => [row.epoch, row[name]]);
  function draw() {
    const named = (part, what) => ({ name: say(`training.${part}`), points: column(`${part}_${what}`) });
    for (const [chart_, what] of [[loss, "loss"], [accuracy, "accuracy"]]) chart_.show(["train", "val", "test"].map((part) => named(part, what)), live ? run.epochs : 1);
    rate.show([{ name: say("training.lr.short"), points: column("lr") }], live ? run.epochs : 1);
    const last = rows.at(-1), seconds = rows.reduce((sum, row) => sum + (row.seconds ?? 0), 0);
    const best = rows.map((row) => row.val_accuracy).filter(Number.isFinite);
    const tile = (name, value, more = "") => h("div", {}, h("dt", {}, say(`training.tile.${name}`)), h("dd", {}, value, more ? h("small", {}, more) : ""));
    tiles.replaceChildren(...(last ? [
      tile("epoch", `${last.epoch} / ${live ? run.epochs : last.epoch}`),
      tile("time", spent(seconds)), live && last.epoch < run.epochs ? tile("left", spent((seconds / rows.length) * (run.epochs - last.epoch))) : "",
      last.images_per_second ? tile("speed", count(Math.round(last.images_per_second))) : "",
      best.length ? tile("val", percent(Math.max(...best))) : "",
      run.accuracy !== null ? tile("test", `${(run.accuracy * 100).toFixed(2)} %`) : ""].filter(Boolean) : []));
    status.textContent = live ? say(stopping ? "training.stopping" : "training.live") : run.finished ? say("training.done", { recipe: run.recipe ?? "", epochs: rows.length }) : say("training.unfinished");
    stop.hidden = !live;
  }

  function drawKernels(found) {
    const extent = extentOf(found.weights.flat(3));
    const numbers = found.weights.slice(0, 32).map((slices) => {
      const canvas = h("canvas", { class: "pixels" });
      const [kh, kw] = [slices[0].length, slices[0][0].length];
      if (slices.length === 3) { // as colours around gray
        canvas.width = kw;
        canvas.height = kh;
        const context = canvas.getContext("2d"), image = context.createImageData(kw, kh);
        for (let i = 0; i < kh * kw; i++) {
          for (let c = 0; c < 3; c++) image.data[4 * i + c] = 127.5 + (127.5 * slices[c][Math.floor(i / kw)][i % kw]) / extent;
          image.data[4 * i + 3] = 255;
        }
        context.putImageData(image, 0, 0);
      } else paint(canvas, slices[0].flat(), kh, kw, extent);
      return canvas;
    });
    filters.replaceChildren(...numbers);
  }

  async function drawEpoch(now) {
    const kept = run.kept ?? [];
    slider.closest(".slider").hidden = kept.length < 2;
    slider.max = Math.max(kept.length - 1, 0);
    const at = now.epoch !== undefined && kept.includes(Number(now.epoch)) ? Number(now.epoch) : null;
    slider.value = at === null ? kept.length - 1 : kept.indexOf(at);
    told.textContent = at === null ? say("training.newest") : at === 0 ? say("training.untrained") : String(at);
    if (!rows.length && !kept.length) { epochs.hidden = true; return; }
    epochs.hidden = false;
    const which = `${now.ref ?? ""} ${at} ${rows.length}`;
    if (which === shown) return;
    shown = which;
    for (const each of [loss, accuracy, rate]) each.choose(at || null);
    draw();
    const moment = { ...(at === null ? {} : { epoch: at }), ...extra }, first = run.layers.find((layer) => layer.kind === "Conv2d");
    const ref = now.ref || "test:0";
    await Promise.all([
      first ? within(filters, async () => drawKernels(await ask("filters", { layer: first.name, ...moment }))) : null,
      within(unanswered, async () => {
        const { probabilities } = await ask("look", { ref, brief: true, ...moment }).catch((wrong) => {
          answered.hidden = insideLink.hidden = true;
          throw wrong;
        });
        if (shown !== which) return;
        picture.src = pictureOf(ref, index);
        chart.show(probabilities);
        unanswered.replaceChildren();
        insideLink.href = addressOf("inside", { ref, epoch: at, ...extra });
        answered.hidden = insideLink.hidden = false;
      }),
      within(unlisted, async () => {
        let found;
        do { // computed beside: until it is there, what was found the last time
          found = await ask("mistakes", moment, true);
          if (shown !== which) return;
          if (found.pending) await new Promise((done) => setTimeout(done, 1000));
        } while (found.pending && shown === which);
        if (shown !== which) return;
        unlisted.replaceChildren();
        wrong.textContent = say("training.wrong", { wrong: found.wrong, looked: count(found.looked) });
        gallery.replaceChildren(...found.images.slice(0, 18).map((image) => h("li", {}, h("a", { href: addressOf("inside", { ref: image.ref, epoch: at, ...extra }) },
          h("img", { class: "pixels", loading: "lazy", src: pictureOf(image.ref, index), alt: say("image.alt", { ref: image.ref, label: run.classes[image.label] }) })),
        h("p", {}, h("b", {}, run.classes[image.predicted])))));
      })]);
  }

  async function renew() {
    forget();
    run = await ask("run", extra, true);
    setRun(index, run);
    rows = [...run.history];
    live = !run.finished && run.training;
    draw();
    await drawEpoch(state.params);
  }

  function follow() {
    source = new EventSource(`api/training${index ? `?run=${index}` : ""}`);
    let waiting = 0;
    source.onmessage = (event) => {
      const row = JSON.parse(event.data);
      if (rows.some((each) => each.epoch === row.epoch)) return;
      rows.push(row);
      draw();
      announce(say("training.said", { epoch: row.epoch, accuracy: percent(row.val_accuracy ?? row.train_accuracy) }));
      clearTimeout(waiting);
      waiting = setTimeout(() => renew().catch(() => {}), 200);
    };
    source.onerror = () => ask("run", extra, true).catch(() => {}); // is the server gone? The browser asks for the rows again by itself
    source.addEventListener("end", () => { source.close(); source = null; renew().catch(() => {}); });
  }

  draw();
  drawEpoch(params);
  if (!run.finished) follow();
  return { show: (now) => drawEpoch(now), close: () => source?.close() };
}
