// The search page: puts query, results and viewer together.

import { ask, Refusal, setKey } from "./api.js";
import { count, find, icon, kind, make, symbol } from "./dom.js";
import * as query from "./query.js";
import * as results from "./results.js";
import * as viewer from "./viewer.js";
import { offerRecording } from "./record.js";

const TEXT = find("text"), STATUS = find("status"), PROBLEM = find("problem"), FILTERS = find("filters");
const TRIES = 4;
let about = null, running = null, retry = null, searched = false;

async function start() {
  try {
    about = await ask("page/about");
  } catch (error) {
    if (error.status === 401) askForKey(""); else complain(error.message, start);
    return;
  }
  document.title = `Search ${about.model}`;
  find("model").textContent = about.model;
  find("size").textContent = about.entries === 1 ? "1 entry" : `${about.entries.toLocaleString("en")} entries`;
  const kinds = Object.entries(about.modalities).sort((one, other) => other[1] - one[1]);
  query.setLimits(about.limits);
  offerFilters(kinds);
  offerRecording(about.limits.seconds, (file) => take([file]), complain);
  TEXT.focus();
}

function askForKey(words) {
  find("key-wrong").textContent = words;
  if (!find("key-dialog").open) find("key-dialog").showModal();
  find("key").select();
}

find("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  setKey(find("key").value.trim());
  try {
    await ask("page/about");
  } catch (error) {
    if (error.status === 401) { askForKey("That is not this server's key."); return; }
  }
  find("key").value = "";
  find("key-dialog").close();
  if (about === null) start(); else search();
});
find("key-dialog").addEventListener("cancel", (event) => event.preventDefault());

function offerFilters(kinds) {
  FILTERS.hidden = kinds.length < 2;
  for (const [name, number] of kinds) {
    const box = make("input", { type: "checkbox", value: name, onchange: () => { if (searched) search(); } });
    FILTERS.append(make("label", { className: "filter" }, box, icon(symbol(name)), make("span", {}, kind(name)), make("span", { className: "number" }, number.toLocaleString("en"))));
  }
}

function chosen() {
  const names = [...FILTERS.querySelectorAll("input:checked")].map((box) => box.value);
  return names.length ? names : null;
}

async function take(files) {
  const refused = await query.addFiles(files);
  complain(refused.join(" "));
  TEXT.focus();
}

function complain(words, again = null) {
  clearInterval(retry);
  PROBLEM.replaceChildren();
  if (!words) return;
  PROBLEM.append(make("p", {}, words));
  if (again) PROBLEM.append(make("button", { type: "button", className: "plain", onclick: () => { complain(""); again(); } }, "Try again"));
}

async function search(tries = TRIES) {
  if (query.isEmpty()) { complain("Type some words, or add a file to search with."); TEXT.focus(); return; }
  running?.abort();
  const own = running = new AbortController();
  begin();
  try {
    const begun = performance.now();
    const message = { messages: [{ role: "user", content: await query.content() }], top_k: about.hits, modalities: chosen() };
    const found = await ask("v1/search", message, own.signal);
    const entries = await describe(found.data, own.signal);
    if (own === running) finish(found, entries, performance.now() - begun);
  } catch (error) {
    if (own === running && error.name !== "AbortError") fail(error, tries);
  }
}

async function describe(hits, signal) {
  const entries = [];
  for (let start = 0; start < hits.length; start += 100) {
    const rows = hits.slice(start, start + 100).map((hit) => hit.row).join(",");
    entries.push(...(await ask(`page/entries?rows=${rows}`, null, signal)).data);
  }
  return entries;
}

function begin() {
  complain("");
  searched = true;
  document.body.classList.remove("empty");
  document.body.classList.add("busy");
  find("reasoning").hidden = true;
  STATUS.textContent = about.reasons ? "Reasoning about the query and searching…" : "Searching…";
  results.wait(Math.min(about.hits, 12));
}

