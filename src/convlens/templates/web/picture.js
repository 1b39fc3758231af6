// A picture file -> its pixels as they stand in it, turned as its EXIF says.

import { Refusal } from "./refusal.js";

const MAX_PIXELS = 100_000_000, MAX_SIDE = 65_535; // as in Python

/** A Blob -> {data: RGBA bytes, width, height}. Refuses what the browser cannot decode, and what is too large. */
export async function decode(file) {
  const bitmap = await bitmapOf(file);
  const { width, height } = bitmap;
  try {
    if (width * height > MAX_PIXELS) throw new Refusal("large", width, height, MAX_PIXELS);
    if (Math.max(width, height) > MAX_SIDE) throw new Refusal("long", width, height, MAX_SIDE);
    return pixelsOf(bitmap, width, height);
  } finally {
    bitmap.close();
  }
}

/** A canvas larger than the browser's limit (Safari's is 16.7 million pixels) stays empty and says nothing, so that a
 * large picture would be classified as a white one: whether it holds pixels is tried with the last of them. */
function pixelsOf(bitmap, width, height) {
  try {
    const brush = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    brush.fillRect(width - 1, height - 1, 1, 1);
    if (brush.getImageData(width - 1, height - 1, 1, 1).data[3]) {
      brush.clearRect(width - 1, height - 1, 1, 1);
      brush.drawImage(bitmap, 0, 0);
      return brush.getImageData(0, 0, width, height);
    }
  } catch {
    // no canvas of that size, or no memory for its pixels
  }
  throw new Refusal("browser", width, height);
}

async function bitmapOf(file) {
  try {
    // colours as they stand in the file, as Python reads them: not converted to the screen's
    const plain = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
    return await createImageBitmap(file, plain);
  } catch {
    throw new Refusal("unreadable");
  }
}
