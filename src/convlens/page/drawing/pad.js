// A pad to draw on with mouse, pen or finger: strokes are kept as points, so that one can be taken back.

import { h } from "./elements.js";

export const SIDE = 280; // pixels of the pad's own picture
const FAINT = 127; // of 255: the soft edge that a rubber leaves is no ink

export function pad({ label, changed }) {
  const canvas = h("canvas", { class: "pad", width: SIDE, height: SIDE, role: "img", "aria-label": label });
  const context = canvas.getContext("2d", { willReadFrequently: false });
  let strokes = [], current = null, width = 20;

  function paper() {
    context.fillStyle = "#000";
    context.fillRect(0, 0, SIDE, SIDE);
  }

  function line(stroke, from) {
    context.lineCap = context.lineJoin = "round";
    context.strokeStyle = context.fillStyle = stroke.rubber ? "#000" : "#fff";
    context.lineWidth = stroke.rubber ? stroke.width * 1.6 : stroke.width;
    const points = stroke.points;
    context.beginPath();
    if (points.length === 1) {
      context.arc(points[0][0], points[0][1], context.lineWidth / 2, 0, 7);
      context.fill();
      return;
    }
    context.moveTo(...points[Math.max(from - 1, 0)]);
    for (const point of points.slice(Math.max(from, 1))) context.lineTo(...point);
    context.stroke();
  }

  function again() {
    paper();
    strokes.forEach((stroke) => line(stroke, 0));
    changed();
  }

  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * SIDE, ((event.clientY - box.top) / box.height) * SIDE];
  };
  const self = { canvas, rubber: false };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button > 0 || current) return; // a second finger draws nothing, and takes nothing away
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    current = { by: event.pointerId, points: [at(event)], width, rubber: self.rubber || event.buttons === 32 };
    strokes.push(current);
    line(current, 0);
    changed();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (current?.by !== event.pointerId) return;
    const from = current.points.length;
    const moves = event.getCoalescedEvents?.() ?? [];
    for (const move of moves.length ? moves : [event]) current.points.push(at(move));
    line(current, from);
    changed();
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => { if (current?.by === event.pointerId) current = null; });

  // is anything left of what was drawn?
  const inked = () => context.getImageData(0, 0, SIDE, SIDE).data.some((value, i) => i % 4 === 0 && value > FAINT);

  paper();
  return Object.assign(self, {
    setWidth: (value) => { width = value; },
    clear: () => { strokes = []; again(); },
    undo: () => { strokes.pop(); again(); },
    empty: () => !strokes.some((stroke) => !stroke.rubber) || (strokes.some((stroke) => stroke.rubber) && !inked()),
    draw: (given) => { // strokes [[[x, y], ...], ...] in 0..1, as if drawn
      strokes = given.map((points) => ({ points: points.map(([x, y]) => [x * SIDE, y * SIDE]), width, rubber: false }));
      again();
    },
    picture: () => new Promise((resolve) => canvas.toBlob(resolve, "image/png")),
  });
}
