"use strict";
// A paper to draw on, and beside it what the generator makes of it. A page that is opened from a
// folder may read no other files, so its scripts bring all it needs: MODEL (model.js) is the
// generator, RUNTIME (runtime.js) is onnxruntime-web.

const by = id => document.getElementById(id);
const SIDE = MODEL.side, SCALE = MODEL.palette ? 2 : 1;  // drawn finer than it is translated
const paper = by("paper").getContext("2d", {willReadFrequently: true});
const given = by("given").getContext("2d", {willReadFrequently: true});
const output = by("output").getContext("2d");
const SIZE = SIDE * SCALE, UNDOS = 50;

// --- The generator, in a thread of its own ---

// This function is the whole of that thread's code, after onnxruntime-web itself (`ort`).
function work() {
  let session;

  async function begin({module, wasm, graph, providers}) {
    const address = URL.createObjectURL(new Blob([module], {type: "text/javascript"}));
    ort.env.wasm.wasmPaths = {mjs: address};
    ort.env.wasm.wasmBinary = wasm;
    for (const provider of providers) {
      try {
        session = await ort.InferenceSession.create(graph, {executionProviders: [provider]});
        return {provider, threads: ort.env.wasm.numThreads};
      } catch (error) {
        if (provider === providers.at(-1)) throw error;
      }
    }
  }

  async function translate({pixels, shape}) {
    const began = performance.now();
    const found = await session.run({input: new ort.Tensor("float32", pixels, shape)});
    return {pixels: found.output.data, ms: performance.now() - began};
  }

  onmessage = async ({data}) => {
    try {
      postMessage(await (session ? translate(data) : begin(data)));
    } catch (error) {
      postMessage({error: String(error)});
    }
  };
}

