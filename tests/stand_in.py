"""A stand-in for an OpenAI-compatible server, on this machine, that answers as told: slowly, wrongly, or not at all."""

import json
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def raw_server(respond):
    """Serves ``respond(handler, body) -> (status, headers, bytes or iterable of them)``; gives the URL and what came.

    Each request came as its path, headers and body.
    """
    seen, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                seen.append((self.path, dict(self.headers), body))
            status, headers, payload = respond(self, body)
            whole = isinstance(payload, bytes)
            self.send_response(status)
            for name, value in {**({"Content-Length": str(len(payload))} if whole else {}), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for part in [payload] if whole else payload:
                self.wfile.write(part)

        def log_message(self, *args):
            pass

    class Listening(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args):
            """A client that has had enough is none."""

    listening = Listening(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}/v1", seen
    finally:
        listening.shutdown()
        listening.server_close()


USAGE = {"prompt_tokens": 10, "completion_tokens": 5}


def completion(text, reason="stop", usage=USAGE, **message):
    """A chat completion as an OpenAI-compatible server writes it."""
    return {"choices": [{"message": {"content": text} | message, "finish_reason": reason}], "usage": usage}


@contextmanager
def server(answer):
    """Serves ``answer(body, number) -> (status, text or whole completion)``; gives the URL and the bodies that came.

    ``number`` counts how often the same body came.
    """
    seen, counts, lock = [], Counter(), threading.Lock()

    def respond(handler, data):
        body = json.loads(data)
        name = json.dumps(body, sort_keys=True)
        with lock:
            seen.append(body)
            counts[name] += 1
            number = counts[name]
        status, text = answer(body, number)
        value = completion(text) if status == 200 and isinstance(text, str) else text
        payload = json.dumps(value if status == 200 or isinstance(value, dict) else {"error": text}).encode()
        return status, {"Retry-After": "0"} if status == 429 else {}, payload

    with raw_server(respond) as (url, _):
        yield url, seen


def text_of(body):
    """All texts of a question."""
    return "\n".join(part["text"] for message in body["messages"] for part in message["content"] if part["type"] == "text")
