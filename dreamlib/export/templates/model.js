// Seeds to images: the generator, the network and the samplers of dreamlib.  It runs in a worker.
"use strict";
const f32 = Math.fround;
const fma = (a, b, c) => f32(a * b + c); // rounded once, as the processor's own

// ---------------------------------------------------------------- noise, as PyTorch's CPU draws it

const IMAGE = 0xc53d045f; // CRC-32 of "image": what these random numbers are for

// The low 32 bits of NumPy's SeedSequence([IMAGE, seed, image, t]); a generator's seed has no more.
function keyOf(seed, image, t) {
  let factor = 0x43b0d7e5;
  const scramble = (word, times) => {
    word ^= factor;
    factor = Math.imul(factor, times);
    word = Math.imul(word, factor);
    return word ^ (word >>> 16);
  };
  const pool = [IMAGE, seed, image, t].map((word) => scramble(word, 0x931e8875));
  for (let source = 0; source < 4; source++)
    for (let target = 0; target < 4; target++) {
      if (source === target) continue;
      const other = scramble(pool[source], 0x931e8875);
      const mixed = (Math.imul(pool[target], 0xca01f9dd) - Math.imul(other, 0x4973f715)) | 0;
      pool[target] = mixed ^ (mixed >>> 16);
    }
  factor = 0x8b51f9dd;
  return scramble(pool[0], 0x58f38ded) >>> 0;
}

