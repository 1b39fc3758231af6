// Try: draw, drop, paste, photograph or choose a picture, and read the network's answer while you do.

import { ask, blobOf, latest, pictureOf, send, urlOf } from "../fetching.js";
import { bars } from "../drawing/bars.js";
import { announce, h, percent, put, within } from "../drawing/elements.js";
import { pad } from "../drawing/pad.js";
import { addressOf, change, state } from "../state.js";
import { say } from "../words.js";

const CHOICES = 18; // test images that are offered at a time

export function enter(place, params) {
  const index = Number(params.run || 0), run = state.runs[index] ?? state.runs[0], extra = index ? { run: index } : {};
  const draws = run.input.channels === 1;
  let ref = "", settle = 0, stream = null, waiting = false, busy = false, frame = 0, left = false;
  const only = latest(), onlyHeat = latest();

  // The answer
  const verdict = h("p", { class: "verdict" }), mini = h("p", { class: "mini", "aria-hidden": "true" }), doubt = h("p", { class: "doubt", role: "status" });
  const chart = bars(run.classes, { label: say("try.bars") });
  const seen = h("img", { class: "seen pixels", alt: say("try.seen.alt"), hidden: true });
  const heat = h("img", { class: "heat pixels", alt: "", hidden: true });
  const heatSwitch = h("input", { type: "checkbox", id: "heat", onchange: () => { change({ heat: heatSwitch.checked ? 1 : "" }, true); showHeat(); } }), unheated = h("div", {});
  const near = h("ul", { class: "near" });
  const inside = h("a", { class: "button", hidden: true }, say("try.inside"));
  const problem = h("div", {}), meaning = h("p", { class: "soft small" });

  async function showHeat() {
    heat.hidden = true;
    unheated.replaceChildren();
    if (heatSwitch.checked && ref) await within(unheated, async () => {
      await put(heat, await onlyHeat(blobOf(urlOf("heat", { ref, method: "grad-cam", ...extra }))));
      heat.hidden = !heatSwitch.checked || !ref;
    });
  }

  async function showNear(of) {
    if (run.data === false) return;
    for (let turn = 0; turn < 30 && of === ref; turn++) {
      const found = await ask("near", { ref: of, ...extra }, true).catch((wrong) => ({ error: wrong.message }));
      if (of !== ref) return;
      if (!found.pending) {
        near.replaceChildren(...(found.images ?? []).map((image) => h("li", {},
          h("a", { href: addressOf("inside", { ref: image.ref, ...extra }) },
            h("img", { class: "pixels", src: pictureOf(image.ref, index), alt: say("image.alt", { ref: image.ref, label: run.classes[image.label] }) }),
            h("span", {}, run.classes[image.label])))));
        if (found.error) near.replaceChildren(h("li", { class: "soft" }, found.error));
        return;
      }
      near.replaceChildren(h("li", { class: "soft" }, say("try.near.pending")));
      await new Promise((done) => setTimeout(done, 1000));
    }
  }

  function showAnswer(look) {
    const p = look.probabilities[look.predicted];
    verdict.replaceChildren(h("strong", {}, run.classes[look.predicted]), h("span", {}, percent(p)));
    mini.replaceChildren(...[...verdict.children].map((child) => child.cloneNode(true)));
    verdict.classList.toggle("unsure", look.unknown);
    const label = look.label === null || look.label === undefined ? "" :
      say(look.label === look.predicted ? "try.right" : "try.wrong", { label: run.classes[look.label] });
    doubt.textContent = [look.unknown ? say("try.unknown", { threshold: percent(run.threshold) }) : "",
      look.unusual ? say("try.unusual") : "", label].filter(Boolean).join(" ");
    chart.show(look.probabilities);
    meaning.textContent = say(look.calibrated ? "try.bars.what" : "try.bars.plain");
    inside.hidden = false;
    inside.href = addressOf("inside", { ref, ...extra });
  }

  function nothing() {
    clearTimeout(settle);
    ref = "";
    verdict.replaceChildren(h("span", { class: "soft" }, say(draws ? "try.begin.draw" : "try.begin")));
    doubt.textContent = mini.textContent = "";
    chart.clear();
    meaning.textContent = say("try.bars.sum");
    seen.hidden = heat.hidden = inside.hidden = true;
    near.replaceChildren();
    unheated.replaceChildren();
    marked();
  }

  async function choose(given, picture, known) {
    ref = given;
    seen.src = picture;
    seen.hidden = false;
    problem.replaceChildren();
    const look = known ?? await only(ask("look", { ref, brief: true, ...extra }));
    showAnswer(look);
    clearTimeout(settle);
    settle = setTimeout(() => { // what takes longer waits until the pen rests; so does the address
      change({ ref }, true);
      showHeat();
      showNear(ref);
      announce(`${run.classes[look.predicted]}, ${percent(look.probabilities[look.predicted])}`);
    }, 250);
    marked();
  }

  // A drawing has its turn from the moment it is asked about, not from when it has become a PNG: what is given meanwhile is newer
  async function upload(blob, digit) {
    const sent = async () => send("pictures", await blob, { look: 1, ...(digit ? { digit: 1 } : {}), ...extra });
    const given = await only(sent());
    await choose(given.ref, given.seen, given.look);
    return given;
  }

  // What could not be answered leaves no older answer standing
  const guarded = (work) => within(problem, () => work().catch((wrong) => {
    if (wrong.name !== "AbortError") nothing();
    throw wrong;
  }));

  // Drawing: at most one question on its way, and then the newest picture
  async function drawn() {
    if (busy) { waiting = true; return; }
    if (paper.empty()) { only(Promise.resolve()); problem.replaceChildren(); nothing(); change({ ref: "" }, true); return; }
    busy = true;
    note.textContent = ""; // it was of another picture
    try {
      await guarded(() => upload(paper.picture(), run.digits));
    } finally {
      busy = false;
    }
    if (waiting) { waiting = false; drawn(); }
  }
  const paper = draws ? pad({ label: say("try.pad"), changed: () => { hint.hidden = !paper.empty(); cancelAnimationFrame(frame); frame = requestAnimationFrame(drawn); } }) : null;

  function unasked() { // a stroke that has not been asked about is not any more: another picture has come
    cancelAnimationFrame(frame);
    waiting = false;
  }

  async function given(file) {
    if (!file) return;
    stopCamera();
    await guarded(async () => {
      unasked();
      const about = await upload(file, run.digits);
      note.textContent = say("try.given", { width: about.given.width, height: about.given.height, format: about.given.format ?? "" });
    });
  }
  const hint = h("p", { class: "hint", "aria-hidden": "true" }, say(run.digits ? "try.hint.digits" : "try.hint"));
  const note = h("p", { class: "soft small", role: "status" });

  // The camera
  const video = h("video", { playsinline: true, muted: true, hidden: true });
  const snap = h("button", { hidden: true, onclick: async () => {
    const canvas = h("canvas");
    const side = Math.min(video.videoWidth, video.videoHeight);
    canvas.width = canvas.height = Math.min(side, 512);
    canvas.getContext("2d").drawImage(video, (video.videoWidth - side) / 2, (video.videoHeight - side) / 2, side, side, 0, 0, canvas.width, canvas.width);
    canvas.toBlob(given, "image/png");
  } }, say("try.snap"));
  async function camera() {
    if (stream) { stopCamera(); return; }
    try {
      const opened = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      if (stream || left) { opened.getTracks().forEach((track) => track.stop()); return; } // asked twice, or the room was left
      stream = video.srcObject = opened;
      video.hidden = snap.hidden = false;
      await video.play();
    } catch {
      note.textContent = say("try.nocamera");
    }
  }
  function stopCamera() {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    video.hidden = snap.hidden = true;
  }

  // Test images
  const strip = h("ul", { class: "strip" });
  function offer(share = Math.random()) { // evenly spread over the split, which may be sorted by class
    const total = run.splits.test ?? 0, shown = Math.min(CHOICES, total);
    strip.replaceChildren(...Array.from({ length: shown }, (_, i) => Math.floor(((i + share) * total) / shown)).map((at) => {
      const mine = `test:${at}`, picture = pictureOf(mine, index);
      return h("li", {}, h("button", { class: "picture", data: { ref: mine }, "aria-pressed": "false", onclick: () => {
        stopCamera();
        note.textContent = "";
        unasked();
        guarded(() => choose(mine, picture));
        change({ ref: mine }, true);
      } }, h("img", { class: "pixels", loading: "lazy", src: picture, alt: say("try.test.alt", { index: at }) })));
    }));
    marked();
  }
  function marked() {
    strip.querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.ref === ref)));
  }

  const file = h("input", { type: "file", accept: "image/*", class: "unseen", tabindex: -1, "aria-hidden": "true", onchange: () => { given(file.files[0]); file.value = ""; } });
  const width = h("input", { type: "range", min: 8, max: 36, value: 20, id: "pen", oninput: () => paper.setWidth(Number(width.value)) });
  const rubber = h("button", { "aria-pressed": "false", onclick: () => {
    paper.rubber = !paper.rubber;
    rubber.setAttribute("aria-pressed", String(paper.rubber));
  } }, say("try.rubber"));

  const tools = draws ? h("div", { class: "tools" },
    h("button", { onclick: () => { paper.clear(); note.textContent = ""; } }, say("try.clear")),
    h("button", { onclick: () => paper.undo() }, say("try.undo")), rubber,
    h("label", { for: "pen", class: "pen" }, say("try.pen"), width)) : null;
  const ways = h("div", { class: "ways" },
    h("button", { onclick: () => file.click() }, say("try.file")),
    h("button", { onclick: camera }, say("try.camera")), snap, file,
    h("p", { class: "soft small" }, say("try.paste")));
  const dropping = h("div", { class: draws ? "given" : "given zone" },
    draws ? h("div", { class: "paper" }, paper.canvas, hint) : h("button", { class: "dropzone", onclick: () => file.click() }, h("span", {}, say("try.drop"))),
    mini, video, tools, ways, note, problem);

  place.append(
    h("div", { class: "lead" }, h("h1", {}, say("try.title")), h("p", {}, say(run.digits ? "try.lead.digits" : "try.lead"))),
    h("div", { class: "try" },
      h("section", { class: "card draw", "aria-label": say("try.give") }, h("h2", {}, say(draws ? "try.draw" : "try.give")), dropping),
      h("section", { class: "card answer", "aria-label": say("try.answer") },
        h("h2", {}, say("try.answer")), verdict, doubt, chart.element,
        meaning, inside),
      h("section", { class: "card sees", "aria-label": say("try.sees") },
        h("h2", {}, say("try.sees")),
        h("div", { class: "frame" }, seen, heat),
        h("p", { class: "soft small" }, say(run.digits ? "try.sees.digits" : "try.sees.what", { size: run.input.size.join(" × ") })),
        h("label", { class: "check" }, heatSwitch, h("span", {}, say("try.heat"))), unheated,
        h("p", { class: "soft small" }, say("try.heat.what"))),
      h("div", { class: "more-images" },
        h("section", { class: "card", "aria-label": say("try.near") },
          h("h2", {}, say("try.near")), near, h("p", { class: "soft small" }, say("try.near.what"))),
        h("section", { class: "card tests", "aria-label": say("try.tests") },
          h("div", { class: "row" }, h("h2", {}, say("try.tests")),
            run.data === false ? "" : h("button", { onclick: () => offer() }, say("try.others"))),
          run.data === false ? h("p", { class: "soft" }, say("try.nodata", { dataset: run.dataset })) : strip))));

  const over = (event) => { event.preventDefault(); dropping.classList.add("over"); };
  const leave = () => dropping.classList.remove("over");
  const drop = (event) => { event.preventDefault(); leave(); given(event.dataTransfer.files[0]); };
  const paste = (event) => {
    const item = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
    if (item) { event.preventDefault(); given(item); }
  };
  const listeners = [["dragover", over], ["dragleave", leave], ["drop", drop], ["paste", paste]];
  listeners.forEach(([name, listener]) => document.addEventListener(name, listener));
  place.paper = paper; // the tests draw stored strokes on it

  function show(now) {
    if (heatSwitch.checked !== (now.heat === "1")) {
      heatSwitch.checked = !heatSwitch.checked;
      showHeat();
    }
    if ((now.ref ?? "") === ref) return;
    if (now.ref) guarded(() => choose(now.ref, pictureOf(now.ref, index)));
    else nothing();
  }
  nothing();
  if (run.data !== false) offer(0);
  show(params);
  return {
    show,
    close: () => {
      left = true;
      stopCamera();
      unasked();
      clearTimeout(settle);
      only(Promise.resolve()); // an answer on its way comes too late
      ref = "";
      listeners.forEach(([name, listener]) => document.removeEventListener(name, listener));
    },
  };
}
