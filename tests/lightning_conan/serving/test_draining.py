"""SIGTERM in mid-load: every request that was accepted is answered, and the exit status is 143."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest
from served import link, make_service, serving, uri, user

from samples import png

BODIES = [{"input": ["a red circle"] * 3}, {"messages": user(link("image", uri("image/png", png())))}, {"input": "b"}]


class Caller(threading.Thread):
    """A client that asks again and again on one connection, until it is refused one."""

    def __init__(self, url: str, body: dict) -> None:
        super().__init__()
        self.url, self.body, self.answers, self.end = url, body, 0, None

    def run(self) -> None:
        with httpx.Client(timeout=60) as client:
            while self.end is None:
                try:
                    answer = client.post(f"{self.url}/v1/embeddings", json=self.body)
                    assert answer.status_code == 200, answer.text
                    self.answers += 1
                except Exception as error:
                    self.end = error


@pytest.fixture(scope="module")
def process(base, tmp_path_factory):
    """A server in a process of its own, with a process that decodes."""
    index, log = tmp_path_factory.mktemp("process"), tmp_path_factory.mktemp("process") / "log"
    words = ["serve", str(base), "--port", "0", "--name", "tiny", "--engine.num_workers", "1"]
    command = [sys.executable, "-m", "lightning_conan.cli.main", *words]
    with log.open("wb") as file:
        found = subprocess.Popen(command, stderr=file, cwd=index, start_new_session=True)
    found.lines = lambda: [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    yield found
    found.kill()
    found.wait()


def started(process) -> str:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if serving_lines := [line for line in process.lines() if line["event"] == "serving"]:
            return f"http://127.0.0.1:{serving_lines[0]['port']}"
        time.sleep(0.1)
    raise AssertionError(process.lines())


def test_sigterm_in_mid_load(process):
    """Nobody's connection is cut; the log and the clients count alike; the decoding process gets the signal, too."""
    url = started(process)
    callers = [Caller(url, BODIES[number % 3]) for number in range(12)]
    for caller in callers:
        caller.start()
    time.sleep(2)
    os.killpg(process.pid, signal.SIGTERM)
    for caller in callers:
        caller.join(60)
    assert process.wait(60) == 143
    assert {type(caller.end) for caller in callers} == {httpx.ConnectError}, [caller.end for caller in callers]
    assert all(caller.answers for caller in callers)
    answered = [line for line in process.lines() if line["event"] == "request"]
    assert {line["status"] for line in answered} == {200}
    assert len(answered) == sum(caller.answers for caller in callers)
    assert all(line["ms"] > 0 and line["prompt_tokens"] > 0 and line["id"] for line in answered)


def test_a_server_that_ends_says_so_and_closes_connections(base):
    """In this process: the answer in progress comes, with the wish to close."""
    service = make_service(base)
    with serving(service) as server:
        compute, found = service.engine.batcher.compute, []
        service.engine.batcher.compute = lambda items, reasons: time.sleep(0.5) or compute(items, reasons)
        late = threading.Thread(
            target=lambda: found.append(httpx.post(f"{server.url}/v1/embeddings", json={"input": "a"}, timeout=30))
        )
        late.start()
        with httpx.Client() as client:
            assert client.get(f"{server.url}/health").status_code == 200
            while not service.active:
                time.sleep(0.01)
            server.should_exit = True
            while not service.draining:
                time.sleep(0.01)
            health = client.get(f"{server.url}/health")
            assert (health.status_code, health.json()["status"]) == (503, "draining")
            assert health.headers["connection"] == "close"
            with pytest.raises(httpx.ConnectError):
                client.get(f"{server.url}/health")
        late.join(30)
    assert found[0].status_code == 200
    assert found[0].headers["connection"] == "close"
