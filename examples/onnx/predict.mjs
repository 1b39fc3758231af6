// Classify PNGs with what `convlens export RUN --to web` wrote, in node, with onnxruntime-web and pngjs.
//
//     npm install onnxruntime-web pngjs
//     node predict.mjs WEB_FOLDER PICTURE...
//
// Of PNGs with 16 bits pngjs rounds the values, where Pillow cuts them off: a pixel may differ by 1.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import * as ort from "onnxruntime-web";
import { PNG } from "pngjs";

const [folder, ...paths] = process.argv.slice(2);
const { classes, input } = JSON.parse(readFileSync(`${folder}/model.json`));
const { prepare } = await import(pathToFileURL(`${folder}/resize.js`)); // the pixels that Pillow would give, to the bit
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync(`${folder}/model.onnx`));

for (const path of paths) {
  const pixels = prepare(PNG.sync.read(readFileSync(path)), input); // of {data, width, height}, data being RGBA
  const images = new ort.Tensor("uint8", pixels, [1, input.channels, ...input.size]);
  const probabilities = (await session.run({ images })).probabilities.data;
  const best = probabilities.indexOf(Math.max(...probabilities));
  console.log(`${path},${classes[best]},${probabilities[best].toFixed(6)}`);
}
