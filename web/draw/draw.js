"use strict";
// The controls, and the start.

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

function connect() {
  by("name").textContent = document.title = MODEL.name;
  by("hint").textContent = MODEL.palette ?
    "Draw with these colours: each stroke is translated at once." :
    "Open, paste or drop a picture or a film, or show something to the camera.";
  by("undo").onclick = undo;
  by("clear").onclick = clear;
  by("open").onclick = () => { by("file").value = ""; by("file").click(); };  // same file, twice
  by("file").onchange = event => openFrom(event.target);
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
connectCamera();
connectWipe();
connectSave();
choose("tool", tool);
choose("colour", 0);
showSaved().then(first).then(begin).then(() => { ready = true; translate(); })
  .catch(error => fail(error.message));
