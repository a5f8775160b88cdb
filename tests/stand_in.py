"""A stand-in for an OpenAI-compatible server, on this machine, that answers as told: slowly, wrongly, or not at all."""

import json
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def server(answer):
    """Serves ``answer(body, number) -> (status, text)``; gives the URL and the bodies that came.

    ``number`` counts how often the same body came.
    """
    seen, counts, lock = [], Counter(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = json.dumps(body, sort_keys=True)
            with lock:
                seen.append(body)
                counts[name] += 1
                number = counts[name]
            status, text = answer(body, number)
            usage = {"prompt_tokens": 10, "completion_tokens": 5}
            value = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage}
            payload = json.dumps(value if status == 200 else {"error": text}).encode()
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *args):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}/v1", seen
    finally:
        listening.shutdown()
        listening.server_close()


def text_of(body):
    """All texts of a question."""
    return "\n".join(part["text"] for message in body["messages"] for part in message["content"] if part["type"] == "text")
