"use strict";
// The output: translated anew whenever the input has changed, shown, and wiped against the input.

const given = by("given").getContext("2d", {willReadFrequently: true});
const output = by("output").getContext("2d");
const PAUSE = 500;  // ms without a picture, after which the pictures a second are counted anew
const COUNTED = 20;  // pictures at most, over which they are counted

let ready = false, busy = false, changed = false;
let shown, wipe = null;  // the last pictures in and out; the part on which the input is seen

function floats({data}) {
  const n = SIDE * SIDE, values = new Float32Array(MODEL.inputs * n);
  for (let i = 0; i < n; i++) {
    const [r, g, b] = [data[4 * i], data[4 * i + 1], data[4 * i + 2]];
    if (MODEL.inputs === 1) {
      values[i] = Math.round(0.299 * r + 0.587 * g + 0.114 * b) / 127.5 - 1;
    } else {
      values[i] = r / 127.5 - 1;
      values[n + i] = g / 127.5 - 1;
      values[2 * n + i] = b / 127.5 - 1;
    }
  }
  return values;
}

function toImage(values) {
  const n = SIDE * SIDE, image = new ImageData(SIDE, SIDE);
  for (let channel = 0; channel < 4; channel++) {
    const from = n * Math.min(channel, MODEL.outputs - 1);  // grey is the same in all three
    for (let i = 0; i < n; i++) {
      image.data[4 * i + channel] = channel === 3 ? 255 : Math.round((values[from + i] + 1) * 127.5);
    }
  }
  return image;
}

function show() {
  if (!shown) return;
  output.putImageData(shown.out, 0, 0);
  if (wipe !== null) output.putImageData(shown.in, 0, 0, 0, 0, Math.round(wipe * SIDE), SIDE);
}

// --- Translating: one picture at a time, and the newest one next. Nothing waits in between. ---

async function translate() {
  changed = true;
  if (isBroken()) return;
  document.body.classList.add("busy");
  if (!ready || busy) return;
  busy = true;
  try {
    while (changed) await once();
  } catch (error) {
    fail(error.message);
  }
  busy = false;
  document.body.classList.remove("busy");
}

async function once() {
  changed = false;
  const began = performance.now();
  if (isLive()) drawFrame(given); else given.drawImage(by("paper"), 0, 0, SIDE, SIDE);
  const input = given.getImageData(0, 0, SIDE, SIDE), pixels = floats(input);
  const found = await ask({pixels, shape: [1, MODEL.inputs, SIDE, SIDE]}, [pixels.buffer]);
  shown = {in: input, out: toImage(found.pixels)};
  show();
  showTime(found.ms, began);
}

let times = [];

function showTime(ms, began) {
  if (began - times.at(-1) > PAUSE) times = [];
  times = [...times, performance.now()].slice(-COUNTED);
  const rate = (times.length - 1) / (times.at(-1) - times[0]) * 1000;
  by("time").textContent = `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
  by("rate").textContent = times.length > 2 ? `${rate.toFixed(rate < 10 ? 1 : 0)} a second` : "";
}

// --- The line between input and output ---

function setWipe(part) {
  wipe = part;
  by("edge").hidden = part === null;
  by("edge").style.left = `${100 * part}%`;
  by("wipe").setAttribute("aria-pressed", part !== null);
  document.body.classList.toggle("wiped", part !== null);
  show();
}

function wipeTo(event) {
  const box = by("output").getBoundingClientRect();
  setWipe(Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1));
}

function connectWipe() {
  by("wipe").onclick = () => setWipe(wipe === null ? 0.5 : null);
  by("output").onpointerdown = event => {
    if (wipe === null) return;
    by("output").setPointerCapture(event.pointerId);
    wipeTo(event);
  };
  by("output").onpointermove = event => {
    if (by("output").hasPointerCapture(event.pointerId)) wipeTo(event);
  };
}

// Until the generator runs, the page shows what the export has computed for its first picture.
async function showSaved() {
  if (!MODEL.output) return;
  const picture = new Image();
  picture.src = MODEL.output;
  await picture.decode();
  if (!shown) output.drawImage(picture, 0, 0, SIDE, SIDE);
}
