"use strict";
// Pictures and films from elsewhere: opened, pasted, dropped, or chosen to start from.

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

function isPair({width, height}) {
  return MODEL.pair && Math.abs(width / height / MODEL.pair.aspect - 1) <= MODEL.pair.tolerance;
}

// The part of a picture to translate, as translate.py takes it: the input's half of what looks like
// a pair of the training, and of that what fits a square where the training did not squeeze.
function partOf(picture) {
  let left = 0, top = 0, {width, height} = picture;
  if (isPair(picture)) {
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

function tellPart(name, picture, [, , width, height]) {
  const half = isPair(picture) ? `its ${MODEL.pair.half ? "right" : "left"} half` : "it";
  const taken = MODEL.keepAspect ? `the middle of ${half}` : half;
  tell(`${name} has ${picture.width} x ${picture.height}. As in the training, ${taken}, ` +
    `${width} x ${height}, is scaled to ${SIZE} x ${SIZE}` +
    (MODEL.palette ? " and painted in the colours of the classes." : "."));
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
  tell("");
}

const unreadable = ({name}) =>
  `${name} cannot be opened: it is nothing that this browser can show, or too large for it.`;

async function open(file) {
  if (file.type.startsWith("video/") && !MODEL.palette) return openFilm(file);
  try {
    const picture = await createImageBitmap(file), part = partOf(picture);
    place(picture, part);
    tellPart(file.name, picture, part);
    picture.close();
  } catch {
    warn(unreadable(file));
  }
}

function openFrom({files}) {
  const known = [...files].find(({type}) => /^(image|video)/.test(type));
  if (known ?? files[0]) open(known ?? files[0]); else warn("There is no picture in that.");
}
