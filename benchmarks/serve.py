"""64 clients with texts and images of mixed lengths: `conan serve` against a plain FastAPI + sentence-transformers loop, one run.

    python benchmarks/serve.py [--quick | --minutes 10]

Both serve one folder (the peer its stock export), in processes of their own with the same threads, in turn. A client sends its
next request when the last one is answered. With ``--minutes`` ours alone is under that load for so long, and its resident memory
(decoding processes included) is reported. infinity 0.0.78 cannot take part: of vision-language folders it loads only CLIP's.
"""

import asyncio
import base64
import contextlib
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from common import ROOT, parser, report
from PIL import Image
from upstream import write_qwen3_omni, write_qwen3_vl

from lightning_conan.cli.common.logging import quiet_libraries
from lightning_conan.embedder import ProcessorConfig, export_folder, graft_folder

CLIENTS = 64
THREADS = str(os.cpu_count())
LARGER = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
PEER = """
import base64, io, sys
from fastapi import FastAPI
from PIL import Image
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer
import uvicorn

app, model = FastAPI(), SentenceTransformer(sys.argv[1], device="cpu")

class Request(BaseModel):
    text: str | None = None
    image: str | None = None

@app.post("/embed")
def embed(request: Request):
    one = request.text or Image.open(io.BytesIO(base64.b64decode(request.image)))
    return {"embedding": model.encode([one])[0].tolist()}

@app.get("/health")
def health():
    return {}

uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""


def draw(count: int) -> list[tuple[str, str]]:
    """Texts of 2 to 300 words, and each fifth an image of 64 to 320 pixels a side, in base64: kind and content."""
    rng = np.random.default_rng(0)
    words = "a small red circle on the left of big blue square".split()
    found = []
    for number in range(count):
        if number % 5 == 0:
            height, width = rng.integers(64, 320, 2)
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
            found.append(("image", base64.b64encode(buffer.getvalue()).decode()))
        else:
            found.append(("text", " ".join(rng.choice(words, int(np.clip(rng.lognormal(3.2, 1.0), 2, 300))))))
    return found


def ours(kind: str, content: str) -> tuple[str, dict]:
    if kind == "text":
        return "/v1/embeddings", {"input": content}
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{content}"}}
    return "/v1/embeddings", {"messages": [{"role": "user", "content": [part]}]}


def plain(kind: str, content: str) -> tuple[str, dict]:
    return "/embed", {kind: content}


def raw(path: str, body: dict) -> bytes:
    """The bytes of a request."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def client(port: int, requests: Iterator[tuple[int, bytes]], seconds: list[float], answers: dict[int, bytes]) -> None:
    """Sends one request after the other on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    for number, request in requests:
        begun = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.splitlines()[0], head
        length = next(int(line.split(b":")[1]) for line in head.splitlines() if line.lower().startswith(b"content-length"))
        body = await reader.readexactly(length)
        seconds.append(time.perf_counter() - begun)
        answers[number] = body
    writer.close()


async def watched(port: int, requests: list[bytes], process: psutil.Process, minutes: float) -> list[tuple[float, float, int]]:
    """Loads a server for so long: seconds, its resident MB and the requests answered so far, at twenty moments after a tenth."""
    begun = time.monotonic()
    end, answers, seconds = begun + 60 * minutes, dict[int, bytes](), list[float]()
    shared = itertools.takewhile(lambda _: time.monotonic() < end, itertools.cycle(enumerate(requests)))
    clients = asyncio.gather(*(client(port, shared, seconds, answers) for _ in range(CLIENTS)))
    found = []
    for moment in range(2, 21):
        await asyncio.wait({clients}, timeout=max(0.0, begun + 3 * minutes * moment - time.monotonic()))
        found.append((time.monotonic() - begun, memory_of(process), len(seconds)))
    await clients
    return found


async def load(port: int, requests: list[bytes]) -> tuple[list[float], dict[int, bytes]]:
    """The seconds of each request, and the answers."""
    seconds: list[float] = []
    answers: dict[int, bytes] = {}
    shared = iter(enumerate(requests))
    await asyncio.gather(*(client(port, shared, seconds, answers) for _ in range(CLIENTS)))
    return seconds, answers


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def server(words: list[str], port: int) -> Iterator[int]:
    """The id of a server's process, once it answers."""
    environment = os.environ | {"OMP_NUM_THREADS": THREADS, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, *words], env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 300
        while time.monotonic() < end:
            if process.poll() is not None:
                raise ChildProcessError(f"{' '.join(words[:3])} ended with {process.returncode} before it answered")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.2)
        else:
            raise TimeoutError(f"{' '.join(words[:3])} does not answer after 300 s")
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def vector(answer: bytes) -> np.ndarray:
    """The embedding of an answer."""
    found = json.loads(answer)
    return np.array(found["embedding"] if "embedding" in found else found["data"][0]["embedding"])


