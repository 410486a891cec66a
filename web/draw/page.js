"use strict";
// What all scripts of the page share, and what the page says. A page that is opened from a folder
// may read no other files, so scripts bring all it needs: MODEL (model.js) says what the generator
// is, and the files in parts/ hold it and onnxruntime-web.

const by = id => document.getElementById(id);
const SIDE = MODEL.side, SCALE = MODEL.palette ? 2 : 1;  // drawn finer than it is translated
const SIZE = SIDE * SCALE;
// The header with which a server lets all of the page work.
const POLICY = "default-src 'self'; script-src 'self' blob: 'wasm-unsafe-eval'; " +
  "img-src 'self' data:; media-src blob:";

// What broke the page stays to be read.
function tell(text) {
  if (isBroken()) return;
  by("note").textContent = text;
  by("note").className = "";
}

function warn(text) {
  if (isBroken()) return;
  by("note").textContent = text;
  by("note").className = "failed";
}

let refusal = "";  // what a server's header keeps out: the cause of what fails then

function fail(cause) {
  warn(refusal || cause);
  document.body.classList.add("broken");
  document.body.classList.remove("busy");
  by("loaded").hidden = true;
  by("status").textContent = "The generator cannot run here.";
}

const isBroken = () => document.body.classList.contains("broken");

// A refusal alone does no harm: browsers' extensions cause some. It may come after the failure.
function refused({disposition, effectiveDirective, blockedURI}) {
  if (disposition === "report") return;
  refusal = "The header Content-Security-Policy of this server keeps out what the page needs: " +
    `its ${effectiveDirective} forbids ${blockedURI || "a part"}. The page works with ` +
    `"${POLICY}", or opened from its folder, without a server.`;
  if (isBroken()) by("note").textContent = refusal;
}

document.addEventListener("securitypolicyviolation", refused);
tell("");
