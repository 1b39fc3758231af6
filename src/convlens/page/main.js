// The page's frame: rooms and their addresses, language, light and dark, and what is said when the server is gone.
// The frame is built once: what has the keyboard keeps it when the address changes.

import { ask, forget, hearContact } from "./fetching.js";
import { announce, h } from "./drawing/elements.js";
import { addressOf, arrive, listen, setLanguage, setRun, setTheme, state } from "./state.js";
import { say } from "./words.js";
import { saveMenu } from "./drawing/saving.js";

const ROOMS = ["try", "inside", "mistakes", "playground", "training", "compare"];
const CARRIED = ["ref", "run"]; // what goes along from room to room

const place = document.getElementById("room");
const banner = document.querySelector(".banner");
const links = new Map(ROOMS.map((room) => [room, h("a", {})]));
document.querySelector("nav ul").append(...[...links.values()].map((link) => h("li", {}, link)));
let open = null; // { which, show, close }
let opening = 0, entered = false; // entered: the next room is one that somebody went to
let framed = null; // the run that the frame tells of

const runOf = ({ run }) => Number(run || 0);
const runTold = () => state.runs[runOf(state.params)] ?? state.runs[0];

// All of it, in the language and the light of the moment
function frame() {
  const root = document.documentElement;
  root.lang = state.language === "zh" ? "zh-CN" : "en";
  if (state.theme) root.dataset.theme = state.theme; else delete root.dataset.theme;
  document.querySelector("nav").setAttribute("aria-label", say("rooms"));
  for (const [room, link] of links) link.textContent = say(`room.${room}`);
  const dark = state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const focused = document.activeElement?.dataset?.switch;
  document.querySelector(".switches").replaceChildren(
    h("button", { class: "plain", data: { switch: "language" }, lang: state.language === "zh" ? "en" : "zh-CN",
      onclick: () => setLanguage(state.language === "zh" ? "en" : "zh") }, state.language === "zh" ? "English" : "中文"),
    h("button", { class: "plain", data: { switch: "theme" }, "aria-label": say(dark ? "light" : "dark"), title: say(dark ? "light" : "dark"),
      onclick: () => setTheme(dark ? "light" : "dark") }, h("span", { class: "moon", "aria-hidden": "true" })),
  );
  if (focused) document.querySelector(`[data-switch=${focused}]`).focus();
  document.querySelector(".skip").textContent = say("skip");
  follow();
  const run = runTold();
  document.querySelector("footer").replaceChildren(
    run ? h("p", { class: "soft" }, say(Number.isFinite(run.accuracy) ? "footer" : "footer.untested", {
      name: run.name, dataset: run.dataset, parameters: run.parameters.toLocaleString("en-US"),
      accuracy: ((run.accuracy ?? 0) * 100).toFixed(2) })) : "", run ? saveMenu(place) : "");
  framed = run;
}

// What an address says of it: every click gives a new one, so no more is touched than must be
function follow() {
  if (!ROOMS.includes(state.room)) state.room = "try";
  const carried = Object.fromEntries(CARRIED.map((name) => [name, state.params[name]]));
  for (const [room, link] of links) link.href = addressOf(room, carried);
  const run = runTold(), current = links.get(state.room);
  const title = `${say(`room.${state.room}`)} · ${run ? `${run.name} · ` : ""}ConvLens`;
  if (document.title !== title) document.title = title;
  if (current.hasAttribute("aria-current")) return;
  for (const link of links.values()) link.removeAttribute("aria-current");
  current.setAttribute("aria-current", "page");
  const list = document.querySelector("nav").firstElementChild;
  if (list.scrollWidth > list.clientWidth) list.scrollLeft = current.offsetLeft - list.clientWidth / 2 + 30;
}

// A run in training is another one by now
const renew = () => Promise.all(state.runs.map(async (run, index) => {
  if (run.finished) return;
  forget();
  setRun(index, await ask("run", index ? { run: index } : {}, true));
})).catch(() => {}); // the room shows what is known

async function show() {
  const name = state.room, which = `${name} ${runOf(state.params)}`;
  if (open?.which === which) return open.show(state.params);
  const turn = ++opening, moved = entered;
  open?.close?.();
  open = null;
  const [room] = await Promise.all([import(`./rooms/${name}.js`), moved ? renew() : null]);
  if (turn !== opening) return undefined;
  place.replaceChildren();
  place.className = `wide room-${name}`;
  open = { which, ...room.enter(place, state.params) };
  entered = true;
  scrollTo(0, 0);
  const heading = place.querySelector("h1");
  heading.tabIndex = -1;
  if (moved) heading.focus({ preventScroll: true }); // and a screen reader says it
  return undefined;
}

async function begin() {
  const first = await ask("run");
  const others = await Promise.all((first.runs ?? []).slice(1).map((_, i) => ask("run", { run: i + 1 })));
  state.runs = [first, ...others];
  frame();
  await again();
  for (const room of ROOMS) import(`./rooms/${room}.js`).catch(() => {}); // while the server is there to send them
}

// The same room, built anew: where it was, and without a word to who is elsewhere
async function again() {
  open?.close?.();
  open = null;
  entered = false;
  await show();
}

function trouble(problem) {
  if (problem?.message) place.replaceChildren(h("p", { class: "problem", role: "alert" }, problem.message));
}

// A picture that is dropped where no room takes it does not take the page's place
for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());

let away = null;
hearContact((contact) => {
  if (contact === "here") {
    if (!away) return;
    clearInterval(away);
    away = null;
    banner.hidden = true;
    forget(); // it may be another server, with another run
    begin().catch(trouble);
    return;
  }
  const told = say(contact);
  if (banner.textContent !== told) banner.textContent = told;
  banner.hidden = false;
  away ??= setInterval(() => ask("run", {}, true).catch(() => {}), 3000);
});

listen((what) => {
  if (what === "address") {
    if (framed !== runTold()) frame(); else follow();
    if (state.runs.length) show().catch(trouble);
  } else {
    frame();
    if (what === "language" && state.runs.length) {
      again().catch(trouble);
      announce(say("language.now"));
    }
  }
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", frame);
addEventListener("popstate", arrive);
addEventListener("hashchange", arrive);
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); place.focus(); });

addEventListener("unhandledrejection", (event) => { if (event.reason?.name === "AbortError") event.preventDefault(); }); // overtaken, see latest()

arrive();
begin().catch(trouble);
