"use strict";
// What the output shows, kept as a picture or as a film.

let recorder;

function download(address, ending) {
  const link = document.createElement("a");
  link.href = address;
  link.download = `${MODEL.name}.${ending}`;
  link.click();
}

function save() {
  download(by("output").toDataURL(), "png");
}

function record() {
  if (recorder?.state === "recording") return recorder.stop();
  const pieces = [];
  recorder = new MediaRecorder(by("output").captureStream(), {videoBitsPerSecond: 8e6});
  recorder.ondataavailable = ({data}) => pieces.push(data);
  recorder.onstart = recorder.onstop = () => {
    const isRunning = recorder.state === "recording";
    by("record").setAttribute("aria-pressed", isRunning);
    if (isRunning) return;
    const address = URL.createObjectURL(new Blob(pieces, {type: recorder.mimeType}));
    download(address, recorder.mimeType.includes("mp4") ? "mp4" : "webm");
    setTimeout(() => URL.revokeObjectURL(address), 60_000);  // once it is surely on the disk
  };
  recorder.start();
}

function connectSave() {
  by("save").onclick = save;
  by("record").onclick = record;
  by("record").hidden = !window.MediaRecorder;
}