@dataclass(frozen=True)
class Run:
    """One server under load.

    Args:
        rate: Requests a second.
        seconds: Of each request.
        cpu: CPU seconds a request, of the server and its children.
        answers: Bodies by request.
    """

    rate: float
    seconds: list[float]
    cpu: float
    answers: dict[int, bytes]

    def percentile(self, share: float) -> float:
        """Milliseconds in which that share of the requests, in per cent, were answered."""
        return 1000 * float(np.percentile(np.array(self.seconds), share))


def cpu_of(process: psutil.Process) -> float:
    """CPU seconds of a process and its children so far."""
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


def memory_of(process: psutil.Process) -> float:
    """Resident MB of a process and its children; what they share counts for each."""
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / 1e6


def endure(command: Callable[[int], list[str]], requests: list[bytes], minutes: float) -> None:
    """Reports the memory of a server under load; the first figure is that after a tenth of the time."""
    port = free_port()
    with server(command(port), port) as pid:
        (process,) = [one for one in psutil.Process().children() if one.pid == pid]
        start = memory_of(process)
        asyncio.run(load(port, requests))
        found = asyncio.run(watched(port, requests, process, minutes))
        files = process.num_fds()
    rows = [("seconds", "MB", "requests"), ("start", f"{start:.0f}", "0")]
    rows += [(f"{at:.0f}", f"{memory:.0f}", str(count)) for at, memory, count in found]
    growth = found[-1][1] - found[0][1]
    figures = {"start_mb": start, "warm_mb": found[0][1], "end_mb": found[-1][1], "growth_mb": growth}
    report(rows, figures | {"requests": found[-1][2], "open_files": files})


def run(command: Callable[[int], list[str]], requests: list[bytes]) -> Run:
    """Starts a server, warms it up and loads it."""
    port = free_port()
    with server(command(port), port) as pid:
        asyncio.run(load(port, requests[:CLIENTS]))
        (found,) = [one for one in psutil.Process().children() if one.pid == pid]
        before, begun = cpu_of(found), time.perf_counter()
        seconds, answers = asyncio.run(load(port, requests))
        rate = len(requests) / (time.perf_counter() - begun)
        return Run(rate, seconds, (cpu_of(found) - before) / len(requests), answers)


def compare(mine: Run, theirs: Run) -> dict[str, float]:
    """Ratios of throughput, 99th percentile and CPU time, and the largest distance of an entry of a vector."""
    off = max(float(np.abs(vector(mine.answers[number]) - vector(theirs.answers[number])).max()) for number in mine.answers)
    ratios = {
        "throughput": mine.rate / theirs.rate,
        "p99": mine.percentile(99) / theirs.percentile(99),
        "cpu": mine.cpu / theirs.cpu,
    }
    return {f"ratio_{what}": value for what, value in ratios.items()} | {"off": off}


def main() -> None:
    words = parser(__doc__ or "")
    words.add_argument("--ours", default="", help="options of conan serve, such as '--engine.batches_at_once 2'")
    words.add_argument("--minutes", type=float, help="watch the memory of our server alone, under load for so long")
    given = words.parse_args()
    quiet_libraries()
    count = 300 if given.quick or given.minutes else 3000
    inputs = draw(count)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_qwen3_vl(root / "eyes", shard="1GB", **LARGER)
        write_qwen3_omni(root / "ears")
        graft_folder(str(root / "eyes"), str(root / "ears"), root / "base", ProcessorConfig(), hidden=64)
        export_folder(root / "base", root / "stock", stock=True)
        (root / "peer.py").write_text(PEER)
        more = ["--limits.request_seconds", "600", *given.ours.split()]
        conan = ["-m", "lightning_conan.cli.main", "serve", str(root / "base"), *more, "--port"]
        mine = [raw(*ours(*one)) for one in inputs]
        if given.minutes:
            endure(lambda port: [*conan, str(port)], mine, given.minutes)
            return
        runs = {
            "conan": run(lambda port: [*conan, str(port)], mine),
            "plain": run(
                lambda port: [str(root / "peer.py"), str(root / "stock"), str(port)], [raw(*plain(*one)) for one in inputs]
            ),
        }
    rows = [("", "requests/s", "p50 ms", "p99 ms", "CPU ms a request")]
    for who, done in runs.items():
        spread = [f"{done.percentile(share):.0f}" for share in (50, 99)]
        rows.append((who, f"{done.rate:.1f}", *spread, f"{1000 * done.cpu:.1f}"))
    report(rows, compare(runs["conan"], runs["plain"]))


if __name__ == "__main__":
    main()
