// HTML and SVG elements in one call. No markup is ever made from text, so nothing that comes from a run can be markup.

const SVG = "http://www.w3.org/2000/svg";

export const h = (tag, props = {}, ...children) => filled(document.createElement(tag), props, children);
export const s = (tag, props = {}, ...children) => filled(document.createElementNS(SVG, tag), props, children);

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (["value", "checked", "disabled", "indeterminate"].includes(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// A problem is shown where it belongs: in `place`, instead of what could not be made.
export async function within(place, work) {
  place.setAttribute("aria-busy", "true");
  try {
    return await work();
  } catch (problem) {
    if (problem.name === "AbortError") return undefined;
    if (problem.message) place.replaceChildren(h("p", { class: "problem", role: "alert" }, problem.message));
    if (problem.status === undefined) throw problem; // ours, not the server's
    return undefined;
  } finally {
    place.removeAttribute("aria-busy");
  }
}

// A picture that was fetched, in an <img>; the one before is let go.
export async function put(image, blob) {
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
  await image.decode();
}

// What has the keyboard keeps it when `place` is drawn anew: by its data-keep; of a row whose button went out, its neighbour.
export function keeping(place, draw) {
  const held = place.contains(document.activeElement) ? document.activeElement.dataset.keep : "";
  draw();
  if (!held) return;
  const heir = place.querySelector(`[data-keep="${held}"]`);
  (heir && !heir.disabled ? heir : place.querySelector("button:enabled"))?.focus({ preventScroll: true });
}

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

export function announce(text) { document.querySelector(".unseen").textContent = text; }

// Arrow keys among the buttons of a group, of which one is in the order of Tab.
export function roving(group, selector) {
  const items = () => [...group.querySelectorAll(selector)];
  const settle = (to) => items().forEach((item) => { item.tabIndex = item === to ? 0 : -1; });
  group.addEventListener("focusin", (event) => { if (event.target.matches(selector)) settle(event.target); });
  group.addEventListener("keydown", (event) => {
    const all = items(), at = all.indexOf(document.activeElement);
    if (at < 0) return;
    const step = { ArrowDown: 1, ArrowUp: -1, ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const to = event.key === "Home" ? 0 : event.key === "End" ? all.length - 1 : step ? at + step : null;
    if (to === null || !all[to]) return;
    event.preventDefault();
    all[to].focus();
  });
  const all = items();
  settle(all.find((item) => item.getAttribute("aria-pressed") === "true") ?? all[0]);
}

export const number = (value, digits = 2) => {
  if (value === null || value === undefined) return "−∞"; // what padding is for a maximum
  const text = Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 10 ** -digits / 2) ?
    value.toExponential(1) : value.toFixed(digits);
  return text.replace("-", "−");
};

export const count = (value) => value.toLocaleString("en-US");

export const percent = (share) =>
  share > 0.9995 && share < 1 ? "> 99.9 %" : share > 0 && share < 0.0005 ? "< 0.1 %" : `${(share * 100).toFixed(1)} %`;
