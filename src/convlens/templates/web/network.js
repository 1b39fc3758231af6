// The network in the browser: its files checked, its golden batch replayed, and answers in the numbers of
// `convlens predict`.

import * as ort from "./runtime/ort.js";
import { decode } from "./picture.js";
import { Refusal } from "./refusal.js";
import { prepare } from "./resize.js";
import { sha256 } from "./sha256.js";

const TOLERANCE = 1e-4; // of logits, in parts of an image's largest or of 1, and of probabilities; verify allows as much

ort.env.wasm.numThreads = 1; // more of them need headers that a plain static server does not send

/** Reads and checks everything; gives {model, check, classify}. `check` is {images, difference, pixels}: how many were
 * replayed, how far the logits were off, and whether this browser gives a picture's pixels as they are in its file. */
export async function open() {
  const names = ["SHA256SUMS.txt", "model.json", "model.onnx"];
  const [sums, json, onnx] = await Promise.all(names.map(read));
  const lines = text(sums).split("\n");
  for (const [name, bytes] of [["model.json", json], ["model.onnx", onnx]]) {
    if (!lines.includes(`${sha256(bytes)}  ${name}`)) throw new Refusal("changed", name);
  }
  const model = JSON.parse(text(json));
  const session = await ort.InferenceSession.create(onnx, { executionProviders: ["wasm"] });
  const run = (pixels, count) => outputs(session, model, pixels, count);
  const check = await replay(model, run);
  const classify = async (picture) => {
    const seen = prepare(picture instanceof Blob ? await decode(picture) : picture, model.input);
    return { seen, ...answer(model, (await run(seen, 1)).logits) };
  };
  return { model, check, classify };
}

async function read(name) {
  const response = await fetch(name, { cache: "no-cache" }).catch(() => null); // all of the same day's folder
  if (!response?.ok) throw new Refusal("missing", name);
  return new Uint8Array(await response.arrayBuffer());
}

function text(bytes) {
  return new TextDecoder().decode(bytes);
}

/** uint8 pixels of `count` images -> {logits, probabilities}, float32 of count x classes. */
async function outputs(session, model, pixels, count) {
  const images = new ort.Tensor("uint8", pixels, [count, model.input.channels, ...model.input.size]);
  const { logits, probabilities } = await session.run({ images });
  return { logits: logits.data, probabilities: probabilities.data };
}

/** Refuses where the network does not say to its golden batch what it said when it was trained. */
async function replay({ golden, classes, calibration, input }, run) {
  const images = bytesOf(golden.images), said = new Float32Array(bytesOf(golden.logits).buffer);
  const { logits, probabilities } = await run(images, golden.count);
  const rows = Array.from({ length: golden.count }, (_, i) => [i * classes.length, (i + 1) * classes.length]);
  const pairs = rows.map((row) => [logits.subarray(...row), said.subarray(...row)]);
  const difference = logits.length === said.length ? Math.max(...pairs.map(([now, then]) => apart(now, then))) : NaN;
  if (!(difference <= TOLERANCE)) throw new Refusal("disagrees", difference);
  pairs.forEach(([now, then], i) => {
    const label = highest(now), expected = highest(then);
    const tied = then[expected] - then[label] <= TOLERANCE * scale(then);
    if (label !== expected && !tied) throw new Refusal("label", classes[label], classes[expected]);
    const calibrated = softmax(now, calibration.temperature).probabilities, given = probabilities.subarray(...rows[i]);
    if (!(apart(calibrated, given) <= TOLERANCE)) throw new Refusal("temperature");
  });
  const first = images.subarray(0, images.length / golden.count);
  const shown = prepare(await decode(new Blob([bytesOf(golden.picture)], { type: "image/png" })), input);
  return { images: golden.count, difference, pixels: shown.every((value, i) => value === first[i]) };
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

/** The largest difference of two rows, in parts of the largest of the second, or of 1. */
function apart(now, then) {
  return Math.max(...then.map((value, i) => Math.abs(now[i] - value))) / scale(then);
}

function scale(values) {
  return Math.max(...values.map(Math.abs), 1);
}

function highest(values) {
  return values.indexOf(Math.max(...values));
}

/** Calibrated probabilities; the energy -T logsumexp(logits / T); whether that is unusual, null where nobody knows. */
function answer({ calibration: { temperature, usual } }, logits) {
  const { probabilities, sum, top } = softmax(logits, temperature);
  const energy = -top - temperature * Math.log(sum);
  if (!Number.isFinite(energy)) throw new Refusal("infinite");
  return { probabilities, energy, unusual: usual ? energy < usual[0] || energy > usual[1] : null };
}

function softmax(logits, temperature) {
  const top = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp((logit - top) / temperature));
  const sum = powers.reduce((a, b) => a + b);
  return { probabilities: powers.map((power) => power / sum), sum, top };
}
