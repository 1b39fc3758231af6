// Compare: two runs, the same picture.

import { ask, blobOf, pictureOf, send, urlOf } from "../fetching.js";
import { bars } from "../drawing/bars.js";
import { count, h, keeping, percent, put, within } from "../drawing/elements.js";
import { addressOf, change, state } from "../state.js";
import { say } from "../words.js";

const KINDS = ["first", "second", "neither", "both"];

export function enter(place, params) {
  const [first, second] = state.runs;
  const lead = h("p", {}, say("compare.lead"));
  place.append(h("div", { class: "lead" }, h("h1", {}, say("compare.title")), lead));
  if (state.runs.length < 2) {
    place.append(h("section", { class: "card empty" }, h("p", {}, say("compare.one")), h("pre", {}, h("code", {}, `convlens open runs/${state.runs[0].name} runs/…`))));
    return { show: () => {} };
  }
  const problem = h("div", {}), table = h("div", {}), gallery = h("ul", { class: "gallery" }), kinds = h("div", { class: "row segmented", role: "group", "aria-label": say("compare.disputed") }), pager = h("div", { class: "row" });
  const sides = state.runs.slice(0, 2).map((run, index) => {
    const chart = bars(run.classes, { label: `${run.name}: ${say("try.bars")}` });
    const verdict = h("p", { class: "verdict" }), heat = h("img", { class: "heat pixels", alt: "" }), seen = h("img", { class: "seen pixels", alt: say("try.seen.alt") });
    const inside = h("a", { class: "button" }, say("try.inside"));
    const both = h("div", { class: "both" }, h("div", {}, h("div", { class: "frame" }, seen, heat), inside), h("div", {}, verdict, chart.element));
    return { run, index, chart, verdict, heat, seen, inside, both, problem: h("div", {}), unheated: h("div", {}),
      element: h("section", { class: "card side-run", "aria-label": `${"AB"[index]}: ${run.name}` }, h("h2", {}, h("span", { class: "letter" }, "AB"[index]), run.name),
        h("p", { class: "soft small" }, say("compare.about", { model: run.model ?? "", parameters: count(run.parameters), accuracy: run.accuracy === null ? "–" : `${(run.accuracy * 100).toFixed(2)} %` })),
        both) };
  });
  sides.forEach((side) => side.element.append(side.problem, side.unheated));
  const differing = h("section", { class: "card", hidden: true, "aria-label": say("compare.disputed") }, h("h2", {}, say("compare.disputed")), h("p", { class: "soft" }, say("compare.disputed.what")), table, kinds, gallery, pager);
  place.append(h("div", { class: "row chooser" }, h("button", { onclick: () => move(-1), "aria-label": say("inside.previous") }, "←"), h("button", { onclick: () => move(1), "aria-label": say("inside.next") }, "→"),
      h("button", { onclick: () => change({ ref: `test:${Math.floor(Math.random() * (first.splits.test ?? 1))}` }) }, say("inside.any")), h("p", { class: "named" })),
    h("div", { class: "compare" }, ...sides.map((side) => side.element)), problem,
    differing);

  function move(by) {
    const at = Number((state.params.ref ?? "test:0").split(":")[1]) || 0, total = first.splits.test ?? 1;
    change({ ref: `test:${(at + by + total) % total}` });
  }

  // Whether both answered the same test images: only then is test:7 the same picture to both
  let shared = null;
  async function same() {
    shared ??= (await ask("compare")).tests.length > 0;
    differing.hidden = !shared;
    if (!shared) lead.textContent = say("compare.lead.other");
    return shared;
  }

  // A picture of one's own is known to the run that it was given to, and a test image to the runs that answered it: the
  // other run is given the picture.
  const home = Number(params.run || 0) === 1 ? 1 : 0, given = new Map();
  async function refOf(ref, index) {
    const own = ref.startsWith("up:"), from = own ? home : 0;
    if (index === from || (!own && await same().catch(() => false))) return ref;
    if (!given.has(ref)) {
      given.set(ref, blobOf(pictureOf(ref, from)).then((blob) => send("pictures", blob, { run: index })));
      given.get(ref).catch(() => given.delete(ref));
    }
    return (await given.get(ref)).ref;
  }

  async function look(ref) {
    await Promise.all(sides.map(async (side) => {
      const extra = side.index ? { run: side.index } : {};
      const own = await within(side.problem, async () => {
        const mine = await refOf(ref, side.index), found = await ask("look", { ref: mine, brief: true, ...extra });
        if (shown !== ref) return mine; // another one was chosen since
        side.problem.replaceChildren();
        side.seen.src = pictureOf(mine, side.index);
        side.verdict.replaceChildren(h("strong", {}, side.run.classes[found.predicted]), h("span", {}, percent(found.probabilities[found.predicted])));
        side.chart.show(found.probabilities);
        side.inside.href = addressOf("inside", { ref: mine, ...extra });
        if (!side.index) place.querySelector(".chooser .named").textContent = found.label === null ? say("inside.yours") : say("inside.image", { ref: ref.replace(":", " "), label: side.run.classes[found.label] });
        return mine;
      });
      if (shown !== ref) return;
      side.both.hidden = side.inside.hidden = !own;
      side.heat.hidden = true;
      if (own) await within(side.unheated, async () => {
        const blob = await blobOf(urlOf("heat", { ref: own, method: "grad-cam", ...extra }));
        if (shown !== ref) return;
        await put(side.heat, blob);
        side.unheated.replaceChildren();
        side.heat.hidden = false;
      });
    }));
  }

  async function disputed(now) {
    const kind = KINDS.includes(now.kind) ? now.kind : "first", page = Number(now.page || 0);
    await within(problem, async () => {
      const found = await ask("compare", { kind, page: page || "" });
      problem.replaceChildren();
      const test = found.tests[0], counts = { first: test.only_first, second: test.only_second, neither: test.neither, both: test.both };
      table.replaceChildren(h("p", {}, say(test.p < 0.05 ? "compare.differ" : "compare.alike", { p: test.p < 0.001 ? "< 0.001" : `= ${test.p.toFixed(3)}` })), h("p", { class: "soft small" }, say("compare.mcnemar")));
      keeping(kinds, () => kinds.replaceChildren(...KINDS.map((each) => h("button", { "aria-pressed": String(each === kind), data: { keep: each }, onclick: () => change({ kind: each, page: "" }) }, say(`compare.${each}`, { count: count(counts[each]) })))));
      keeping(gallery, () => gallery.replaceChildren(...found.images.map((image) => h("li", {},
        first.data === false ? h("p", {}, h("b", {}, image.ref)) : h("button", { class: "picture", data: { keep: image.ref }, "aria-pressed": String(image.ref === (now.ref || "test:0")), onclick: () => { change({ ref: image.ref }); scrollTo({ top: 0 }); } },
          h("img", { class: "pixels", loading: "lazy", src: pictureOf(image.ref), alt: say("image.alt", { ref: image.ref, label: first.classes[image.label] }) })),
        h("p", {}, "A ", h("b", {}, first.classes[image.predicted]), " · B ", h("b", {}, second.classes[image.other.predicted])), h("p", { class: "soft" }, say("mistakes.truly", { label: first.classes[image.label] }))))));
      const pages = Math.ceil(found.total / 60);
      keeping(pager, () => pager.replaceChildren(...(pages > 1 ? [h("button", { disabled: page === 0, data: { keep: "back" }, "aria-label": say("sheet.back"), onclick: () => change({ page: page - 1 || "" }) }, "←"),
        h("span", { class: "soft" }, say("sheet.page", { page: page + 1, pages })),
        h("button", { disabled: page + 1 >= pages, data: { keep: "on" }, "aria-label": say("sheet.on"), onclick: () => change({ page: page + 1 }) }, "→")] : [])));
    });
  }

  let shown = "";
  async function show(now) {
    const ref = now.ref || "test:0";
    if (ref !== shown) {
      shown = ref;
      look(ref);
      gallery.querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.keep === ref)));
    }
    await within(problem, async () => {
      if (await same()) await disputed(now); else problem.replaceChildren(h("p", { class: "soft" }, say("compare.other")));
    });
  }
  show(params);
  return { show };
}
