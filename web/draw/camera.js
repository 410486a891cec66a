"use strict";
// A camera or a film as the input: each new frame is translated if the generator is free, and
// otherwise left out. Of the frame a part is taken that has the shape of the training's pictures.

const film = by("film");
const crop = {x: 0.5, y: 0.5, size: 1};  // place in what is left over, and part of what fits
let live = false, mirrored = false, cameras = [];
let opened = 0;  // counts what was opened, so that a camera which comes late is let go
let waiting = 0;  // for the next frame

const isLive = () => live;

// --- The part of the frame ---

function cropped() {
  const {videoWidth, videoHeight} = film;
  const width = Math.min(videoWidth, videoHeight * MODEL.aspect) * crop.size;
  const height = width / MODEL.aspect;
  return [(videoWidth - width) * crop.x, (videoHeight - height) * crop.y, width, height];
}

function drawFrame(context) {
  context.setTransform(mirrored ? -1 : 1, 0, 0, 1, mirrored ? SIDE : 0, 0);
  context.imageSmoothingQuality = "medium";
  context.drawImage(film, ...cropped(), 0, 0, SIDE, SIDE);
  context.resetTransform();
}

function showCrop() {
  const {videoWidth, videoHeight} = film, [left, top, width, height] = cropped();
  by("stage").style.aspectRatio = `${videoWidth} / ${videoHeight}`;
  by("stage").classList.toggle("tall", videoHeight > videoWidth);
  by("stage").classList.toggle("mirrored", mirrored);
  Object.assign(by("crop").style, {
    left: `${100 * left / videoWidth}%`, width: `${100 * width / videoWidth}%`,
    top: `${100 * top / videoHeight}%`, height: `${100 * height / videoHeight}%`,
  });
  if (live) translate();
}

function moveCrop(event) {
  if (!by("stage").hasPointerCapture(event.pointerId)) return;
  const box = by("stage").getBoundingClientRect(), {videoWidth, videoHeight} = film;
  const [, , width, height] = cropped();
  const moved = (now, pixels, room) => room < 1 ? now : Math.min(Math.max(now + pixels / room, 0), 1);
  const right = event.movementX * videoWidth / box.width * (mirrored ? -1 : 1);
  crop.x = moved(crop.x, right, videoWidth - width);
  crop.y = moved(crop.y, event.movementY * videoHeight / box.height, videoHeight - height);
  showCrop();
}

// --- From the first frame to the last ---

const end = stream => stream?.getTracks().forEach(track => track.stop());

function closeFilm() {
  opened++;
  film.cancelVideoFrameCallback?.(waiting);  // some browsers that can draw know no frames
  end(film.srcObject);
  if (film.src) URL.revokeObjectURL(film.src);
  film.srcObject = null;
  film.removeAttribute("src");
  setLive(false);
}

function setLive(is) {
  live = is;
  document.body.classList.toggle("live", is);
  by("paper").hidden = is;
  by("stage").hidden = by("playing").hidden = !is;
}

// The last frame stays, as a picture.
function stop() {
  drawFrame(given);
  place(by("given"), [0, 0, SIDE, SIDE]);
  tell("");
}

function eachFrame() {
  translate();
  waiting = film.requestVideoFrameCallback(eachFrame);
}

async function play(isMirrored) {
  mirrored = isMirrored;
  await film.play();
  if (!film.videoWidth) throw new Error("it holds no pictures");
  showPressed();
  showCrop();
  setLive(true);
  eachFrame();
}

async function openFilm(file) {
  closeFilm();
  const mine = opened;
  film.src = URL.createObjectURL(file);
  try {
    await play(false);
    by("other").hidden = true;
    tellFrame(file.name);
  } catch {
    if (mine !== opened) return;
    closeFilm();
    warn(unreadable(file));
  }
}

function tellFrame(name) {
  tell(`${name} gives ${film.videoWidth} x ${film.videoHeight}. The part in the frame, which can ` +
    `be dragged, is scaled to ${SIDE} x ${SIDE}.`);
}

// --- The camera ---

const REASONS = {
  NotAllowedError: "The browser may not use the camera here. Allow it beside the address, or in " +
    "the system's settings, and press Camera again. A server may forbid it too, by its header " +
    "Permissions-Policy.",
  NotFoundError: "There is no camera. Films from files can be opened instead.",
  NotReadableError: "The camera gives no pictures. Another program may be using it.",
  insecure: "Browsers give the camera to pages from this machine or from https:// only. Open " +
    "index.html from its folder, or ask for this page by https://.",
};

async function openCamera(device) {
  closeFilm();
  const mine = opened;
  tell("Waiting for the camera ...");
  try {
    const stream = await cameraStream(device);
    if (mine !== opened) return end(stream);
    film.srcObject = stream;
    const [track] = stream.getVideoTracks();
    track.onended = () => { stop(); warn("The camera has stopped."); };
    await play(track.getSettings().facingMode !== "environment");
    cameras = (await navigator.mediaDevices.enumerateDevices()).filter(d => d.kind === "videoinput");
    by("other").hidden = cameras.length < 2;
    tellFrame("The camera");
  } catch (error) {
    if (mine !== opened) return;
    closeFilm();
    warn(REASONS[error.name] ?? `The camera cannot be used: ${error.message}`);
  }
}

function cameraStream(device) {
  if (!navigator.mediaDevices) throw new DOMException("", "insecure");
  const chosen = device ? {deviceId: {exact: device}} : {facingMode: "environment"};
  const size = {width: {ideal: 640}, height: {ideal: Math.max(480, SIDE)}};
  return navigator.mediaDevices.getUserMedia({video: {...chosen, ...size}});
}

function otherCamera() {
  const now = film.srcObject.getVideoTracks()[0].getSettings().deviceId;
  const next = cameras.findIndex(({deviceId}) => deviceId === now) + 1;
  openCamera(cameras[next % cameras.length].deviceId);
}

// --- Its controls ---

function showPressed() {
  by("pause").setAttribute("aria-pressed", film.paused);
  by("mirror").setAttribute("aria-pressed", mirrored);
}

function connectCamera() {
  if (MODEL.palette) return;  // a camera sees no label pictures
  by("camera").hidden = false;
  by("camera").onclick = () => openCamera();
  by("other").onclick = otherCamera;
  by("stop").onclick = stop;
  by("pause").onclick = () => film.paused ? film.play() : film.pause();
  film.onplay = film.onpause = showPressed;
  film.onresize = () => { if (live) showCrop(); };  // a telephone was turned
  by("mirror").onclick = () => { mirrored = !mirrored; showPressed(); showCrop(); };
  by("size").oninput = event => { crop.size = event.target.value / 100; showCrop(); };
  by("stage").onpointerdown = event => by("stage").setPointerCapture(event.pointerId);
  by("stage").onpointermove = moveCrop;
}
