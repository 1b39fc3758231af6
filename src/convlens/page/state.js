// What the page shows: one plain object, its address, and who wants to know when they change. Nothing here draws.

const kept = (name, fallback) => {
  try { return localStorage.getItem(`convlens.${name}`) ?? fallback; } catch { return fallback; }
};
const keep = (name, value) => {
  try { localStorage.setItem(`convlens.${name}`, value); } catch { /* a private window keeps nothing */ }
};

export const remembered = {
  get: (name, fallback) => { try { return JSON.parse(kept(name, "null")) ?? fallback; } catch { return fallback; } },
  set: (name, value) => keep(name, JSON.stringify(value)),
};

export const state = {
  runs: [],        // what /api/run says of each run that is open
  language: kept("language", navigator.language?.startsWith("zh") ? "zh" : "en"),
  theme: kept("theme", ""), // "" follows the system
  room: "try",
  params: {},
};

const listeners = new Set();
export const listen = (listener) => { listeners.add(listener); return () => listeners.delete(listener); };
const tell = (what) => listeners.forEach((listener) => listener(what));

export function setLanguage(language) { state.language = language; keep("language", language); tell("language"); }
export function setTheme(theme) { state.theme = theme; keep("theme", theme); tell("theme"); }
export function setRun(index, run) { state.runs[index] = run; tell("run"); }

// An address is #/room?name=value: all that a view needs to come up again as it is.

export function read(hash) {
  const [room, query = ""] = hash.replace(/^#\/?/, "").split("?");
  return { room: room || "try", params: Object.fromEntries(new URLSearchParams(query)) };
}

export function addressOf(room, params) {
  const filled = Object.entries(params).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const query = new URLSearchParams(filled.map(([name, value]) => [name, String(value)])).toString();
  return `#/${room}${query ? `?${query.replaceAll("%3A", ":").replaceAll("%2C", ",")}` : ""}`;
}

export function arrive() {
  Object.assign(state, read(location.hash));
  tell("address");
}

// `quietly` leaves no step in the browser's history: for what follows the pointer.
export function go(room, params, quietly = false) {
  const address = addressOf(room, params);
  if (address === location.hash) return;
  history[quietly ? "replaceState" : "pushState"](null, "", address);
  arrive();
}

export const change = (params, quietly = false) => go(state.room, { ...state.params, ...params }, quietly);

// Channels that are switched off: `layer:3,5;other:1` <-> {layer: [3, 5], other: [1]}

export function readOff(text = "") {
  const off = {};
  for (const part of text.split(";").filter(Boolean)) {
    const colon = part.lastIndexOf(":");
    off[part.slice(0, colon)] = part.slice(colon + 1).split(",").map(Number);
  }
  return off;
}

export const writeOff = (off) =>
  Object.entries(off).filter(([, channels]) => channels.length)
    .map(([layer, channels]) => `${layer}:${[...channels].sort((a, b) => a - b).join(",")}`).join(";");

export function toggled(text, layer, channel) {
  const off = readOff(text);
  const of = new Set(off[layer] ?? []);
  if (!of.delete(channel)) of.add(channel);
  return writeOff({ ...off, [layer]: [...of] });
}
