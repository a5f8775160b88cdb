// Recording of sound, pictures and video, where the browser lets a page do so.

import { clock, find, setIcon } from "./dom.js";

const ALLOWED = "MediaRecorder" in window && Boolean(navigator.mediaDevices?.getUserMedia);
const SOUND = find("sound");
const DIALOG = find("camera-dialog");
let number = 0;

// Shows the buttons; `take` gets each recording as a file, `fail` the words of a problem.
export function offerRecording(seconds, take, fail) {
  SOUND.hidden = find("camera").hidden = !ALLOWED;
  if (!ALLOWED) return;
  offerSound(seconds, take, fail);
  offerCamera(seconds, take, fail);
}

async function open(wanted, fail) {
  try {
    return await navigator.mediaDevices.getUserMedia(wanted);
  } catch (error) {
    const thing = wanted.video ? "camera" : "microphone";
    fail(error.name === "NotAllowedError" ? `The browser does not let this page use the ${thing}. Allow it in its settings.` : `There is no ${thing} that can be used.`);
    return null;
  }
}

// Records a stream until the returned function is called, or for `seconds`.
function record(stream, seconds, done) {
  const recorder = new MediaRecorder(stream);
  const pieces = [];
  recorder.ondataavailable = (event) => pieces.push(event.data);
  recorder.onstop = () => done(new Blob(pieces, { type: recorder.mimeType }));
  recorder.start();
  const end = setTimeout(() => recorder.stop(), (seconds - 1) * 1000);
  return () => { clearTimeout(end); if (recorder.state !== "inactive") recorder.stop(); };
}

function fileOf(blob, word) {
  const type = blob.type.split(";")[0];
  const suffix = { "audio/mp4": "m4a", "video/mp4": "mp4", "audio/ogg": "ogg" }[type] ?? type.split("/")[1];
  number += 1;
  return new File([blob], `${word} ${number}.${suffix}`, { type });
}

function close(stream) {
  for (const track of stream.getTracks()) track.stop();
}

// Counts the seconds of a recording on a button.
function count(button, label, start = Date.now()) {
  const show = () => { label.textContent = `Stop ${clock((Date.now() - start) / 1000)}`; };
  show();
  button.classList.add("recording");
  const timer = setInterval(show, 250);
  return (words) => { clearInterval(timer); button.classList.remove("recording"); label.textContent = words; };
}

function offerSound(seconds, take, fail) {
  let stop = null;
  SOUND.addEventListener("click", async () => {
    if (stop) { stop(); return; }
    stop = () => {};
    const stream = await open({ audio: true }, fail);
    if (!stream) { stop = null; return; }
    const counted = count(SOUND, SOUND.querySelector("span"));
    setIcon(SOUND, "stop");
    stop = record(stream, seconds, (blob) => {
      counted("Record sound");
      setIcon(SOUND, "microphone");
      close(stream);
      stop = null;
      take(fileOf(blob, "Sound"));
    });
  });
}

function offerCamera(seconds, take, fail) {
  const finder = find("finder"), film = find("film");
  let stream = null, stop = null;
  find("camera").addEventListener("click", async () => {
    stream = await open({ video: true, audio: true }, () => {}) ?? await open({ video: true }, fail);
    if (!stream) return;
    finder.srcObject = stream;
    finder.play();
    DIALOG.showModal();
  });
  find("shoot").addEventListener("click", () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [finder.videoWidth, finder.videoHeight];
    canvas.getContext("2d").drawImage(finder, 0, 0);
    canvas.toBlob((blob) => { take(fileOf(blob, "Picture")); DIALOG.close(); }, "image/png");
  });
  film.addEventListener("click", () => {
    if (stop) { stop(); return; }
    const counted = count(film, film);
    stop = record(stream, seconds, (blob) => {
      counted("Record a video");
      stop = null;
      if (DIALOG.open) { take(fileOf(blob, "Video")); DIALOG.close(); }
    });
  });
  find("camera-close").addEventListener("click", () => DIALOG.close());
  DIALOG.addEventListener("close", () => {
    if (stop) stop();
    if (stream) close(stream);
    finder.srcObject = null;
    find("camera").focus();
  });
}
