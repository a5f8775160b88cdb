// Requests to the server that this page came from, and its refusals in words.

let key = null;

export function setKey(value) {
  key = value;
}

// A refusal: its status, the words for the reader, and the seconds after which to ask again, if the server says so.
export class Refusal extends Error {
  constructor(status, words, seconds = null) {
    super(words);
    this.status = status;
    this.seconds = seconds;
  }
}

export async function ask(path, body = null, signal = undefined) {
  const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
  const options = { headers, signal, cache: "no-store" };
  if (body !== null) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server does not answer. It may have been stopped; try again when it runs.");
  }
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

async function refusal(answer) {
  let said = "";
  try {
    said = (await answer.json()).error.message;
  } catch {
    // an answer that is not the server's own, such as a proxy's
  }
  const seconds = Number(answer.headers.get("Retry-After")) || null;
  const number = answer.headers.get("X-Request-ID");
  const words = {
    408: "Sending took too long. Is the connection slow? Try a smaller file.",
    413: "The files are too large for this server. Take fewer or smaller ones.",
    421: said,
    429: "The server is busy right now.",
    500: `The server failed at this search. Its log says why${number ? `, under ${number}` : ""}.`,
    503: "The server is shutting down.",
    504: "The search took too long. Try a shorter clip or a smaller file.",
  };
  return new Refusal(answer.status, words[answer.status] ?? (said || `The server refused (status ${answer.status}).`), seconds);
}
