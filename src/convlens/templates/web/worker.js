// The network beside the page, which stays responsive while a large photograph is prepared.

import { open } from "./network.js";

const network = open();
network.then(({ model, check }) => postMessage({ model, check }), (error) => postMessage({ refused: told(error) }));

/** {picture: a Blob or ImageData} -> {seen, probabilities, energy, unusual}, or {refused}. */
onmessage = async ({ data: { picture } }) => {
  try {
    postMessage({ answer: await (await network).classify(picture) });
  } catch (error) {
    postMessage({ answer: { refused: told(error) } });
  }
};

function told(error) {
  return error.told ?? { what: "failed", values: [String(error?.message ?? error)] };
}