// Mersenne Twister (MT19937), 24 bits at a time: uniform in [0, 1).
function* uniforms(seed) {
  const state = new Uint32Array(624);
  state[0] = seed;
  for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  for (;;) {
    for (let i = 0; i < 624; i++) {
      const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
      state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    for (let i = 0; i < 624; i++) {
      let y = state[i];
      y ^= y >>> 11;
      y ^= (y << 7) & 0x9d2c5680;
      y ^= (y << 15) & 0xefc60000;
      y ^= y >>> 18;
      yield (y & 0xffffff) / 0x1000000;
    }
  }
}

const bits = new Int32Array(1);
const number = new Float32Array(bits.buffer);

function polynomial(x, coefficients) {
  return coefficients.reduce((y, c) => fma(y, x, f32(c)));
}

// Cephes' single-precision logarithm, operation by operation as PyTorch's vector code does it.
function log(x) {
  number[0] = x;
  let e = (bits[0] >> 23) - 126;
  bits[0] = (bits[0] & 0x7fffff) | 0x3f000000;
  let m = number[0];
  if (m < f32(0.7071067811865476)) (e -= 1), (m = f32(m + f32(m - 1)));
  else m = f32(m - 1);
  const z = f32(m * m);
  let y = polynomial(m, [f32(7.0376836292e-2), -1.151461031e-1, 1.167699874e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1]);
  y = fma(f32(y * m), z, f32(e * f32(-2.12194440e-4)));
  y = fma(z, -0.5, y);
  return fma(e, 0.693359375, f32(m + y));
}

// Cephes' sine and cosine, likewise.
function sineCosine(x) {
  const octant = (Math.trunc(f32(x * f32(1.27323954473516))) + 1) & ~1;
  for (const part of [-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8]) x = fma(octant, f32(part), x);
  const z = f32(x * x);
  let even = polynomial(z, [f32(2.443315711809948e-5), -1.388731625493765e-3, 4.166664568298827e-2]);
  even = f32(fma(f32(even * z), z, -f32(z * 0.5)) + 1);
  const odd = fma(f32(polynomial(z, [f32(-1.9515295891e-4), 8.3321608736e-3, -1.6666654611e-1]) * z), x, x);
  const [sine, cosine] = octant & 2 ? [even, odd] : [odd, even];
  return [octant & 4 ? -sine : sine, (octant - 2) & 4 ? cosine : -cosine];
}

// Standard normal numbers, `count` of them (16 or more): Box and Muller, in blocks of 16.
function normal(seed, count) {
  const source = uniforms(seed);
  const out = Float32Array.from({ length: count }, () => source.next().value);
  const block = (first) => {
    for (let j = first; j < first + 8; j++) {
      const radius = f32(Math.sqrt(f32(-2 * log(f32(1 - out[j])))));
      const [sine, cosine] = sineCosine(f32(f32(2 * Math.PI) * out[j + 8]));
      (out[j] = f32(radius * cosine)), (out[j + 8] = f32(radius * sine));
    }
  };
  for (let first = 0; first + 16 <= count; first += 16) block(first);
  if (count % 16) {
    for (let j = count - 16; j < count; j++) out[j] = source.next().value;
    block(count - 16);
  }
  return out;
}

// ---------------------------------------------------------------- the network

class Network {
  // kernels: the exports of kernels.wasm; numbers: those of all arrays, as page_model.py packs them
  constructor(kernels, model, numbers) {
    Object.assign(this, { kernels, net: model.net, at: new Map(), used: kernels.__heap_base.value });
    const matrices = model.arrays.reduce((total, [, count, columns]) => total + (columns ? count : 0), 0);
    const high = numbers.byteLength - 2 * matrices, low = high + matrices;
    const floats = new Float32Array(numbers.slice(0, high)), bytes = new DataView(numbers);
    let vector = 0, matrix = 0;
    for (const [name, count, columns] of model.arrays) {
      const pointer = this.room(count), view = this.floats(pointer, count), height = (8 * count) / columns;
      if (columns)
        for (let i = 0; i < count; i++, matrix++) {
          const step = floats[vector + 8 * Math.floor(i / height) + (i % 8)];
          view[i] = step * (256 * bytes.getInt8(high + matrix) + bytes.getUint8(low + matrix));
        }
      else view.set(floats.subarray(vector, vector + count));
      vector += columns || count;
      this.at.set(name, { pointer, count });
    }
    this.base = this.used;
  }

  room(count) {
    const pointer = 16 * Math.ceil(this.used / 16);
    this.used = pointer + 4 * count;
    const lacking = this.used + 64 - this.kernels.memory.buffer.byteLength;
    if (lacking > 0) this.kernels.memory.grow(Math.ceil(lacking / 65536) + 64);
    return pointer;
  }

  floats(pointer, count) {
    return new Float32Array(this.kernels.memory.buffer, pointer, count);
  }

  put(values) {
    const pointer = this.room(values.length);
    this.floats(pointer, values.length).set(values);
    return pointer;
  }

  // x [rows,k] times a layer's matrix, plus its bias -> [rows,n]; n is a multiple of 8
  linear(name, x, rows, out = this.room(rows * this.at.get(`${name}.bias`).count)) {
    const bias = this.at.get(`${name}.bias`), weight = this.at.get(`${name}.weight`), n = bias.count;
    this.kernels.product(rows, n, weight.count / n, x, weight.pointer, bias.pointer, out);
    return { x: out, c: n };
  }

  convolve(name, x, side, c, stride = 1) {
    const rows = (side / stride) ** 2, out = this.room(rows * this.at.get(`${name}.bias`).count);
    const before = this.used, around = this.room(rows * 9 * c);
    this.kernels.neighbourhoods(side, c, stride, x, around);
    this.linear(name, around, rows, out);
    this.used = before; // the largest array by far: its room is free again
    return { x: out, c: this.at.get(`${name}.bias`).count };
  }

  normalised(name, x, side, c, active) {
    const gain = this.at.get(`${name}.weight`).pointer, shift = this.at.get(`${name}.bias`).pointer;
    const out = this.room(side * side * c);
    this.kernels.normalise(side * side, c, 8, active ? 1 : 0, x, gain, shift, out);
    return out;
  }

  block(name, x, side, c, emb) {
    let h = this.convolve(`${name}.conv1`, this.normalised(`${name}.norm1`, x, side, c, true), side, c);
    this.kernels.modulate(side * side, h.c, this.linear(`${name}.time`, emb, 1).x, h.x);
    h = this.convolve(`${name}.conv2`, this.normalised(`${name}.norm2`, h.x, side, h.c, true), side, h.c);
    const way = this.at.has(`${name}.shortcut.weight`) ? this.linear(`${name}.shortcut`, x, side * side).x : x;
    this.kernels.add(side * side * h.c, way, h.x);
    return h;
  }

  attention(name, x, side, c) {
    const pixels = side * side, heads = this.net.heads;
    const qkv = this.linear(`${name}.qkv`, this.normalised(`${name}.norm`, x, side, c, false), pixels).x;
    const read = this.room(pixels * c);
    this.kernels.attend(pixels, heads, c / heads, qkv, this.room(pixels + 4), read);
    const out = this.linear(`${name}.proj`, read, pixels).x;
    this.kernels.add(pixels * c, x, out);
    return out;
  }

  level(name, x, side, c, emb) {
    let h = { x, c };
    for (let i = 0; i < this.net.blocks; i++) h = this.block(`${name}.blocks.${i}`, h.x, side, h.c, emb);
    return this.net.attention.includes(side) ? this.attention(`${name}.attention`, h.x, side, h.c) : h.x;
  }

  embedding(t, labels) {
    const width = this.net.widths[0], half = width / 2, waves = new Float32Array(width);
    for (let i = 0; i < half; i++) {
      const angle = f32(t * f32(Math.exp(f32(f32(f32(-Math.log(10000)) * i) / half))));
      (waves[i] = Math.sin(angle)), (waves[half + i] = Math.cos(angle));
    }
    const hidden = this.linear("time.0", this.put(waves), 1);
    this.kernels.silu(hidden.c, hidden.x);
    const emb = this.linear("time.2", hidden.x, 1);
    this.net.labels.forEach((_, k) => { // row 0 of a table stands for "not told"
      const row = labels ? labels[k] + 1 : 0, table = this.at.get(`labels.${k}.weight`).pointer;
      this.kernels.add(emb.c, table + 4 * row * emb.c, emb.x);
    });
    this.kernels.silu(emb.c, emb.x);
    return emb.x;
  }

  // x_t [C,S,S], t, labels or null -> the network's output [C,S,S]
  answer(x_t, t, labels) {
    this.used = this.base;
    const { size, channels, patch, widths } = this.net, side0 = size / patch;
    const emb = this.embedding(t, labels), skips = [];
    let h = this.convolve("stem", this.put(this.folded(x_t, channels * patch ** 2)), side0, channels * patch ** 2);
    let side = side0;
    widths.forEach((width, i) => {
      const skip = this.level(`down.${i}`, h.x, side, h.c, emb);
      skips.push(skip);
      h = this.convolve(`shrink.${i}`, skip, side, width, 2);
      side /= 2;
    });
    h = this.block("middle.first", h.x, side, h.c, emb);
    h.x = this.attention("middle.attention", h.x, side, h.c);
    h = this.block("middle.second", h.x, side, h.c, emb);
    for (let i = widths.length - 1; i >= 0; i--) {
      const width = widths[i], grown = this.room(4 * side * side * width);
      const products = this.linear(`grow.${i}`, h.x, side * side).x;
      this.kernels.grow(side, width, products, this.at.get(`grow.${i}.own`).pointer, grown);
      side *= 2;
      const both = this.room(2 * side * side * width);
      this.kernels.beside(side * side, width, width, grown, skips[i], both);
      h = { x: this.level(`up.${i}`, both, side, 2 * width, emb), c: width };
    }
    const head = this.convolve("head", this.normalised("norm", h.x, side, h.c, true), side, h.c);
    return this.unfolded(this.floats(head.x, side * side * head.c), head.c);
  }

  // [C,S,S] to pixels before channels, patch x patch of them a channel each; and back from `step` per pixel
  folded(x, step) {
    return this.fold(x, new Float32Array(x.length), step, true);
  }

  unfolded(values, step) {
    return this.fold(values, new Float32Array(this.net.channels * this.net.size ** 2), step, false);
  }

  fold(from, to, step, inwards) {
    const { size, channels, patch } = this.net, side = size / patch;
    for (let c = 0; c < channels; c++)
      for (let y = 0; y < size; y++)
        for (let z = 0; z < size; z++) {
          const pixel = (c * size + y) * size + z, within = (c * patch + (y % patch)) * patch + (z % patch);
          const place = (Math.floor(y / patch) * side + Math.floor(z / patch)) * step + within;
          if (inwards) to[place] = from[pixel];
          else to[pixel] = from[place];
        }
    return to;
  }
}

// ---------------------------------------------------------------- samplers

const CLEAN = -1; // the timestep of clean data
const LEAST_SIGNAL = 0.01, RHO = 3; // as in dreamlib/diffusion/samplers.py, which says why

const sum = (p, x, q, y) => x.map((value, i) => fma(y[i], f32(q), f32(f32(p) * value)));
const added = (x, scale, y) => x.map((value, i) => fma(y[i], f32(scale), value));
const held = (x) => x.map((value) => Math.min(1, Math.max(-1, value)));
function bytes(x) {
  if (!x.every(Number.isFinite)) throw new Error("the network gave numbers that are not finite");
  return Uint8Array.from(x, (v) => Math.floor(Math.min(255, Math.max(0, f32(f32(127.5 * v) + 128)))));
}

class Diffusion {
  constructor(kernels, model, numbers) {
    Object.assign(this, model, { network: new Network(kernels, model, numbers), total: model.alpha_bar.length });
    this.count = model.net.channels * model.net.size ** 2;
  }

  bar(t) {
    return t < 0 ? 1 : this.alpha_bar[t];
  }

  roots(t) {
    return [Math.sqrt(this.bar(t)), Math.sqrt(1 - this.bar(t))];
  }

  sigma(t) {
    return Math.sqrt((1 - this.bar(t)) / this.bar(t));
  }

  noise(image, t) {
    return normal(keyOf(this.sample.seed, image, t), this.count);
  }

  // falling timesteps, as the samplers of dreamlib space them
  spaced({ steps, spacing, sigma_min }) {
    const even = (x) => { // round half to even, as Python does
      const down = Math.floor(x), rest = x - down;
      return rest === 0.5 ? down + (down % 2) : Math.round(x);
    };
    if (spacing === "trailing") return Array.from({ length: steps }, (_, i) => even(this.total - (i * this.total) / steps) - 1);
    let top = this.alpha_bar.findLastIndex((bar) => Math.sqrt(bar) >= LEAST_SIGNAL);
    if (steps > top + 1) top = this.total - 1;
    if (steps === 1) return [top];
    const low = Math.max(sigma_min, this.sigma(0)) ** (1 / RHO), high = this.sigma(top) ** (1 / RHO);
    const nearest = (wanted) => {
      let best = 0;
      const apart = (t) => Math.abs(Math.log(this.sigma(t)) - Math.log(wanted));
      for (let t = 1; t < this.total; t++) if (apart(t) < apart(best)) best = t;
      return best;
    };
    const place = {
      karras: (share) => nearest((low + share * (high - low)) ** RHO),
      quadratic: (share) => even(top * share ** 2),
      uniform: (share) => even(top * share),
    }[spacing];
    const rising = Array.from({ length: steps }, (_, i) => place(i / (steps - 1)));
    for (let i = 1; i < steps; i++) rising[i] = Math.max(rising[i], rising[i - 1] + 1);
    for (let i = 0; i < steps; i++) rising[i] = Math.min(rising[i], top - (steps - 1 - i));
    return rising.reverse();
  }

  // the network's noise in x, guided if it is asked to be
  eps(x, t, labels, { guidance }) {
    const [a, s] = this.roots(t).map(f32);
    const [p, q] = {
      eps: [0, 1], v: [s, a], x0: [f32(1 / s), f32(-a / s)], velocity: [f32(1 / f32(a + s)), f32(a / f32(a + s))],
    }[this.prediction];
    const read = (told) => {
      const output = this.network.answer(x, t, told);
      return this.prediction === "eps" ? output : x.map((value, i) => f32(f32(p * value) + f32(q * output[i])));
    };
    let eps = read(labels);
    if (labels && guidance !== 1) {
      const none = read(labels.map(() => -1));
      eps = none.map((value, i) => f32(value + f32(f32(guidance) * f32(eps[i] - value))));
    }
    return eps;
  }

  // every step of one image: {t, x, x0} with x the state it arrives at and x0 what the network saw
  *steps(start, noise, labels, sample) {
    const times = [...this.spaced(sample), CLEAN];
    let x = start, before = null;
    for (let i = 0; i + 1 < times.length; i++) {
      const [t, previous] = [times[i], times[i + 1]], [a, s] = this.roots(t);
      let x0 = sum(1 / a, x, -s / a, this.eps(x, t, labels, sample));
      if (sample.clamp) x0 = held(x0);
      [x, before] = this[sample.sampler](x, x0, t, previous, before, noise, sample);
      yield { t, x, x0 };
    }
  }

  dpmpp_2m(x, x0, t, previous, before, noise, { eta }) {
    if (previous < 0) return [x0, null];
    const lam = (at) => 0.5 * Math.log(this.bar(at) / (1 - this.bar(at))), h = lam(previous) - lam(t);
    const beyond = before ? h / (2 * before.h) : 0;
    const [, s] = this.roots(t), [aNext, sNext] = this.roots(previous);
    const weight = -aNext * Math.expm1(-(1 + eta) * h);
    let next = sum((sNext / s) * Math.exp(-eta * h), x, weight * (1 + beyond), x0);
    if (before) next = added(next, -weight * beyond, before.x0);
    if (eta > 0) next = added(next, sNext * Math.sqrt(-Math.expm1(-2 * eta * h)), noise(t));
    return [next, { x0, h }];
  }

  ddim(x, x0, t, previous, before, noise, { eta }) {
    const bar = this.bar(t), next = this.bar(previous), [a, s] = this.roots(t);
    const sigma = eta * Math.sqrt(((1 - next) / (1 - bar)) * (1 - bar / next));
    const pull = Math.sqrt(Math.max(1 - next - sigma ** 2, 0));
    const moved = sum(pull / s, x, Math.sqrt(next) - (pull * a) / s, x0);
    return [sigma > 0 ? added(moved, sigma, noise(t)) : moved, null];
  }

  ddpm(x, x0, t, previous, before, noise, { variance, temperature }) {
    const bar = this.bar(t), next = this.bar(previous), alpha = bar / next, beta = 1 - alpha;
    const moved = sum((Math.sqrt(next) * beta) / (1 - bar), x0, (Math.sqrt(alpha) * (1 - next)) / (1 - bar), x);
    const wide = variance === "fixed_large" && previous >= 0;
    const spread = wide ? beta : (beta * (1 - next)) / (1 - bar);
    return [spread > 0 ? added(moved, temperature * Math.sqrt(spread), noise(t)) : moved, null];
  }

  // what image `seed` is told: `chosen` labels, or those that dreamlib tells it
  labelsOf(seed, chosen) {
    if (!this.net.labels.length) return null;
    const own = this.told[seed % this.told.length];
    return own.map((label, k) => (chosen && chosen[k] >= 0 ? chosen[k] : label));
  }

  // job: {seed, sample, labels, states}, or {between: [first, last], share, sample, labels}
  *draw({ seed, between, share, sample, labels }) {
    const first = between ? between[0] : seed;
    let start = this.noise(first, this.total);
    if (between) start = arc(start, this.noise(between[1], this.total), share);
    const settings = between ? withoutFresh(sample) : sample;
    const states = this.steps(start, (t) => this.noise(first, t), this.labelsOf(first, labels), settings);
    let x = start;
    for (const step of states) {
      yield { t: step.t, x: bytes(x), x0: bytes(step.x0) };
      x = step.x;
    }
    return bytes(x);
  }
}

// a walk leaves out noise that would be added on the way: neighbours would have nothing in common
function withoutFresh(sample) {
  return { ...sample, eta: 0, sampler: sample.sampler === "ddpm" ? "ddim" : sample.sampler };
}

// from a to b along the great circle, so that norms stay those of noise
function arc(a, b, share) {
  const dot = (x, y) => x.reduce((total, value, i) => total + value * y[i], 0);
  const angle = Math.acos(dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b)));
  const [near, far] = [Math.sin((1 - share) * angle), Math.sin(share * angle)];
  return a.map((value, i) => (near * value + far * b[i]) / Math.sin(angle));
}

// ---------------------------------------------------------------- the worker

async function load({ kernels, model, numbers }) {
  const { instance } = await WebAssembly.instantiate(kernels);
  return new Diffusion(instance.exports, model, numbers);
}

if (typeof WorkerGlobalScope !== "undefined") {
  let diffusion = null;
  onmessage = async ({ data }) => {
    try {
      if (data.kernels) diffusion = await load(data);
      if (!data.job) return postMessage({ ready: true });
      const states = [], drawing = diffusion.draw(data.job);
      let step = drawing.next();
      for (; !step.done; step = drawing.next()) if (data.job.states) states.push(step.value);
      postMessage({ id: data.id, image: step.value, states });
    } catch (error) {
      postMessage({ id: data.id, error: String(error) });
    }
  };
}
