// What a window makes of planes of numbers: convolution, maximum, mean; their sizes; the classic kernels.

export const CLASSIC = { // null: as many weights as the kernel has cells
  identity: [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
  edge: [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],
  sobelx: [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
  sobely: [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
  sharpen: [[0, -1, 0], [-1, 5, -1], [0, -1, 0]],
  emboss: [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]],
  blur: null,
  sepia: [[1]], // a 1 x 1 convolution over the colours
};

const SEPIA = [[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]];

export const outputSize = (n, { kernel, stride, padding, dilation }) => Math.floor((n + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1;

export const formula = (n, { kernel, stride, padding, dilation }) =>
  `⌊(${n} + 2·${padding} − ${dilation > 1 ? `(${dilation}·(${kernel} − 1) + 1)` : kernel}) / ${stride}⌋ + 1`;

// Pixels of the picture that one number sees after each of several layers (Araujo, Norris and Sim, Distill 2019).
export function receptive(layers) {
  let field = 1, jump = 1;
  return layers.map(({ kernel, stride, dilation }) => {
    field += (kernel - 1) * dilation * jump;
    jump *= stride;
    return field;
  });
}

export function slide({ height, width, channels }, now) {
  const { op, kernel, stride, padding, weights } = now;
  const dilation = op === "mean" ? 1 : now.dilation; // torch's mean pooling has none
  const [high, wide] = [outputSize(height, { ...now, dilation }), outputSize(width, { ...now, dilation })];
  if (high < 1 || wide < 1) return null;
  const colours = op === "convolution" && now.preset === "sepia";
  const planes = colours ? SEPIA.map((mix) => channels[0].map((_, i) => mix.reduce((sum, weight, c) => sum + weight * (channels[c] ?? channels[0])[i], 0))) : channels;
  const made = planes.map((plane) => {
    const out = new Float32Array(high * wide);
    for (let y = 0; y < high; y++) {
      for (let x = 0; x < wide; x++) {
        let sum = op === "max" ? -Infinity : 0;
        for (let i = 0; i < kernel; i++) {
          const row = y * stride - padding + i * dilation;
          for (let j = 0; j < kernel; j++) {
            const column = x * stride - padding + j * dilation;
            const there = row >= 0 && column >= 0 && row < height && column < width;
            if (op === "max") { if (there) sum = Math.max(sum, plane[row * width + column]); } else if (there) sum += plane[row * width + column] * (op === "mean" ? 1 : colours ? 1 : weights[i][j]);
          }
        }
        out[y * wide + x] = op === "mean" ? sum / (kernel * kernel) : sum === -Infinity ? 0 : sum;
      }
    }
    return out;
  });
  return { height: high, width: wide, channels: made };
}
