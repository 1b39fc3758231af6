// SHA-256 (FIPS 180-4). The browser's own, crypto.subtle, is only there for https and localhost.

const PRIMES = Array.from({ length: 312 }, (_, n) => n).filter((n) => n > 1 && !divisor(n));
const START = PRIMES.slice(0, 8).map((prime) => fraction(Math.sqrt(prime)));
const ROUNDS = PRIMES.slice(0, 64).map((prime) => fraction(Math.cbrt(prime)));

function divisor(n) {
  for (let d = 2; d * d <= n; d++) if (n % d === 0) return d;
  return 0;
}

/** The first 32 bits behind the point. */
function fraction(root) {
  return ((root - Math.floor(root)) * 2 ** 32) | 0;
}

/** The digest of bytes, as 64 hexadecimal digits. */
export function sha256(bytes) {
  const padded = new Uint8Array(Math.ceil((bytes.length + 9) / 64) * 64);
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  const view = new DataView(padded.buffer), state = Int32Array.from(START), words = new Int32Array(64);
  view.setBigUint64(padded.length - 8, BigInt(bytes.length) * 8n);
  for (let at = 0; at < padded.length; at += 64) {
    for (let i = 0; i < 16; i++) words[i] = view.getInt32(at + 4 * i);
    block(state, words);
  }
  return [...state].map((word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
}

function block(state, words) {
  for (let i = 16; i < 64; i++) {
    const near = words[i - 2], far = words[i - 15];
    const s0 = turned(far, 7) ^ turned(far, 18) ^ (far >>> 3), s1 = turned(near, 17) ^ turned(near, 19) ^ (near >>> 10);
    words[i] = (words[i - 16] + s0 + words[i - 7] + s1) | 0;
  }
  let [a, b, c, d, e, f, g, h] = state;
  for (let i = 0; i < 64; i++) {
    const s1 = turned(e, 6) ^ turned(e, 11) ^ turned(e, 25), choice = (e & f) ^ (~e & g);
    const s0 = turned(a, 2) ^ turned(a, 13) ^ turned(a, 22), majority = (a & b) ^ (a & c) ^ (b & c);
    const first = (h + s1 + choice + ROUNDS[i] + words[i]) | 0;
    [h, g, f, e, d, c, b, a] = [g, f, e, (d + first) | 0, c, b, a, (first + s0 + majority) | 0];
  }
  [a, b, c, d, e, f, g, h].forEach((word, i) => (state[i] = (state[i] + word) | 0));
}

function turned(word, by) {
  return (word >>> by) | (word << (32 - by));
}
