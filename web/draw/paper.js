"use strict";
// The paper: the picture that is translated, drawn on where it is a label picture.

const paper = by("paper").getContext("2d", {willReadFrequently: true});
const UNDOS = 50;
const colours = Object.entries(MODEL.palette ?? {});
const words = colours.map(([, rgb]) => new Uint32Array(new Uint8Array([...rgb, 255]).buffer)[0]);
const undos = [];
let image, tool = "brush", colour = 0, from, last;

function remember() {
  undos.push(paper.getImageData(0, 0, SIZE, SIZE));
  if (undos.length > UNDOS) undos.shift();
  by("undo").disabled = false;
}

// What is put on the paper is what counts: it ends a film.
function put() {
  closeFilm();
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
