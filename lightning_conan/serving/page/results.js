// The list of results: a card for each, arrow keys between them.

import { find, icon, kind, make, symbol } from "./dom.js";
import { playButton, stopAll, thumbnail } from "./media.js";

const LIST = find("results");
let opened = () => {};

export function whenOpened(action) {
  opened = action;
}

export function clear() {
  stopAll();
  LIST.replaceChildren();
}

// Gray cards while a search runs.
export function wait(number) {
  stopAll();
  LIST.replaceChildren(...Array.from({ length: number }, () => make("li", { className: "card ghost", "aria-hidden": "true" }, make("div", { className: "visual" }), make("div", { className: "about" }))));
}

export function show(hits, entries) {
  stopAll();
  LIST.replaceChildren(...hits.map((hit, place) => card(hit, entries[place], place)));
  choose(0);
}

function card(hit, entry, place) {
  const media = entry.parts.filter((part) => part.type !== "text");
  const words = entry.parts.filter((part) => part.type === "text").map((part) => part.text).join("\n");
  const label = [hit.key, kind(hit.modality), `score ${hit.score.toFixed(3)}`, words.slice(0, 200)].filter(Boolean).join(", ");
  const button = make("button", { type: "button", className: "open", "aria-label": label, onclick: () => opened(place) });
  const visual = make("div", { className: "visual" }, button);
  if (media.length) {
    const frame = thumbnail(media[0]);
    button.append(frame);
    if (media.length > 1) button.append(make("span", { className: "badge more" }, `+${media.length - 1}`));
    if (media[0].media && ["audio", "video"].includes(media[0].type)) visual.append(playButton(media[0], frame, hit.key));
  } else if (words) button.append(make("span", { className: "words" }, words));
  else button.append(make("span", { className: "frame missing" }, icon(symbol(hit.modality))));
  return make("li", { className: "card" }, visual, facts(hit, media.length ? words : ""));
}

function facts(hit, words) {
  const meter = make("span", { className: "meter", "aria-hidden": "true" });
  meter.style.setProperty("--score", `${Math.max(0, Math.min(1, hit.score)) * 100}%`);
  return make("div", { className: "about", "aria-hidden": "true" },
    make("span", { className: "key", title: hit.key }, hit.key),
    words ? make("span", { className: "caption" }, words) : null,
    make("span", { className: "line" }, make("span", { className: "kind" }, icon(symbol(hit.modality)), kind(hit.modality)), make("span", { className: "score" }, hit.score.toFixed(3))),
    meter);
}

// Makes one card the one that Tab reaches.
function choose(place) {
  [...LIST.children].forEach((each, number) => {
    for (const button of each.querySelectorAll("button")) button.tabIndex = number === place ? 0 : -1;
  });
}

export function focusOn(place) {
  const button = LIST.children[place]?.querySelector(".open");
  if (!button) return false;
  choose(place);
  button.focus();
  return true;
}

function columns() {
  return getComputedStyle(LIST).gridTemplateColumns.split(" ").length;
}

LIST.addEventListener("focusin", (event) => {
  const place = [...LIST.children].indexOf(event.target.closest(".card"));
  if (place >= 0) choose(place);
});

LIST.addEventListener("keydown", (event) => {
  if (event.target.matches("video") || event.altKey || event.ctrlKey || event.metaKey) return;
  const place = [...LIST.children].indexOf(event.target.closest(".card"));
  const last = LIST.children.length - 1;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns() };
  const wanted = { Home: 0, End: last }[event.key] ?? (event.key in steps ? place + steps[event.key] : null);
  if (wanted === null) return;
  event.preventDefault();
  if (wanted < 0 && event.key === "ArrowUp") find("text").focus();
  else focusOn(Math.max(0, Math.min(last, wanted)));
});
