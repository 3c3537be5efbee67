// The page: controls, a few workers that draw, and what they drew.
"use strict";
(async () => {
  const by = (id) => document.getElementById(id);
  const model = JSON.parse(by("model").textContent);
  const { size, channels } = model.net, COUNT = 64, FRAMES = 9;
  const say = (text) => (by("status").textContent = text);

  function unpacked(id) {
    const text = atob(by(id).textContent.trim()), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  }

  const inflated = (bytes) =>
    new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();

  // A few workers, one job at a time each; a job that is asked for last can go first.
  class Pool {
    constructor(count, payload, failed) {
      Object.assign(this, { waiting: [], failed });
      const code = URL.createObjectURL(new Blob([by("worker").textContent], { type: "text/javascript" }));
      this.all = Array.from({ length: count }, () => {
        const worker = new Worker(code);
        worker.onerror = (event) => this.lost(worker, event.message || "a worker could not be started");
        worker.onmessage = ({ data }) => this.heard(worker, data);
        worker.postMessage(payload);
        return worker;
      });
    }

    heard(worker, data) {
      if (data.error && !worker.asked) return this.lost(worker, data.error); // it could not load
      if (data.error) worker.asked.reject(new Error(data.error));
      else if (worker.asked) worker.asked.resolve(data);
      worker.asked = null;
      worker.idle = true;
      this.deal();
    }

    lost(worker, message) {
      this.all = this.all.filter((other) => other !== worker);
      if (worker.asked) this.waiting.unshift(worker.asked);
      worker.terminate();
      if (this.all.length) this.deal();
      else this.failed(message);
    }

    ask(job, first = false) {
      return new Promise((resolve, reject) => {
        this.waiting[first ? "unshift" : "push"]({ job, resolve, reject });
        this.deal();
      });
    }

    deal() {
      for (const worker of this.all) {
        if (!worker.idle || !this.waiting.length) continue;
        worker.idle = false;
        worker.asked = this.waiting.shift();
        worker.postMessage({ job: worker.asked.job });
      }
    }

    forget(kind) {
      this.waiting = this.waiting.filter((entry) => entry.job.kind !== kind);
    }
  }

  // bytes [C,S,S] onto a canvas
  function paint(canvas, bytes) {
    const picture = new ImageData(size, size), plane = size * size;
    for (let i = 0; i < plane; i++) {
      for (let c = 0; c < 3; c++) picture.data[4 * i + c] = bytes[(channels === 3 ? c : 0) * plane + i];
      picture.data[4 * i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }

  function canvasIn(parent) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = size;
    parent.append(canvas);
    return canvas;
  }

  const tiles = Array.from({ length: COUNT }, (_, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.disabled = true;
    button.setAttribute("aria-pressed", "false");
    const tile = { button, canvas: canvasIn(button), drawn: false };
    button.onclick = () => showWay(tile).catch((error) => failed(error.message));
    button.onkeydown = (event) => { // arrow keys move over the sheet
      const next = { ArrowLeft: i - 1, ArrowRight: i + 1, ArrowUp: i - 8, ArrowDown: i + 8 }[event.key];
      if (next === undefined || !tiles[next]) return;
      event.preventDefault();
      tiles[next].button.focus();
    };
    by("sheet").append(button);
    return tile;
  });

  function settings() {
    const sample = { ...model.sample, ...JSON.parse(by("sampler").value), steps: Number(by("steps").value) };
    const labels = Array.from(document.querySelectorAll("select.label"), (select) => Number(select.value));
    return { sample, labels: labels.length ? labels : null };
  }

  const failed = (message) => {
    say(`Could not draw: ${message}`);
    by("status").classList.add("warning");
    by("stop").disabled = true;
  };

  let current = null; // what the sheet shows: its settings, and whether it is still being drawn
  async function drawSheet() {
    if (!by("form").reportValidity()) return;
    const first = Number(by("seed").value), chosen = settings(), began = performance.now();
    stop();
    forgetWay("Choose one of the images above.");
    by("status").classList.remove("warning");
    by("progress").value = 0;
    const mine = (current = { ...chosen, first, done: 0, running: true });
    by("stop").disabled = false;
    by("save").disabled = true;
    tiles.forEach((tile, i) => {
      Object.assign(tile, { seed: first + i, drawn: false });
      tile.button.disabled = true;
      tile.button.setAttribute("aria-label", `seed ${tile.seed}`);
      tile.canvas.getContext("2d").clearRect(0, 0, size, size);
    });
    say(`Drawing seeds ${first} to ${first + COUNT - 1} …`);
    await Promise.all(tiles.map(async (tile) => {
      const { image } = await pool.ask({ kind: "sheet", seed: tile.seed, ...chosen });
      if (mine !== current || !mine.running) return;
      paint(tile.canvas, image);
      tile.drawn = true;
      tile.button.disabled = false;
      by("progress").value = ++mine.done;
      const left = ((performance.now() - began) / mine.done / 1000) * (COUNT - mine.done);
      by("left").textContent = `${mine.done} of ${COUNT} images · about ${Math.ceil(left)} s left`;
      by("save").disabled = false;
    }));
    if (mine !== current || !mine.running) return;
    mine.running = false;
    by("stop").disabled = true;
    by("left").textContent = "";
    say(`Seeds ${first} to ${first + COUNT - 1}, drawn in ${((performance.now() - began) / 1000).toFixed(1)} s.`);
  }

  function stop() {
    pool.forget("sheet");
    by("left").textContent = "";
    if (current && current.running) say(`Stopped after ${current.done} images.`);
    if (current) current.running = false;
    by("stop").disabled = true;
  }

  let way = null; // the image whose steps are shown
  function forgetWay(text) {
    pool.forget("way");
    way = null;
    by("step").disabled = true;
    by("way-text").textContent = text;
    for (const each of tiles) each.button.setAttribute("aria-pressed", "false");
  }

  async function showWay(tile) {
    forgetWay(`Seed ${tile.seed}: drawing its steps …`);
    const mine = (way = { seed: tile.seed });
    for (const each of tiles) each.button.setAttribute("aria-pressed", String(each === tile));
    const { sample, labels } = current;
    const { image, states } = await pool.ask({ kind: "way", seed: tile.seed, sample, labels, states: true }, true);
    if (mine !== way) return;
    mine.states = [...states, { t: -1, x: image, x0: image }];
    by("step").max = mine.states.length - 1;
    by("step").disabled = false;
    by("step").value = Math.floor(mine.states.length / 2);
    showStep();
  }

  function showStep() {
    const at = Number(by("step").value), { t, x, x0 } = way.states[at], last = way.states.length - 1;
    paint(by("x_t"), x);
    paint(by("x0_hat"), x0);
    const text = t < 0 ? `finished after ${last} steps` : `step ${at + 1} of ${last}, t = ${t}`;
    by("way-text").textContent = `Seed ${way.seed}: ${text}.`;
    by("step").setAttribute("aria-valuetext", text);
  }

  const frames = Array.from({ length: FRAMES }, () => canvasIn(by("frames")));
  async function drawWalk() {
    const between = [Number(by("from").value), Number(by("to").value)], { sample, labels } = settings();
    by("to").setCustomValidity(between[0] === between[1] ? "Take two different seeds." : "");
    if (!by("walk-form").reportValidity() || !by("form").reportValidity()) return;
    by("walk").disabled = true;
    by("walk-text").textContent = "Drawing nine images …";
    const drawing = frames.map(async (canvas, i) => {
      const job = { kind: "walk", between, share: i / (FRAMES - 1), sample, labels };
      paint(canvas, (await pool.ask(job, true)).image);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${Math.round((100 * i) / (FRAMES - 1))} % of the way from seed ${between[0]} to ${between[1]}`);
    });
    await Promise.all(drawing).finally(() => (by("walk").disabled = false));
    by("walk-text").textContent = `From seed ${between[0]} to seed ${between[1]}, without noise on the way.`;
  }

  function save() {
    const times = Math.max(1, Math.round(64 / size)), cell = size * times + 4, sheet = document.createElement("canvas");
    sheet.width = sheet.height = 8 * cell + 4;
    const context = sheet.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.fillStyle = "#fff";
    context.fillRect(0, 0, sheet.width, sheet.height);
    tiles.forEach((tile, i) => {
      const x = 4 + (i % 8) * cell, y = 4 + Math.floor(i / 8) * cell;
      if (tile.drawn) context.drawImage(tile.canvas, x, y, size * times, size * times);
    });
    sheet.toBlob((blob) => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = `seeds-${current.first}-${current.first + COUNT - 1}.png`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }

  let pool;
  try {
    const numbers = await inflated(unpacked("weights")), kernels = await inflated(unpacked("kernels"));
    const room = Math.floor(256 / size); // a worker of a large network takes much memory
    const workers = Math.max(1, Math.min(4, room, navigator.hardwareConcurrency || 1));
    pool = new Pool(workers, { kernels, model, numbers }, failed);
  } catch (error) {
    return failed(`${error}. It takes a browser of 2023 or later.`);
  }
  const asked = (event, draw) => (event.preventDefault(), draw().catch((error) => failed(error.message)));
  by("form").onsubmit = (event) => asked(event, drawSheet);
  by("walk-form").onsubmit = (event) => asked(event, drawWalk);
  by("stop").onclick = stop;
  by("save").onclick = save;
  by("step").oninput = showStep;
  by("to").oninput = by("from").oninput = () => by("to").setCustomValidity("");
  by("walk").disabled = false;
  drawSheet().catch((error) => failed(error.message));
})();
