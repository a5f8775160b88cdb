"""Requests that break a rule are refused by name; whatever a client does, others are served."""

import asyncio
import io
import json
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from pages import page, two_pages
from PIL import Image
from served import link, make_service, serving, text, uri, user

from lightning_conan.serving import Access, RequestLimits
from samples import flac, mp4, png

LIMITS = RequestLimits(
    max_requests=12,
    max_body_mb=1,
    max_inputs=8,
    max_media=3,
    max_characters=500,
    max_tokens=120,
    max_pixels=100_000,
    max_seconds=3.0,
    max_frames=20,
    body_seconds=1.0,
)


@pytest.fixture(scope="module")
def server(base):
    with serving(make_service(base, LIMITS)) as found:
        yield found


@pytest.fixture(scope="module")
def url(server):
    return server.url


@pytest.fixture(autouse=True)
def healthy(url):
    """After each test the server answers."""
    yield
    assert answered(url) == 200


def answered(url, seconds=30):
    """The status of a small request, which is sent again while the server still works through what was left to it."""
    end = time.monotonic() + seconds
    while (status := httpx.post(f"{url}/v1/embeddings", json={"input": "a"}).status_code) == 429 and time.monotonic() < end:
        time.sleep(0.1)
    return status


def image_message(data, kind="image/png", fragment=""):
    return {"messages": user(link("image", uri(kind, data, fragment)))}


