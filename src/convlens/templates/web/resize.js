// A picture's pixels as the network takes them, to the bit as ConvLens prepares them in Python with Pillow: transparency
// laid on white, gray by the weights of ITU-R 601, an antialiased bicubic resize in fixed point.

const BITS = 22; // behind the point of a weight: 32, less 8 of a pixel, less 2 of what a sum overshoots

/** RGBA bytes -> uint8 pixels (channels, height, width) as `input` says: {size: [height, width], channels: 1 or 3,
 * resize: "fit" | "crop" | "stretch"}. What is read is not changed. */
export function prepare({ data, width, height }, input) {
  const [rows, columns] = input.size;
  const picture = { bands: opaque(data, input.channels), width, height };
  if (width === columns && height === rows) return joined(picture.bands);
  if (input.resize === "fit") return joined(fitted(picture, columns, rows));
  const box = input.resize === "crop" ? middle(width, height, columns, rows) : [0, 0, width, height];
  return joined(resized(picture, columns, rows, box));
}

/** The bands of a picture without transparency: one of gray, or red, green and blue. */
function opaque(data, channels) {
  const bands = Array.from({ length: channels }, () => new Uint8Array(data.length / 4));
  for (let i = 0, at = 0; at < data.length; i++, at += 4) {
    let red = data[at], green = data[at + 1], blue = data[at + 2];
    const alpha = data[at + 3];
    if (alpha !== 255) {
      red = onWhite(red, alpha);
      green = onWhite(green, alpha);
      blue = onWhite(blue, alpha);
    }
    if (channels === 1) {
      bands[0][i] = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16;
    } else {
      bands[0][i] = red;
      bands[1][i] = green;
      bands[2][i] = blue;
    }
  }
  return bands;
}

/** (value * alpha + 255 * (255 - alpha)) / 255, with the 7 more bits that Pillow rounds with. */
function onWhite(value, alpha) {
  const sum = ((value * alpha + 255 * (255 - alpha)) << 7) + (0x80 << 7);
  return ((sum >> 8) + sum) >> 15;
}

/** The box (left, top, right, bottom) in the middle of a picture that has the proportions asked for. */
function middle(width, height, columns, rows) {
  const asked = columns / rows, has = width / height;
  const w = has > asked ? asked * height : width;
  const h = has < asked ? width / asked : height;
  const left = (width - w) * 0.5, top = (height - h) * 0.5;
  return [left, top, left + w, top + h];
}

/** The whole picture in the middle of a black one. */
function fitted(picture, columns, rows) {
  const { width, height } = picture;
  const scale = Math.min(columns / width, rows / height);
  const w = Math.max(halfToEven(width * scale), 1), h = Math.max(halfToEven(height * scale), 1);
  const left = Math.floor((columns - w) / 2), top = Math.floor((rows - h) / 2);
  return resized(picture, w, h, [0, 0, width, height]).map((band) => {
    const canvas = new Uint8Array(columns * rows);
    for (let y = 0; y < h; y++) canvas.set(band.subarray(y * w, (y + 1) * w), (top + y) * columns + left);
    return canvas;
  });
}

/** Python's round(). */
function halfToEven(value) {
  const below = Math.floor(value), over = value - below;
  return over > 0.5 || (over === 0.5 && below % 2 === 1) ? below + 1 : below;
}

/** The bands of what lies in `box`, at another size. Rows first, then columns; where far more rows than columns fall away
 * the other way round, as Pillow does since 13: what overshoots black and white is cut off in between, so it shows. */
function resized({ bands, width, height }, columns, rows, box) {
  const [left, top, right, bottom] = box.map(Math.fround); // Pillow keeps a box in single precision
  const across = columns !== width || left !== 0 || right !== width ? windows(width, left, right, columns) : null;
  const down = rows !== height || top !== 0 || bottom !== height ? windows(height, top, bottom, rows) : null;
  const columnsFirst = rows < height && height - rows > 2 * (width - columns);
  return bands.map((band) => {
    if (columnsFirst) return horizontally(vertically(band, width, down), width, across);
    return vertically(horizontally(band, width, across, down), columns, down);
  });
}

/** For each of `count` pixels along a side: the pixels `from` on that it is made of, and their weights, which sum to
 * 2 ** BITS but for rounding. `length` is the side's, of which [start, end] is taken. */
function windows(length, start, end, count) {
  const scale = Math.fround(end - start) / count;
  const stretch = Math.max(scale, 1), reach = 2 * stretch; // the filter grows with what a pixel covers
  return Array.from({ length: count }, (_, i) => {
    const centre = start + (i + 0.5) * scale;
    const from = Math.max(Math.trunc(centre - reach + 0.5), 0);
    const to = Math.min(Math.trunc(centre + reach + 0.5), length);
    const real = Array.from({ length: to - from }, (_, k) => bicubic((k + from - centre + 0.5) * (1 / stretch)));
    const sum = real.reduce((a, b) => a + b, 0);
    const rounded = real.map((w) => Math.trunc((sum ? w / sum : w) * 2 ** BITS + (w < 0 ? -0.5 : 0.5)));
    return { from, weights: Int32Array.from(rounded) };
  });
}

/** Keys' cubic convolution with a = -1/2 (IEEE Trans. ASSP 29, 1981). */
function bicubic(x) {
  const a = -0.5, t = Math.abs(x);
  if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
}

/** Every row of a band brought to as many pixels as there are windows; of rows that no window of `down` needs nothing. */
function horizontally(band, width, windows, down) {
  if (!windows) return band;
  const columns = windows.length, found = new Uint8ClampedArray((band.length / width) * columns);
  const first = down ? down[0].from : 0;
  const last = down ? down.at(-1).from + down.at(-1).weights.length : band.length / width;
  for (let y = first; y < last; y++) {
    for (let x = 0; x < columns; x++) {
      const { from, weights } = windows[x], start = y * width + from;
      let sum = 1 << (BITS - 1);
      for (let k = 0; k < weights.length; k++) sum = (sum + Math.imul(band[start + k], weights[k])) | 0;
      found[y * columns + x] = sum >> BITS;
    }
  }
  return found;
}

function vertically(band, width, windows) {
  if (!windows) return band;
  const found = new Uint8ClampedArray(windows.length * width);
  for (let y = 0; y < windows.length; y++) {
    const { from, weights } = windows[y], start = from * width;
    for (let x = 0; x < width; x++) {
      let sum = 1 << (BITS - 1);
      for (let k = 0; k < weights.length; k++) sum = (sum + Math.imul(band[start + k * width + x], weights[k])) | 0;
      found[y * width + x] = sum >> BITS;
    }
  }
  return found;
}

function joined(bands) {
  const pixels = new Uint8Array(bands.length * bands[0].length);
  bands.forEach((band, i) => pixels.set(band, i * band.length));
  return pixels;
}