function finish(found, entries, milliseconds) {
  document.body.classList.remove("busy");
  viewer.fill(found.data, entries);
  results.show(found.data, entries);
  const seconds = (milliseconds / 1000).toFixed(milliseconds < 995 ? 2 : 1);
  STATUS.textContent = `${count(found.data.length, "result")} for ${query.describe()} in ${seconds} s`;
  tellReasoning(found);
}

function tellReasoning(found) {
  const told = found.usage.reasoning?.[0];
  find("reasoning").hidden = !told;
  if (!told) return;
  const reasoned = told.route === "reasoned";
  find("route").textContent = reasoned ? "Reasoned" : "Direct";
  find("route").className = `route ${told.route}`;
  find("cost").textContent = reasoned ? `${count(told.tokens, "token")} before embedding${told.truncated ? ", cut at the limit" : ""}` : "the query was embedded without reasoning";
  find("thought").textContent = found.reasoning ?? "";
  find("reasoning").classList.toggle("bare", !found.reasoning);
  find("reasoning").open = Boolean(found.reasoning);
}

function fail(error, tries) {
  document.body.classList.remove("busy");
  results.clear();
  STATUS.textContent = "";
  if (error.status === 401) { askForKey(""); return; }
  if (!(error instanceof Refusal)) console.error(error);
  const words = error instanceof Refusal ? query.named(error.message) : "This page failed. Reload it and try again.";
  if (error.status === 429 && tries > 1) waitAndRetry(words, error.seconds ?? 2, tries - 1);
  else complain(words, [400, 413].includes(error.status) ? null : () => search());  // these would be refused again
}

function waitAndRetry(words, seconds, tries) {
  let left = seconds;
  const tell = () => `${words} The search is tried again in ${left} s.`;
  complain(tell(), () => search(tries));
  retry = setInterval(() => {
    left -= 1;
    if (left <= 0) { complain(""); search(tries); } else PROBLEM.firstChild.textContent = tell();
  }, 1000);
}

async function searchWith(parts) {
  query.clear();
  try {
    for (const part of parts) {
      if (part.type === "text") { query.addText(part.text); continue; }
      const blob = await (await fetch(part.media)).blob();
      await query.addFiles([new File([blob], part.name.replace(/\.pdf$/i, blob.type === "image/png" ? ".png" : ".pdf"), { type: blob.type })]);
    }
  } catch {
    complain("The file of this result cannot be read.");
    return;
  }
  scrollTo({ top: 0 });
  search();
}

results.whenOpened(viewer.open);
viewer.setUp({ again: searchWith, closed: (place) => { if (!document.body.classList.contains("busy")) results.focusOn(place); } });

find("search").addEventListener("submit", (event) => { event.preventDefault(); search(); });
find("attach").addEventListener("click", () => find("files").click());
find("files").addEventListener("change", (event) => { take([...event.target.files]); event.target.value = ""; });
TEXT.addEventListener("input", () => { query.fit(); });
TEXT.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); search(); }
  if (event.key === "ArrowDown" && !TEXT.value.includes("\n") && results.focusOn(0)) event.preventDefault();
});
document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length && !document.querySelector("dialog[open]")) { event.preventDefault(); take(files); }
});
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("textarea, input:not([type=checkbox])");
  if ((event.key === "/" && !typing) || (event.key === "Escape" && event.target.closest("#results"))) { event.preventDefault(); TEXT.focus(); TEXT.select(); }
});

let depth = 0;
const hasFiles = (event) => event.dataTransfer?.types.includes("Files") && !document.querySelector("dialog[open]");
document.addEventListener("dragenter", (event) => { if (hasFiles(event)) { event.preventDefault(); depth += 1; find("drop").hidden = false; } });
document.addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
document.addEventListener("dragleave", () => { depth = Math.max(0, depth - 1); if (!depth) find("drop").hidden = true; });
document.addEventListener("drop", (event) => {
  depth = 0;
  find("drop").hidden = true;
  if (!hasFiles(event)) return;
  event.preventDefault();
  take([...event.dataTransfer.files]);
});

start();
