// What the page's script computes, outside a browser: `node page.js MODEL.js KERNELS.wasm JOBS.json`.
"use strict";
const fs = require("fs");
const vm = require("vm");
const zlib = require("zlib");

const [code, kernels, jobs] = process.argv.slice(2);
const { model, weights, draw } = JSON.parse(fs.readFileSync(jobs));
const world = vm.createContext({ console, WebAssembly, DataView, Uint8Array });
vm.runInContext(`${fs.readFileSync(code, "utf8")}; this.load = load; this.log = log;`, world);
(async () => {
  const bytes = zlib.gunzipSync(Buffer.from(weights, "base64"));
  const numbers = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  const diffusion = await world.load({ kernels: fs.readFileSync(kernels), model, numbers });
  const images = draw.map((job) => {
    const drawing = diffusion.draw(job);
    let step = drawing.next();
    while (!step.done) step = drawing.next();
    return Array.from(step.value);
  });
  const noise = Array.from(new Uint32Array(diffusion.noise(5, diffusion.total).buffer));
  const times = draw.map(({ sample }) => diffusion.spaced(sample));
  console.log(JSON.stringify({ images, noise, times }));
})();
