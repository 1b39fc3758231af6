// One scale for every signed number on the page: 0 is dark, what speaks up is amber, what is below zero blue. So a ReLU
// is seen at work: the blue goes out.

const STOPS = [
  [-1, [205, 230, 255]], [-0.55, [64, 140, 222]], [-0.2, [30, 66, 112]], [0, [20, 24, 29]],
  [0.2, [104, 66, 16]], [0.55, [226, 144, 28]], [1, [255, 243, 214]],
];

const TABLE = new Uint32Array(511);
const CSS = [];
for (let i = 0; i < 511; i++) {
  const t = (i - 255) / 255;
  const k = Math.max(STOPS.findIndex(([at]) => at >= t), 1);
  const [[a, from], [b, to]] = [STOPS[k - 1], STOPS[k]];
  const [red, green, blue] = from.map((value, c) => Math.round(value + ((t - a) / (b - a)) * (to[c] - value)));
  TABLE[i] = (255 << 24) | (blue << 16) | (green << 8) | red;
  const [r, g, b_] = [red, green, blue].map((value) => (value <= 10 ? value / 3294 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  CSS.push([`rgb(${red},${green},${blue})`, 0.2126 * r + 0.7152 * g + 0.0722 * b_]);
}

const place = (t) => 255 + Math.round(Math.max(-1, Math.min(1, t || 0)) * 255);

export const colour = (t) => CSS[place(t)][0];
export const ink = (t) => (CSS[place(t)][1] > 0.179 ? "#000" : "#fff"); // whichever WCAG finds the stronger contrast
export const extentOf = (values) => {
  let most = 1e-12;
  for (const value of values) if (Math.abs(value) > most && Number.isFinite(value)) most = Math.abs(value);
  return most;
};

// `values`, a row after the other, between -extent and extent; a pixel each.
export function paint(canvas, values, height, width, extent) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = TABLE[place(values[i] / extent)];
  context.putImageData(image, 0, 0);
}

// Of bytes that stand for numbers between `low` and `high`, a row after the other, the address of their picture: for an
// <img>, which is painted with the page around it. Each canvas is a layer of its own for the browser, and hundreds of them
// are slow. The picture is a BMP of 8 bits, whose palette are the colours.
export function depicted(bytes, height, width, low, high) {
  const extent = Math.max(Math.abs(low), Math.abs(high), 1e-12), begins = 54 + 4 * 256, stride = Math.ceil(width / 4) * 4;
  const file = new Uint8Array(begins + stride * height), head = new DataView(file.buffer);
  head.setUint16(0, 0x424d); // "BM"
  const fields = [[2, file.length], [10, begins], [14, 40], [18, width], [22, -height], [26, 1 + (8 << 16)], [46, 256]]; // below 0: from the top down
  for (const [at, value] of fields) head.setInt32(at, value, true);
  for (let i = 0; i < 256; i++) {
    const rgb = TABLE[place((low + (i / 255) * (high - low)) / extent)];
    head.setUint32(54 + 4 * i, ((rgb & 255) << 16) | (rgb & 0xff00) | ((rgb >> 16) & 255), true);
  }
  for (let row = 0; row < height; row++) file.set(bytes.subarray(row * width, (row + 1) * width), begins + row * stride);
  let text = "";
  for (let at = 0; at < file.length; at += 8192) text += String.fromCharCode(...file.subarray(at, at + 8192));
  return `data:image/bmp;base64,${btoa(text)}`;
}

// Grays, 0..255.
export function paintGray(canvas, values, height, width) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    image.data[4 * i] = image.data[4 * i + 1] = image.data[4 * i + 2] = values[i];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}
