// A view as a file: SVG, its HTML inside as it stands, or PNG, that SVG painted. All in the browser.

import { h } from "./elements.js";
import { state } from "../state.js";
import { say } from "../words.js";

const SVG = "http://www.w3.org/2000/svg", XHTML = "http://www.w3.org/1999/xhtml";

export function download(content, name) {
  const url = URL.createObjectURL(content);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

async function asSvg(view) {
  const { width } = view.getBoundingClientRect();
  const height = view.scrollHeight + 32;
  const copy = view.cloneNode(true);
  const originals = [...view.querySelectorAll("canvas")];
  [...copy.querySelectorAll("canvas")].forEach((canvas, i) => {
    const image = document.createElementNS(XHTML, "img");
    image.setAttribute("src", originals[i].width && originals[i].height ? originals[i].toDataURL() : "");
    image.setAttribute("class", originals[i].className);
    image.style.cssText = originals[i].style.cssText;
    canvas.replaceWith(image);
  });
  const pictures = [...view.querySelectorAll("img")];
  await Promise.all([...copy.querySelectorAll("img")].filter((image) => !image.src.startsWith("data:")).map(async (image) => {
    const original = pictures.find((each) => each.src === image.src);
    if (!original?.naturalWidth) return image.remove();
    const canvas = h("canvas");
    canvas.width = original.naturalWidth;
    canvas.height = original.naturalHeight;
    canvas.getContext("2d").drawImage(original, 0, 0);
    image.setAttribute("src", canvas.toDataURL());
    return undefined;
  }));
  copy.querySelectorAll(".far").forEach((element) => element.classList.remove("far"));
  copy.querySelectorAll("video, [data-unsaved]").forEach((element) => element.remove());
  const style = document.createElementNS(XHTML, "style");
  style.textContent = await (await fetch("style.css")).text();
  const body = document.createElementNS(XHTML, "body");
  body.append(style, copy);
  const svg = document.createElementNS(SVG, "svg");
  const dark = state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  for (const [name, value] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}`, "data-theme": dark ? "dark" : "light" })) {
    svg.setAttribute(name, value);
  }
  const inside = document.createElementNS(SVG, "foreignObject");
  inside.setAttribute("width", "100%");
  inside.setAttribute("height", "100%");
  inside.append(body);
  svg.append(inside);
  return { text: new XMLSerializer().serializeToString(svg), width, height };
}

async function asPng(view) {
  const { text, width, height } = await asSvg(view);
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const scale = Math.min(2, 16000 / Math.max(width, height));
  const canvas = h("canvas");
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.drawImage(image, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

export function saveMenu(view) {
  const name = () => `convlens-${state.room}`;
  const problem = h("span", { role: "alert" });
  const save = (work) => async (event) => {
    event.target.disabled = true;
    problem.textContent = "";
    try { await work(); } catch (error) { problem.textContent = say("save.failed", { why: error.message }); } finally { event.target.disabled = false; }
  };
  return h("p", { class: "saving" },
    h("button", { class: "plain", onclick: save(async () => download(await asPng(view), `${name()}.png`)) }, say("save.png")),
    h("button", { class: "plain", onclick: save(async () =>
      download(new Blob([(await asSvg(view)).text], { type: "image/svg+xml" }), `${name()}.svg`)) }, say("save.svg")), problem);
}
