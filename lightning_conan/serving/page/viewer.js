// One result in large, with its players, its whole text and its facts.

import { find, icon, kind, make } from "./dom.js";
import { address, span, stopAll } from "./media.js";

const DIALOG = find("viewer");
const FACTS = find("viewer-facts");
let hits = [], entries = [], place = 0, again = () => {}, closed = () => {};

// `again` gets the parts of a result that is to be searched with, `closed` the number of the last one seen.
export function setUp(actions) {
  ({ again, closed } = actions);
}

export function fill(foundHits, foundEntries) {
  [hits, entries] = [foundHits, foundEntries];
}

export function open(number) {
  stopAll();
  place = number;
  const hit = hits[place], entry = entries[place];
  find("viewer-key").textContent = hit.key;
  find("previous").disabled = place === 0;
  find("next").disabled = place === hits.length - 1;
  find("viewer-parts").replaceChildren(...(entry.parts.length ? entry.parts.map(large) : [absent(entry)]));
  FACTS.replaceChildren(list(hit, entry), buttons(hit, entry));
  if (!DIALOG.open) DIALOG.showModal();
}

function large(part) {
  if (part.type === "text") return make("p", { className: "words" }, part.text + (part.cut ? " …" : ""));
  if (!part.media) return make("img", { src: part.thumbnail, alt: part.name });
  if (part.type === "video") return player(make("video", { src: address(part), controls: true, playsInline: true, preload: "metadata" }));
  if (part.type === "audio") return player(make("audio", { src: address(part), controls: true, preload: "metadata" }));
  const picture = make("img", { src: part.media, alt: [part.name, span(part)].filter(Boolean).join(", "), className: `${part.type} loading` });
  picture.onload = () => { picture.classList.remove("loading"); picture.classList.toggle("coarse", Math.max(picture.naturalWidth, picture.naturalHeight) < 120); };
  picture.onerror = () => picture.replaceWith(make("p", { className: "quiet" }, "This picture cannot be shown."));
  return picture;
}

function player(element) {
  element.onerror = () => element.replaceWith(make("p", { className: "quiet" }, "This browser cannot play the file."));
  return element;
}

function absent(entry) {
  return make("p", { className: "quiet" }, entry.missing ? "The file of this entry is not there any more." : "The server shows no media: it was started without --page.media.");
}

function list(hit, entry) {
  const facts = [["Score", hit.score.toFixed(4)], ["Rank", `${place + 1} of ${hits.length}`], ["Kind", kind(hit.modality)]];
  for (const part of entry.parts.filter((each) => each.type !== "text")) facts.push([part.type === "document" ? "Page" : "File", [part.name, span(part)].filter(Boolean).join(", ")]);
  return make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

function buttons(hit, entry) {
  const copy = make("button", { type: "button", className: "plain" }, icon("copy"), make("span", {}, "Copy the key"));
  copy.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(hit.key); copy.lastChild.textContent = "Copied"; } catch { copy.lastChild.textContent = "Not allowed"; }
  });
  const useful = entry.parts.length && entry.parts.every((part) => part.type === "text" || (part.media && part.start === undefined && part.end === undefined));
  const more = make("button", { type: "button", className: "plain", onclick: () => { DIALOG.close(); again(entry.parts); } }, icon("search"), make("span", {}, "Search with this"));
  return make("div", { className: "row" }, useful ? more : null, copy);
}

function step(by) {
  const wanted = place + by;
  if (wanted >= 0 && wanted < hits.length) open(wanted);
}

find("previous").addEventListener("click", () => step(-1));
find("next").addEventListener("click", () => step(1));
find("viewer-close").addEventListener("click", () => DIALOG.close());
DIALOG.addEventListener("click", (event) => { if (event.target === DIALOG) DIALOG.close(); });
DIALOG.addEventListener("keydown", (event) => {
  if (event.target.matches("video, audio")) return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
DIALOG.addEventListener("close", () => { find("viewer-parts").replaceChildren(); closed(place); });
