// Asking the server. Answers that cannot change are kept; what goes wrong is a Problem with one sentence.

import { told } from "./sentences.js";
import { say } from "./words.js";

export class Problem extends Error {
  constructor(sentence, status = 0) { super(sentence); this.status = status; }
}

const KEPT = 300;
const PATIENCE = 20_000; // milliseconds
const answers = new Map();
let onContact = () => {};
export const hearContact = (listener) => { onContact = listener; }; // "here": the server answered, "gone": it did not, "anew": it knows this page no more

async function answer(url, options) {
  let response;
  try {
    response = await fetch(url, { credentials: "same-origin", ...options, signal: AbortSignal.timeout(PATIENCE) });
  } catch (error) {
    if (error.name === "TimeoutError" && !url.startsWith("api/run")) { // is it this question, or the server?
      ask("run", {}, true).catch(() => {});
      throw new Problem(say("slow"), 0);
    }
    onContact("gone");
    throw new Problem("", 0); // a dead server: main.js says so above the page
  }
  onContact(response.status === 401 ? "anew" : "here");
  if (response.status === 401) throw new Problem("", 401);
  if (!response.ok) {
    const said = await response.json().catch(() => ({}));
    throw new Problem(said.error ? told(said.error) : `${response.status} ${response.statusText}`, response.status);
  }
  return response;
}

export function urlOf(path, params = {}) {
  const filled = Object.entries(params).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const query = new URLSearchParams(filled.map(([name, value]) => [name, String(value)])).toString();
  return `api/${path}${query ? `?${query}` : ""}`;
}

export function ask(path, params = {}, fresh = false) {
  const url = urlOf(path, params);
  if (answers.has(url) && !fresh) {
    const known = answers.get(url);
    answers.delete(url); // to the end: the least recently asked goes first
    answers.set(url, known);
    return known;
  }
  const promise = answer(url).then((response) => response.json());
  promise.catch(() => answers.delete(url));
  if (fresh) return promise;
  answers.set(url, promise);
  if (answers.size > KEPT) answers.delete(answers.keys().next().value);
  return promise;
}

export const forget = () => answers.clear();

export async function send(path, body, params = {}) {
  const response = await answer(urlOf(path, params), { method: "POST", body });
  return response.json();
}

// A picture that the server may not have, or not be able to make: an <img> would not tell why
export const blobOf = async (url) => (await answer(url)).blob();

export const pictureOf = (ref, run = 0) => urlOf(`picture/${encodeURIComponent(ref)}.png`, run ? { run } : {});

export function bytesOf(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

export const floatsOf = (text) => new Float32Array(bytesOf(text).buffer);

// Of several calls only the last one's answer counts: for what follows a pointer or a pen. The others end in an
// AbortError, as if they had been taken back.
export function latest() {
  let turn = 0;
  return async (promise) => {
    const mine = ++turn;
    const value = await promise.catch((wrong) => { if (mine === turn) throw wrong; });
    if (mine !== turn) throw new DOMException("a newer question has taken its place", "AbortError");
    return value;
  };
}
