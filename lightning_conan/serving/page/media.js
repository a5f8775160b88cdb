// Pictures and players of an entry's media.

import { clock, icon, make, setIcon } from "./dom.js";

let playing = null;
const watch = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) {
    if (isIntersecting) { watch.unobserve(target); target.load(); }
  }
}, { rootMargin: "300px" });

// Address of a medium's part.
export function address(part) {
  if (part.start === undefined && part.end === undefined) return part.media;
  return `${part.media}#t=${part.start ?? 0}${part.end === undefined ? "" : `,${part.end}`}`;
}

export function span(part) {
  if (part.page !== undefined) return `page ${part.page}`;
  if (part.start === undefined && part.end === undefined) return "";
  return `${clock(part.start ?? 0)}–${part.end === undefined ? "end" : clock(part.end)}`;
}

// The thumbnail of a medium, loaded when it comes near the screen; a badge tells page or seconds.
export function thumbnail(part) {
  const picture = part.type === "audio" ? make("span", { className: "wave" }) : make("img", { alt: "" });
  const badge = make("span", { className: "badge", hidden: !span(part) }, span(part));
  const frame = make("span", { className: `frame ${part.type} waiting` }, picture, badge);
  frame.load = async () => {
    const url = await fetched(part, badge);
    frame.classList.remove("waiting");
    if (url === null) { frame.classList.add("missing"); frame.replaceChildren(icon(part.type)); return; }
    if (part.type === "audio") { picture.style.maskImage = `url("${url}")`; return; }
    picture.onload = () => { picture.classList.toggle("coarse", Math.max(picture.naturalWidth, picture.naturalHeight) < 120); URL.revokeObjectURL(url); };
    picture.src = url;
  };
  watch.observe(frame);
  return frame;
}

async function fetched(part, badge) {
  try {
    const answer = await fetch(part.thumbnail);
    if (!answer.ok) return null;
    const second = answer.headers.get("X-Second");
    if (second !== null && !span(part)) { badge.textContent = `at ${clock(Number(second))}`; badge.hidden = false; }
    return URL.createObjectURL(await answer.blob());
  } catch {
    return null;
  }
}

// A button that plays a clip where it stands: a video in the place of its picture, a sound along its waveform.
export function playButton(part, frame, name) {
  const button = make("button", { type: "button", className: "play", "aria-label": `Play ${name}` }, icon("play"));
  button.addEventListener("click", () => (part.type === "video" ? playVideo(part, frame, button) : playSound(part, frame, button, name)));
  return button;
}

function playVideo(part, frame, button) {
  stopAll();
  const player = make("video", { src: address(part), controls: true, autoplay: true, playsInline: true, className: "inline" });
  player.onerror = () => { player.replaceWith(make("span", { className: "failed" }, "This browser cannot play it")); };
  button.closest(".visual").append(player);
  button.hidden = true;
  playing = { stop: () => { player.remove(); button.hidden = false; } };
  player.focus();
}

function playSound(part, frame, button, name) {
  if (button.sound) { stopAll(); return; }
  stopAll();
  const sound = new Audio(address(part));
  const wave = frame.querySelector(".wave");
  const start = part.start ?? 0;
  sound.ontimeupdate = () => {
    const length = (part.end ?? sound.duration) - start;
    if (length > 0) wave?.style.setProperty("--played", `${Math.min(100, 100 * (sound.currentTime - start) / length)}%`);
  };
  const stop = () => { sound.pause(); button.sound = null; setIcon(button, "play"); button.setAttribute("aria-label", `Play ${name}`); wave?.style.removeProperty("--played"); };
  sound.onended = sound.onpause = () => { if (button.sound === sound) stopAll(); };
  sound.onerror = () => { stopAll(); button.replaceWith(make("span", { className: "failed" }, "This browser cannot play it")); };
  button.sound = sound;
  playing = { stop };
  setIcon(button, "pause");
  button.setAttribute("aria-label", `Stop ${name}`);
  sound.play().catch(() => {});
}

// Only one thing plays at a time.
export function stopAll() {
  const now = playing;
  playing = null;
  now?.stop();
}
