// A map drawn large, a square a number, with a window over it. Its picture is a canvas of as many pixels as the map has
// numbers; what lies over it is SVG in the map's own coordinates, so that it fits at every size.

import { paint, paintGray } from "./colours.js";
import { h, s } from "./elements.js";

export function stage({ height, width, pad = [0, 0], label, caption, onpixel, onleave }) {
  const [py, px] = pad;
  const canvas = h("canvas", { class: "pixels" });
  const frame = s("rect", { class: "window", visibility: "hidden" });
  const cells = s("g", { class: "cells" });
  const cover = s("path", { class: "cover", visibility: "hidden" });
  const over = s("svg", { class: "over", viewBox: `${-px} ${-py} ${width + 2 * px} ${height + 2 * py}`, preserveAspectRatio: "none", "aria-hidden": "true" }, cover, cells, frame);
  const box = h("div", { class: `stage${onpixel ? " live" : ""}${py || px ? " padded" : ""}` }, canvas, over);
  const line = Math.max(height + 2 * py, width + 2 * px) / 130; // as wide as 2 px on a map of 260
  frame.setAttribute("stroke-width", line);
  box.style.aspectRatio = `${width + 2 * px} / ${height + 2 * py}`;
  const share = (part, whole) => `${(100 * part) / whole}%`;
  Object.assign(canvas.style, { left: share(px, width + 2 * px), top: share(py, height + 2 * py),
    width: share(width, width + 2 * px), height: share(height, height + 2 * py) });
  let at = [0, 0];

  const pixel = (event) => {
    const bounds = over.getBoundingClientRect();
    const row = Math.floor(((event.clientY - bounds.top) / bounds.height) * (height + 2 * py) - py);
    const column = Math.floor(((event.clientX - bounds.left) / bounds.width) * (width + 2 * px) - px);
    return [Math.min(Math.max(row, 0), height - 1), Math.min(Math.max(column, 0), width - 1)];
  };
  if (onpixel) {
    Object.assign(box, { tabIndex: 0 });
    box.setAttribute("role", "application");
    box.setAttribute("aria-label", label);
    for (const name of ["pointermove", "pointerdown"]) {
      box.addEventListener(name, (event) => {
        const [row, column] = pixel(event);
        if (name === "pointermove" && row === at[0] && column === at[1] && frame.getAttribute("visibility") !== "hidden") return;
        at = [row, column];
        onpixel(row, column, name === "pointerdown");
      });
    }
    box.addEventListener("pointerleave", () => onleave?.());
    box.addEventListener("keydown", (event) => {
      const move = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key];
      if (!move) return;
      event.preventDefault();
      at = [Math.min(Math.max(at[0] + move[0], 0), height - 1), Math.min(Math.max(at[1] + move[1], 0), width - 1)];
      onpixel(...at, true);
    });
  } else {
    box.setAttribute("role", "img");
    box.setAttribute("aria-label", label);
  }

  return {
    element: h("figure", { class: "staged" }, box, caption ? h("figcaption", {}, caption) : null),
    box,
    paint: (values, extent) => paint(canvas, values, height, width, extent),
    gray: (values) => paintGray(canvas, values, height, width),
    picture: (image) => { canvas.width = width; canvas.height = height; canvas.getContext("2d").drawImage(image, 0, 0, width, height); },
    // the window of kh x kw cells whose corner is at (row, column); `step` apart where it is dilated
    window: (row, column, kh = 1, kw = 1, [sy, sx] = [1, 1]) => {
      if (kh === 1 && kw === 1 && onpixel) at = [row, column];
      Object.entries({ x: column, y: row, width: (kw - 1) * sx + 1, height: (kh - 1) * sy + 1, visibility: "visible" })
        .forEach(([name, value]) => frame.setAttribute(name, value));
      if (sy > 1 || sx > 1) {
        const wanted = kh * kw;
        while (cells.childElementCount < wanted) cells.append(s("rect", { width: 1, height: 1 }));
        [...cells.children].forEach((cell, i) => {
          cell.setAttribute("x", column + (i % kw) * sx);
          cell.setAttribute("y", row + Math.floor(i / kw) * sy);
        });
      }
    },
    hide: () => frame.setAttribute("visibility", "hidden"),
    // what is not computed yet: everything behind (row, column)
    uncover: (row, column) => {
      cover.setAttribute("visibility", row === null ? "hidden" : "visible");
      if (row !== null) cover.setAttribute("d", `M${column + 1} ${row}H${width}V${row + 1}H${column + 1}ZM0 ${row + 1}H${width}V${height}H0Z`);
    },
  };
}
