// The page: what is given to the network in worker.js, and how its answers are shown.

import { WORDS } from "./words.js";

const FEWEST = 100; // validation images that a temperature is fitted on: LEAST in operating.py
const PROMISES = [0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1];
const PAD = 280; // pixels of the longer side that is drawn on
const DRAWN = 64; // pixels of the longer side up to which a gray input can be drawn
const NAMED = 12; // classes that the page names
const at = (id) => document.getElementById(id);

let language = navigator.language.startsWith("zh") ? "zh" : "en";
let network = null; // {model, check}, or {refused}, as the worker says
let answer = null; // {seen, probabilities, energy, unusual}, or {refused}
let subject = 0; // number of the picture or drawing that is looked at: answers to earlier ones are not shown
let drawing = false; // whether it is a drawing
let waiting = null; // its newest pixels, where the worker is at older ones; those between are not classified
let busy = null; // the subject that the worker is at
let threshold = 0; // the probability below which the answer is "unknown"

const worker = new Worker("worker.js", { type: "module" });
worker.onerror = (event) => {
  network = { refused: { what: "failed", values: [event.message ?? "worker.js"] } };
  show();
};
worker.onmessage = ({ data }) => {
  if (data.answer) {
    if (busy === subject) answer = data.answer;
    busy = null;
    if (waiting) send(waiting);
    at("main").setAttribute("aria-busy", busy !== null);
  } else {
    network = data;
    if (network.model) begin(network.model);
  }
  show();
};

function send(picture) {
  waiting = busy === null ? null : picture;
  if (busy === null) worker.postMessage({ picture });
  busy ??= subject;
  at("main").setAttribute("aria-busy", true);
}

/** What was asked before is no longer. */
function startAnew() {
  subject += 1;
  answer = waiting = null;
  drawing = false;
}

// What is given -------------------------------------------------------------------------------------------------------

function give(files) {
  const [file] = files;
  if (!file || !network?.model) return;
  URL.revokeObjectURL(at("preview").src);
  at("preview").src = URL.createObjectURL(file);
  at("name").textContent = file.name;
  at("given").hidden = false;
  wipe();
  startAnew();
  send(file);
  show();
}

at("file").onchange = ({ target }) => {
  give(target.files);
  target.value = ""; // so that the same file can be chosen again
};
addEventListener("paste", (event) => give(event.clipboardData.files));
addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
addEventListener("dragleave", () => at("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  give(event.dataTransfer.files);
});
at("preview").onerror = () => (at("given").hidden = true); // the answer says what is wrong with it

// Drawing: white on black, a stroke as thick as a fourteenth of the field

const pad = at("pad");
const brush = pad.getContext("2d", { willReadFrequently: true });

function wipe() {
  brush.fillStyle = "#000";
  brush.fillRect(0, 0, pad.width, pad.height);
}

function place(event) {
  const { left, top, width, height } = pad.getBoundingClientRect();
  return [((event.clientX - left) * pad.width) / width, ((event.clientY - top) * pad.height) / height];
}

function stroke(event) {
  for (const each of event.getCoalescedEvents?.() ?? []) brush.lineTo(...place(each));
  brush.lineTo(...place(event));
  brush.stroke();
  send(brush.getImageData(0, 0, pad.width, pad.height));
}

pad.onpointerdown = (event) => {
  if (event.button !== 0) return;
  pad.setPointerCapture(event.pointerId);
  if (!drawing) {
    at("given").hidden = true;
    wipe();
    startAnew();
    drawing = true;
  }
  Object.assign(brush, { strokeStyle: "#fff", lineCap: "round", lineJoin: "round" });
  brush.lineWidth = Math.max(pad.width, pad.height) / 14;
  brush.beginPath();
  brush.moveTo(...place(event));
  stroke(event);
};
pad.onpointermove = (event) => {
  if (pad.hasPointerCapture(event.pointerId)) stroke(event);
};
at("clear").onclick = () => {
  wipe();
  startAnew();
  at("given").hidden = true;
  show();
};

// What is shown -------------------------------------------------------------------------------------------------------

function begin({ input, classes, calibration }) {
  const [height, width] = input.size;
  Object.assign(at("seen"), { width, height });
  const scale = Math.max(Math.round(PAD / Math.max(width, height)), 1);
  Object.assign(pad, { width: width * scale, height: height * scale });
  at("drawing").hidden = input.channels !== 1 || Math.max(width, height) > DRAWN;
  wipe();
  const counts = [1, 3, 5, 10].filter((count) => count < classes.length);
  at("top").replaceChildren(...[...counts, classes.length].map((count) => new Option(count, count)));
  at("top").value = counts.includes(5) ? 5 : classes.length;
  const best = calibration.curve.at(-1)?.[1] ?? 0;
  const reached = PROMISES.filter((accuracy) => accuracy <= best);
  at("promise").replaceChildren(...["always", ...reached, "own"].map((value) => new Option("", value)));
  at("promised").hidden = !reached.length;
}

/** Everything that is said, anew: in the language chosen, of the network and the answer there are. */
function show() {
  const words = WORDS[language];
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = `${words.title} · ConvLens`;
  for (const element of document.querySelectorAll("[data-say]")) element.textContent = words[element.dataset.say];
  for (const element of document.querySelectorAll("[data-label]")) element.setAttribute("aria-label", words[element.dataset.label]);
  Object.assign(at("language"), { textContent: words.other, lang: language === "zh" ? "en" : "zh-CN" });
  showState(words);
  at("main").hidden = !network?.model;
  if (!network?.model) return;
  showModel(words, network.model);
  showAnswer(words, network.model);
}