async function unpacked(text) {
  const packed = await fetch("data:application/octet-stream;base64," + text);
  const stream = packed.body.pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function usableGpu() {
  if (MODEL.precision === "int8") return false;  // which WebGPU does not know
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  const computes = adapter && !adapter.info?.isFallbackAdapter;  // not one that software imitates
  return computes && (MODEL.precision === "fp32" || adapter.features.has("shader-f16"));
}

let worker, answer;

function ask(message) {
  return new Promise((resolve, reject) => {
    answer = reply => reply.error ? reject(new Error(reply.error)) : resolve(reply);
    worker.postMessage(message);
  });
}

async function begin() {
  const parts = [RUNTIME.library, RUNTIME.module, RUNTIME.wasm, MODEL.graph].map(unpacked);
  const [library, module, wasm, graph] = await Promise.all(parts);
  const code = new Blob([library, `\n(${work})();`], {type: "text/javascript"});
  worker = new Worker(URL.createObjectURL(code));
  worker.onmessage = ({data}) => answer(data);
  worker.onerror = event => answer({error: event.message});
  const providers = await usableGpu() ? ["webgpu", "wasm"] : ["wasm"];
  const {provider, threads} = await ask({module, wasm, graph, providers});
  const places = {webgpu: "on the graphics card", wasm: `on ${threads} thread${threads > 1 ? "s" : ""}`};
  by("status").textContent = `Runs in this browser, ${places[provider]}.`;
}

// --- Translating what is on the paper, again whenever that has changed ---

let ready = false, busy = false, changed = false;

function floats(image) {
  const n = SIDE * SIDE, pixels = new Float32Array(MODEL.inputs * n);
  const weights = MODEL.inputs === 1 ? [0.299, 0.587, 0.114] : null;
  for (let i = 0; i < n; i++) {
    const rgb = image.data.subarray(4 * i, 4 * i + 3);
    const values = weights ? [Math.round(weights.reduce((sum, w, c) => sum + w * rgb[c], 0))] : rgb;
    values.forEach((value, channel) => { pixels[channel * n + i] = value / 127.5 - 1; });
  }
  return pixels;
}

function show(pixels) {
  const n = SIDE * SIDE, image = output.createImageData(SIDE, SIDE);
  for (let i = 0; i < 4 * n; i++) {
    const channel = Math.min(i % 4, MODEL.outputs - 1);  // grey is the same in all three
    image.data[i] = i % 4 === 3 ? 255 : Math.round((pixels[channel * n + (i >> 2)] + 1) * 127.5);
  }
  output.putImageData(image, 0, 0);
}

async function translate() {
  changed = true;
  if (!ready || busy) return;
  busy = true;
  document.body.classList.add("busy");
  try {
    while (changed) {
      changed = false;
      given.drawImage(by("paper"), 0, 0, SIDE, SIDE);
      const pixels = floats(given.getImageData(0, 0, SIDE, SIDE));
      const found = await ask({pixels, shape: [1, MODEL.inputs, SIDE, SIDE]});
      show(found.pixels);
      by("time").textContent = `${found.ms < 10 ? found.ms.toFixed(1) : Math.round(found.ms)} ms`;
    }
  } catch (error) {
    fail(error);
  }
  busy = false;
  document.body.classList.remove("busy");
}

function fail(error) {
  by("status").textContent = `The generator cannot run here: ${error.message}`;
  by("status").className = "failed";
}

// --- The paper ---

const colours = Object.entries(MODEL.palette ?? {});
const words = colours.map(([, rgb]) => new Uint32Array(new Uint8Array([...rgb, 255]).buffer)[0]);
const undos = [];
let image, tool = "brush", colour = 0, from, last;

function remember() {
  undos.push(paper.getImageData(0, 0, SIZE, SIZE));
  if (undos.length > UNDOS) undos.shift();
  by("undo").disabled = false;
}

function put() {
  paper.putImageData(image, 0, 0);
  translate();
}

function undo() {
  if (!undos.length) return;
  image = undos.pop();
  by("undo").disabled = !undos.length;
  put();
}

function clear() {
  remember();
  pixels().fill(words[colour]);
  put();
}

const pixels = () => new Uint32Array(image.data.buffer);

function rectangle(a, b) {
  const [left, right] = [a.x, b.x].sort((p, q) => p - q).map(v => Math.min(Math.max(v, 0), SIZE));
  const [top, bottom] = [a.y, b.y].sort((p, q) => p - q).map(v => Math.min(Math.max(v, 0), SIZE));
  for (let y = Math.round(top); y < Math.round(bottom); y++) {
    pixels().fill(words[colour], y * SIZE + Math.round(left), y * SIZE + Math.round(right));
  }
}

function disc({x, y}, radius) {
  for (let row = Math.ceil(y - radius); row < y + radius; row++) {
    const half = Math.sqrt(Math.max(radius ** 2 - (row + 0.5 - y) ** 2, 0.25));
    rectangle({x: x - half, y: row}, {x: x + half, y: row + 1});
  }
}

function line(a, b) {
  const steps = Math.max(1, Math.ceil(Math.hypot(b.x - a.x, b.y - a.y)));
  for (let i = 0; i <= steps; i++) {
    const part = i / steps;
    disc({x: a.x + (b.x - a.x) * part, y: a.y + (b.y - a.y) * part}, by("width").value / 2);
  }
}

function fill({x, y}) {
  const all = pixels(), start = Math.floor(y) * SIZE + Math.floor(x), before = all[start];
  const waiting = before === words[colour] ? [] : [start];
  while (waiting.length) {
    const place = waiting.pop();
    if (all[place] !== before) continue;
    all[place] = words[colour];
    if (place % SIZE > 0) waiting.push(place - 1);
    if (place % SIZE < SIZE - 1) waiting.push(place + 1);
    if (place >= SIZE) waiting.push(place - SIZE);
    if (place < SIZE * (SIZE - 1)) waiting.push(place + SIZE);
  }
}

function at(event) {
  const box = by("paper").getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
  return {x: x * SIZE, y: y * SIZE};
}

function press(event) {
  if (event.button || from) return;
  by("paper").setPointerCapture(event.pointerId);
  remember();
  from = last = at(event);
  if (tool === "fill") fill(from);
  if (tool === "brush") line(from, from);
  put();
}

function move(event) {
  if (!from || tool === "fill") return;
  const between = event.getCoalescedEvents?.() ?? [];
  for (const point of [...between, event].map(at)) {
    if (tool === "brush") line(last, point);
    last = point;
  }
  if (tool !== "brush") {
    image.data.set(undos.at(-1).data);
    (tool === "line" ? line : rectangle)(from, last);
  }
  put();
}

// --- Pictures from elsewhere ---

function nearest(word) {
  const [r, g, b] = new Uint8Array(new Uint32Array([word]).buffer);
  const far = colours.map(([, c]) => (c[0] - r) ** 2 + (c[1] - g) ** 2 + (c[2] - b) ** 2);
  return words[far.indexOf(Math.min(...far))];
}

function toPalette() {
  const all = pixels(), known = new Map();
  for (let i = 0; i < all.length; i++) {
    if (!known.has(all[i])) known.set(all[i], nearest(all[i]));
    all[i] = known.get(all[i]);
  }
}

// The part of a picture to translate, as translate.py takes it: the input's half of what looks like
// a pair of the training, and of that what fits a square where the training did not squeeze.
function partOf({width, height}) {
  let left = 0, top = 0;
  if (MODEL.pair && Math.abs(width / height / MODEL.pair.aspect - 1) <= MODEL.pair.tolerance) {
    width = Math.floor(width / 2);
    left = MODEL.pair.half * width;
  }
  if (MODEL.keepAspect) {
    const side = Math.min(width, height);
    left += (width - side) / 2;
    top = (height - side) / 2;
    width = height = side;
  }
  return [left, top, width, height];
}

function place(picture, part) {
  if (image) remember();
  paper.fillStyle = "white";  // under what is transparent
  paper.fillRect(0, 0, SIZE, SIZE);
  paper.imageSmoothingEnabled = !MODEL.palette;
  paper.imageSmoothingQuality = "high";
  paper.drawImage(picture, ...part, 0, 0, SIZE, SIZE);
  image = paper.getImageData(0, 0, SIZE, SIZE);
  if (MODEL.palette) toPalette();
  put();
}

async function start(picture) {
  const whole = await createImageBitmap(picture);
  place(whole, [0, 0, whole.width, whole.height]);
}

async function open(file) {
  try {
    const picture = await createImageBitmap(file);
    place(picture, partOf(picture));
  } catch {
    by("status").textContent = "This file is no picture that the browser can read.";
  }
}

function openFrom(transfer) {
  const file = [...transfer.files].find(({type}) => type.startsWith("image/"));
  if (file) open(file);
}

// --- The controls ---

function choose(name, value) {
  if (name === "tool") tool = value; else colour = Number(value);
  for (const button of document.querySelectorAll(`[data-${name}]`)) {
    button.setAttribute("aria-pressed", button.dataset[name] === String(value));
  }
}

function addColours() {
  colours.forEach(([name, rgb], number) => {
    const button = by("colours").appendChild(document.createElement("button"));
    button.appendChild(document.createElement("i")).style.background = `rgb(${rgb.map(Number)})`;
    button.append(name.replaceAll("_", " "));
    button.dataset.colour = number;
    if (number < 9) button.title = `Key ${number + 1}`;
  });
}

function addStarts() {
  for (const address of MODEL.starts) {
    const picture = new Image();
    picture.src = address;
    picture.alt = "start from this picture";
    const button = by("starts").appendChild(document.createElement("button"));
    button.append(picture);
    button.onclick = () => start(picture);
  }
}

async function first() {
  const picture = document.querySelector("#starts img");
  if (picture) {
    await picture.decode();
    return start(picture);
  }
  image = paper.createImageData(SIZE, SIZE);
  pixels().fill(words[0] ?? 0xffffffff);
  put();
}

function keys(event) {
  if ((event.ctrlKey || event.metaKey) && event.key === "z") return undo();
  if (event.ctrlKey || event.metaKey || event.altKey || !MODEL.palette) return;
  const tools = {b: "brush", l: "line", r: "rectangle", f: "fill"};
  if (event.key in tools) choose("tool", tools[event.key]);
  if (event.key >= "1" && event.key <= colours.length) choose("colour", event.key - 1);
}

function save() {
  const link = document.createElement("a");
  link.href = by("output").toDataURL();
  link.download = `${MODEL.name}.png`;
  link.click();
}

function connect() {
  by("name").textContent = document.title = MODEL.name;
  by("hint").textContent = MODEL.palette ?
    "Draw with these colours: each stroke is translated at once." :
    "Open, paste or drop a picture: it is translated at once.";
  by("undo").onclick = undo;
  by("clear").onclick = clear;
  by("open").onclick = () => by("file").click();
  by("file").onchange = event => openFrom(event.target);
  by("save").onclick = save;
  onkeydown = keys;
  document.onpaste = event => openFrom(event.clipboardData);
  ondragover = event => event.preventDefault();
  ondrop = event => { event.preventDefault(); openFrom(event.dataTransfer); };
  if (!MODEL.palette) return;
  by("tools").hidden = by("clear").hidden = false;
  by("paper").classList.add("drawn");
  by("tools").onclick = ({target}) => {
    const button = target.closest("button");
    for (const name in button?.dataset ?? {}) choose(name, button.dataset[name]);
  };
  by("paper").onpointerdown = press;
  by("paper").onpointermove = move;
  by("paper").onpointerup = event => { move(event); from = null; };
  by("paper").onpointercancel = () => { from = null; };
}

for (const [context, side] of [[paper, SIZE], [given, SIDE], [output, SIDE]]) {
  context.canvas.width = context.canvas.height = side;
}
addColours();
addStarts();
connect();
choose("tool", tool);
choose("colour", 0);
first();
begin().then(() => { ready = true; translate(); }, fail);
