// The query that is being put together: files, recordings and words.

import { find, icon, make } from "./dom.js";
import { Refusal } from "./api.js";

const KINDS = {
  png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", webp: "image/webp", gif: "image/gif",
  mp4: "video/mp4", webm: "video/webm", mov: "video/quicktime", mkv: "video/x-matroska",
  wav: "audio/wav", flac: "audio/flac", mp3: "audio/mpeg", ogg: "audio/ogg", opus: "audio/ogg", m4a: "audio/mp4",
  pdf: "application/pdf", txt: "text/plain",
};
const LIST = find("parts");
const TEXT = find("text");

const parts = [];
let limits = { bytes: Infinity, media: Infinity };

export function setLimits(found) {
  limits = found;
  TEXT.maxLength = found.characters;
}

// Adds files; returns the reasons why some were not taken.
export async function addFiles(files) {
  const refused = [];
  for (const file of files) {
    const type = (file.type || KINDS[file.name.split(".").pop().toLowerCase()] || "").split(";")[0];
    const modality = type === "application/pdf" ? "document" : type.split("/")[0];
    if (modality === "text" && type === "text/plain") addText(await file.text());
    else if (!["image", "video", "audio", "document"].includes(modality)) refused.push(`${file.name} is no picture, sound, video, PDF or plain text.`);
    else if (parts.length >= limits.media) refused.push(`A search takes at most ${limits.media} files; ${file.name} is one too many.`);
    else add({ modality, type, name: file.name, file, page: 1, url: URL.createObjectURL(file) });
  }
  return refused;
}

export function addText(text) {
  TEXT.value = TEXT.value ? `${TEXT.value} ${text.trim()}` : text.trim();
  fit();
}

export function clear() {
  for (const part of [...parts]) remove(part);
  TEXT.value = "";
  fit();
}

function add(part) {
  parts.push(part);
  part.element = chip(part);
  LIST.append(part.element);
}

function remove(part) {
  parts.splice(parts.indexOf(part), 1);
  part.element.remove();
  URL.revokeObjectURL(part.url);
}

function chip(part) {
  const drop = make("button", { type: "button", className: "drop", "aria-label": `Remove ${part.name}`, onclick: () => takeAway(part) }, icon("close"));
  return make("li", { className: `chip ${part.modality}` }, face(part), make("span", { className: "name", title: part.name }, part.name), pages(part), drop);
}

function face(part) {
  const plain = make("span", { className: "face" }, icon(part.modality));
  if (part.modality === "image") return make("img", { src: part.url, alt: "", onerror: (event) => event.target.replaceWith(plain) });
  if (part.modality === "video") return make("video", { src: part.url, muted: true, preload: "metadata", playsInline: true, tabIndex: -1 });
  return plain;
}

// A PDF is searched with one of its pages.
function pages(part) {
  if (part.modality !== "document") return null;
  const field = make("input", { type: "number", min: 1, max: 999999, value: 1, inputMode: "numeric", "aria-label": `Page of ${part.name}` });
  field.addEventListener("input", () => { part.page = Math.max(1, Math.floor(Number(field.value)) || 1); });
  field.addEventListener("focus", () => field.select());
  return make("label", { className: "page" }, "page ", field);
}

function takeAway(part) {
  const place = parts.indexOf(part);
  remove(part);
  (LIST.querySelectorAll(".drop")[Math.min(place, parts.length - 1)] ?? TEXT).focus();
}

export function isEmpty() {
  return parts.length === 0 && !TEXT.value.trim();
}

// Words for what is searched, for screen readers and the page's title.
export function describe() {
  return [...parts.map((part) => part.name), ...(TEXT.value.trim() ? [`“${TEXT.value.trim()}”`] : [])].join(" and ");
}

// The content of a message as /v1/search reads it: files first, then words.
export async function content() {
  const size = parts.reduce((sum, part) => sum + Math.ceil(part.file.size / 3) * 4, 0);
  if (size > limits.bytes - 100_000) {
    throw new Refusal(413, `These files are too large: a search takes ${Math.floor(limits.bytes * 0.74 / 1e6)} MB of files at most.`);
  }
  const found = await Promise.all(parts.map(encoded));
  const words = TEXT.value.trim();
  return words ? [...found, { type: "text", text: words }] : found;
}

async function encoded(part) {
  const data = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Refusal(0, `${part.name} cannot be read. Was it moved or deleted?`));
    reader.readAsDataURL(part.file);
  });
  const url = `data:${part.type};base64,${data}${part.modality === "document" ? `#page=${part.page}` : ""}`;
  const name = part.modality === "document" ? "image_url" : `${part.modality}_url`;
  return { type: name, [name]: { url } };
}

// Puts the names of files in the place of the server's names of parts.
export function named(message) {
  const words = message.replace(/messages(\[0\])+\.content\[(\d+)\](\.pdf)?/g, (whole, _, number) => parts[Number(number)]?.name ?? whole);
  return words.charAt(0).toUpperCase() + words.slice(1);
}

// Lets the field grow with its lines.
export function fit() {
  TEXT.style.height = "auto";
  TEXT.style.height = `${Math.min(TEXT.scrollHeight, 220)}px`;
}