def huge_png(side: int) -> bytes:
    """A few kilobytes that say that they are side x side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def long_animation() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (500, 500)).save(buffer, "GIF")
    return buffer.getvalue()


SOUND = {"type": "input_audio", "input_audio": {"data": "????", "format": "wav"}}
BAD = {
    "no JSON": (b"{", "schema"),
    "not UTF-8": (b'{"input": "\xff\xfe"}', "schema"),
    "a list": ([], "schema"),
    "nested beyond measure": (b'{"x":' * 100_000, "schema"),
    "no input": ({}, "input or messages"),
    "input and messages": ({"input": "a", "messages": user(text("a"))}, "input or messages"),
    "an empty text": ({"input": ["a", ""]}, "must hold text or media"),
    "no texts": ({"input": []}, "1 to 8 inputs"),
    "too many texts": ({"input": ["a"] * 9}, "1 to 8 inputs"),
    "too long a text": ({"input": "a" * 501}, "at most 500 characters"),
    "too many tokens": ({"input": "x1y2" * 100}, "at most 120 tokens"),
    "half a character": (b'{"input": "a\\ud800b"}', ""),
    "an object": ({"input": {"a": 1}}, "schema"),
    "a mixture of texts and ids": ({"input": ["a", 1]}, "mixture"),
    "token ids of another vocabulary": ({"input": [5, 10**6]}, "tokenizer"),
    "token ids that no text gives": ({"input": [[0, 1, 2]]}, "tokenizer"),
    "negative token ids": ({"input": [-1]}, "tokenizer"),
    "an unknown format": ({"input": "a", "encoding_format": "int8"}, "schema"),
    "dimensions nobody trained": ({"input": "a", "dimensions": 64}, "among [128]"),
    "no dimensions": ({"input": "a", "dimensions": 0}, "schema"),
    "an assistant's turn": ({"messages": [{"role": "assistant", "content": "a"}]}, "schema"),
    "two users' turns": ({"messages": user(text("a")) * 2}, "user's turn"),
    "an empty conversation": ({"messages": [[]]}, "user's turn"),
    "turns and conversations": ({"messages": [user(text("a")), user(text("a"))[0]]}, "got both"),
    "media in the system's turn": (
        {"messages": [{"role": "system", "content": [link("image", uri("image/png", png()))]}, *user(text("a"))]},
        "system's turn",
    ),
    "an unknown part": ({"messages": user({"type": "file", "file": {}})}, "schema"),
    "a part without its type": ({"messages": user({"text": "a"})}, "schema"),
    "too many media": ({"messages": user(*[link("image", uri("image/png", png(8, 8)))] * 4)}, "at most 3 media"),
    "no base64": ({"messages": user(SOUND)}, "base64"),
    "base64 of nothing": ({"messages": user(link("image", "data:image/png;base64,"))}, "0 bytes"),
    "a data URI in plain": ({"messages": user(link("image", "data:image/svg+xml,<svg/>"))}, "base64"),
    "a file": ({"messages": user(link("image", "file:///etc/passwd"))}, "data:TYPE"),
    "a path": ({"messages": user(link("image", "/etc/passwd"))}, "data:TYPE"),
    "a remote image": ({"messages": user(link("image", "https://example.com/a.png"))}, "--allowed_hosts"),
    "this server itself": ({"messages": user(link("image", "http://127.0.0.1/metrics"))}, "--allowed_hosts"),
    "a sound for an image": ({"messages": user(link("image", uri("audio/flac", flac())))}, "image/"),
    "text for an image": (image_message(b"no image"), "cannot be decoded"),
    "a page that is not there": (image_message(two_pages(), "application/pdf", "#page=3"), "page 3 does not exist"),
    "a fragment of nonsense": (image_message(two_pages(), "application/pdf", "#slide=3"), "#page=3"),
    "pages backwards": (image_message(two_pages(), "application/pdf", "#page=2-1"), "#page=3"),
    "a million pages": (image_message(two_pages(), "application/pdf", "#page=1-999999"), "#page=3"),
    "a PNG of 1.6 gigapixels": (image_message(huge_png(40_000)), "1600000000 pixels"),
    "a GIF over the limit": (image_message(long_animation(), "image/gif"), "pixels, must be"),
    "a PDF as large as a house": (image_message(page(size=b"[0 0 14000 14000]"), "application/pdf"), "pixels, must be"),
    "a truncated image": (image_message(png()[:-100]), "cannot be decoded"),
    "a long sound": ({"messages": user(link("audio", uri("audio/flac", flac(3.5))))}, "must be at most 3"),
    "a long video": ({"messages": user(link("video", uri("video/mp4", mp4(frames=24))))}, "must be"),
    "half a video": ({"messages": user(link("video", uri("video/mp4", mp4()[:3000])))}, "cannot be decoded"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_says_why(url, name):
    body, said = BAD[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(f"{url}/v1/embeddings", content=content, headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert said in error["message"]
    assert not any(secret in answer.text for secret in ("root:", str(Path.home()), "site-packages"))


@pytest.mark.parametrize(("body", "said"), [
    ({"input_type": "search_query"}, "one of texts, images and inputs"),
    ({"input_type": "search_query", "texts": ["a"], "images": ["b"]}, "one of texts, images and inputs"),
    ({"texts": ["a"]}, "input_type"),
    ({"texts": [], "input_type": "search_query"}, "1 to 8"),
    ({"texts": ["a"], "input_type": "search_query", "embedding_types": ["int8"]}, "int8"),
    ({"images": ["https://example.com/a.png"], "input_type": "image"}, "--allowed_hosts"),
])  # fmt: skip
def test_a_bad_cohere_request_says_why(url, body, said):
    answer = httpx.post(f"{url}/v2/embed", json=body)
    assert answer.status_code == 400
    assert said in answer.json()["message"]


@pytest.mark.parametrize(("method", "path", "options", "status"), [
    ("GET", "/nope", {}, 404),
    ("GET", "/v1/../../etc/passwd", {}, 404),
    ("GET", "/v1/embeddings", {}, 405),
    ("POST", "/v1/embeddings", {"content": b'{"input": "a"}'}, 415),
    ("POST", "/v1/embeddings", {"json": {"input": "a"}, "headers": {"Content-Encoding": "gzip"}}, 415),
    ("POST", "/v1/embeddings", {"json": {"input": "a" * 1_100_000}}, 413),
    ("POST", "/v1/embeddings", {"json": {"input": "a", "model": "gpt-4"}}, 404),
    ("POST", "/v1/search", {"json": {"input": "a"}}, 404),
])  # fmt: skip
def test_other_refusals_have_their_status(url, method, path, options, status):
    answer = httpx.request(method, url + path, **options)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_openais_client_raises_its_own_errors(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="model must be among"):
        client.embeddings.create(model="other", input="a")
    with pytest.raises(openai.BadRequestError, match="at most 500 characters"):
        client.embeddings.create(model="tiny", input="a" * 501)


def test_without_the_key_only_health_answers(base):
    access = Access("s3cret", frozenset({"127.0.0.1"}))
    with serving(make_service(base, access=access)) as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}, {"Authorization": "Basic s3cret"}):
            for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/v1/embeddings"), ("POST", "/v2/embed")):
                answer = httpx.request(method, server.url + path, headers=header)
                assert answer.status_code == 401, path
                assert answer.json()["error"]["code"] == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong").embeddings.create(model="tiny", input="a")
        right = openai.OpenAI(base_url=f"{server.url}/v1", api_key="s3cret")
        assert len(right.embeddings.create(model="tiny", input="a").data) == 1
        other = httpx.get(f"{server.url}/v1/models", headers={"Authorization": "Bearer s3cret", "Host": "evil.example"})
        assert other.status_code == 421


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"


def answer_of(stuck: socket.socket) -> bytes:
    """All that comes until the server closes."""
    found = b""
    while block := stuck.recv(65536):
        found += block
    return found


@pytest.mark.parametrize(("sent", "status"), [
    (b"", b""), (b"POST /v1/emb", b""), (HEAD, b""), (HEAD + b"\r\n", b" 408 "), (HEAD + b'\r\n{"input": "a', b" 408 "),
    (b"\x16\x03\x01 no HTTP\r\n\r\n", b" 400 "),
])  # fmt: skip
def test_a_client_that_stops_in_the_middle_is_let_go(url, sent, status):
    """Within a second or so, while others are served."""
    with connect(url) as stuck:
        begun = time.monotonic()
        stuck.sendall(sent)
        assert httpx.post(f"{url}/v1/embeddings", json={"input": "a"}).status_code == 200
        assert status in answer_of(stuck)
        assert time.monotonic() - begun < 15


def test_a_hundred_half_requests_hold_up_nobody(url):
    stuck = [connect(url) for _ in range(100)]
    for one in stuck:
        one.sendall(HEAD + b"\r\n{")
    begun = time.monotonic()
    assert httpx.post(f"{url}/v1/embeddings", json={"input": "a"}).status_code == 200
    assert time.monotonic() - begun < 10
    for one in stuck:
        one.close()


def test_a_client_that_leaves_frees_its_place(server, url):
    body = json.dumps({"input": ["word " * 20] * 8}).encode()
    for _ in range(30):
        with connect(url) as gone:
            gone.sendall(HEAD.replace(b" 100\r", b" %d\r" % len(body)) + b"\r\n" + body)
    assert answered(url) == 200
    end = time.monotonic() + 30
    while (server.service.active or server.service.held) and time.monotonic() < end:
        time.sleep(0.02)
    assert server.service.active == server.service.held == server.service.engine.batcher.tokens == 0


def test_too_many_at_once_are_asked_to_come_again(server, url, monkeypatch):
    """As long as the model is busy; those that were let in are answered."""
    compute = server.service.engine.batcher.compute

    def slowly(items, reasons):
        time.sleep(0.5)
        return compute(items, reasons)

    monkeypatch.setattr(server.service.engine.batcher, "compute", slowly)
    with ThreadPoolExecutor(30) as crowd:
        answers = list(crowd.map(lambda _: httpx.post(f"{url}/v1/embeddings", json={"input": "a"}, timeout=60), range(30)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= LIMITS.max_requests
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.json()["error"]["type"] == "rate_limit_error"


def test_a_slow_request_is_ended(base):
    service = make_service(base, RequestLimits(request_seconds=0.2))
    with serving(service) as server:
        compute = service.engine.batcher.compute
        service.engine.batcher.compute = lambda items, reasons: time.sleep(1) or compute(items, reasons)
        answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": "a"})
        assert answer.status_code == 504
        assert "at most 0.2 s" in answer.json()["error"]["message"]
        service.engine.batcher.compute = compute
        assert server.service.active == 0


def test_a_model_that_fails_is_told_and_survives(server, url, monkeypatch):
    """The other inputs of its batch are embedded; the error does not tell of the inside."""
    compute = server.service.engine.batcher.compute

    def fragile(items, reasons):
        if any(len(item) > 60 for item in items):
            raise RuntimeError("CUDA out of memory at 0xdeadbeef")
        return compute(items, reasons)

    monkeypatch.setattr(server.service.engine.batcher, "compute", fragile)

    async def together():
        async with httpx.AsyncClient(timeout=60) as client:
            texts = ["a", "x1y2" * 20, "b", "c"]
            return await asyncio.gather(*(client.post(f"{url}/v1/embeddings", json={"input": words}) for words in texts))

    answers = asyncio.run(together())
    assert [answer.status_code for answer in answers] == [200, 500, 200, 200]
    assert "deadbeef" not in answers[1].text
    assert answers[1].headers["X-Request-ID"]