function showState(words) {
  const { refused, check } = network ?? {};
  let said = words.loading;
  if (refused) said = `${words.refused[refused.what](...refused.values)} ${words.classifiesNothing}`;
  if (check) said = words.checked(check.images, check.difference.toExponential(0));
  if (check && !check.pixels) said += ` ${words.pixels}`;
  tell(at("status"), said, refused ? "bad" : !check ? "" : check.pixels ? "good" : "warn");
}

function showModel(words, { classes, input, calibration, metrics, convlens, onnxruntime_web: runtime, sha256 }) {
  const [height, width] = input.size;
  const few = classes.slice(0, NAMED).join(language === "zh" ? "、" : ", ") + (classes.length > NAMED ? " …" : "");
  const { test_accuracy: accuracy, images: tested } = metrics;
  const measured = accuracy && tested ? words.measured(percent(accuracy), tested.toLocaleString(language)) : "";
  at("about").textContent = `${words.about(words.names(classes.length, few))} ${measured}`;
  at("size").textContent = words.size(width, height, input.channels);
  at("preview").alt = words.preview;
  at("top").options[at("top").options.length - 1].text = `${words.all} (${classes.length})`;
  for (const option of at("promise").options) option.text = words[option.value] ?? words.promised(percent(option.value));
  const { temperature, curve } = calibration, images = calibration.images.toLocaleString(language);
  const uncalibrated = calibration.images < FEWEST ? words.few : curve[0][1] === 1 ? words.right : null;
  at("calibrated").textContent = uncalibrated?.(images) ?? words.calibrated(temperature.toPrecision(3), images);
  const license = Object.assign(document.createElement("a"), { href: "runtime/LICENSE.txt", textContent: words.license });
  at("made").replaceChildren(`${words.made(convlens, runtime, sha256.slice(0, 12))} `, license);
}

function showAnswer(words, { classes, calibration, input }) {
  const point = threshold ? calibration.curve.find(([least]) => least === threshold) : null;
  const images = calibration.images.toLocaleString(language);
  at("coverage").textContent = point ? words.coverage(images, percent(point[2]), percent(point[1])) : "";
  at("bars").replaceChildren();
  at("unusual").hidden = true;
  draw(answer?.seen, input);
  if (!answer) return tell(at("label"), waiting || busy === subject ? words.working : words.none, "soft");
  if (answer.refused) return tell(at("label"), words.refused[answer.refused.what](...answer.refused.values), "bad");
  const { probabilities, energy, unusual } = answer;
  const order = probabilities.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]);
  const best = probabilities[order[0]];
  if (best < threshold) tell(at("label"), words.unknown(percent(best), percent(threshold)), "unknown");
  else tell(at("label"), classes[order[0]], "", percent(best));
  if (unusual) {
    const numbers = [energy, ...calibration.usual].map((value) => value.toFixed(1));
    at("unusual").textContent = words.unusual(...numbers);
    at("unusual").hidden = false;
  }
  at("bars").append(...order.slice(0, at("top").value).map((i) => bar(classes[i], probabilities[i])));
}

function bar(name, probability) {
  const [row, label, track, fill] = ["li", "span", "span", "span"].map((kind) => document.createElement(kind));
  const number = Object.assign(document.createElement("data"), { value: probability, textContent: percent(probability) });
  label.textContent = name;
  track.className = "track";
  fill.style.width = `${100 * probability}%`;
  track.append(fill);
  row.append(label, track, number);
  return row;
}

/** What the network sees, uint8 (channels, height, width), or nothing. */
function draw(seen, { size: [height, width], channels }) {
  const shown = new ImageData(width, height), area = width * height;
  if (seen) {
    for (let i = 0; i < area; i++) {
      for (let band = 0; band < 3; band++) shown.data[4 * i + band] = seen[(channels === 1 ? 0 : band) * area + i];
      shown.data[4 * i + 3] = 255;
    }
  }
  at("seen").getContext("2d", { willReadFrequently: true }).putImageData(shown, 0, 0);
}

function tell(element, text, kind, aside = "") {
  element.className = `${element.id === "status" ? "told " : ""}${kind}`;
  if (element.textContent === `${text} ${aside}`.trim()) return; // the same is not read out twice
  element.textContent = text;
  const beside = Object.assign(document.createElement("span"), { className: "soft", textContent: aside });
  if (aside) element.append(" ", beside);
}

/** One place behind the point; never 100 % of what is less, nor 0 of what is more. */
function percent(share) {
  const shown = (100 * share).toFixed(1);
  const text = shown === "100.0" && share < 1 ? ">99.9" : shown === "0.0" && share > 0 ? "<0.1" : shown.replace(/\.0$/, "");
  return `${text}%`;
}

at("language").onclick = () => {
  language = language === "zh" ? "en" : "zh";
  show();
};
at("top").onchange = show;
at("threshold").oninput = ({ target }) => {
  threshold = Math.min(Math.max(Number(target.value) / 100, 0), 1);
  at("promise").value = threshold ? "own" : "always";
  show();
};
at("promise").onchange = ({ target: { value } }) => {
  if (value === "own") return at("threshold").focus();
  const point = network.model.calibration.curve.find(([, accuracy]) => accuracy >= Number(value));
  threshold = point?.[0] ?? 0; // always: none
  at("threshold").value = Number((100 * threshold).toFixed(2));
  show();
};
show();
