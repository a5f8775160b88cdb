"""An endpoint may answer anything: a question ends as an answer or as an OSError of its own, and secrets are shown nowhere."""

import asyncio
import base64
import gzip
import json
import logging
import math
import time
import traceback
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_in import completion, raw_server

from lightning_conan.items import Media
from lightning_conan.reasoning import endpoint as module
from lightning_conan.reasoning.answers import WITHHELD, NoAnswerError, Reply, UnusableError, cost_of, printable, read_reply
from lightning_conan.reasoning.endpoint import Client, Endpoint

SECRET = "made-up-key-1"
QUESTION = [{"role": "user", "content": "x"}]


def ask(url, **settings):
    """The reply to a question."""

    async def run():
        async with Client(Endpoint(url, **{"retries": 0, "pause": 0.001} | settings)) as client:
            return await client.ask("k", "q", QUESTION)

    return asyncio.run(run())


def packed(value, pack=bytes):
    return pack(json.dumps(value).encode())


GOOD = completion("hello")
HTML = b"<!doctype html><title>Sign in</title>"
AZURE = {"error": {"code": "content_filter", "status": 400, "innererror": {"code": "ResponsibleAIPolicyViolation"}}}
OTHER_USAGES = [
    None,
    [1],
    "many",
    {"prompt_tokens": None},
    {"prompt_tokens": "10"},
    {"prompt_tokens": -5},
    {"prompt_tokens": math.inf},
]
ANSWERS = {
    "as usual": (200, {}, packed(GOOD), Reply("hello", True, 10, 5)),
    "cut off": (200, {}, packed(completion("hel", "length")), Reply("hel", False, 10, 5)),
    "no usage": (200, {}, packed({"choices": GOOD["choices"]}), Reply("hello")),
    "an unknown end": (200, {}, packed(completion("hello", None)), Reply("hello", True, 10, 5)),
    "parts": (200, {}, packed(completion([{"type": "text", "text": "hel"}, {"type": "x"}, "lo"])), Reply("hello", True, 10, 5)),
    "nothing written": (200, {}, packed(completion(None)), Reply("", True, 10, 5)),
    "cut off while thinking": (200, {}, packed(completion(None, "length", reasoning="hm")), Reply("", False, 10, 5)),
    "gzip": (200, {"Content-Encoding": "gzip"}, packed(GOOD, gzip.compress), Reply("hello", True, 10, 5)),
    "deflate": (200, {"Content-Encoding": "deflate"}, packed(GOOD, zlib.compress), Reply("hello", True, 10, 5)),
    "said to be gzip": (200, {"Content-Encoding": "gzip"}, packed(GOOD), Reply("hello", True, 10, 5)),
    "said to be HTML": (200, {"Content-Type": "text/html; charset=nonsense"}, packed(GOOD), Reply("hello", True, 10, 5)),
    "a byte-order mark": (200, {}, b"\xef\xbb\xbf" + packed(GOOD), Reply("hello", True, 10, 5)),
    "UTF-16": (200, {}, json.dumps(GOOD).encode("utf-16"), Reply("hello", True, 10, 5)),
    "a filter": (200, {}, packed(completion(None, "content_filter", refusal="no")), Reply("", False, 10, 5, WITHHELD)),
    "a filter in mid-text": (200, {}, packed(completion("hel", "content_filter")), Reply("", False, 10, 5, WITHHELD)),
    "a model that declines": (200, {}, packed(completion(None, refusal="I cannot")), Reply("", False, 10, 5, "refusal")),
    "a filter of the question": (400, {}, packed(AZURE), Reply("", False, withheld=WITHHELD)),
    "an odd filter": (403, {}, packed({"error": {"type": "moderation_blocked"}}), Reply("", False, withheld=WITHHELD)),
    **{f"usage {n}": (200, {}, packed(GOOD | {"usage": odd}), Reply("hello")) for n, odd in enumerate(OTHER_USAGES)},
    "empty": (200, {}, b"", "not a chat completion"),
    "a page": (200, {"Content-Type": "application/json"}, HTML, "not a chat completion: <!doctype html>"),
    "broken gzip": (200, {"Content-Encoding": "gzip"}, b"\x1f\x8bnonsense", "gave no answer about k: "),
    "half of gzip": (200, {"Content-Encoding": "gzip"}, packed(GOOD, gzip.compress)[:-4], "ends early"),
    "half": (200, {}, packed(GOOD)[:-4], "not a chat completion"),
    "less than was said": (200, {"Content-Length": "9999"}, iter([packed(GOOD)]), "RemoteProtocolError|ReadError"),
    "Latin-1": (200, {}, json.dumps(completion("é"), ensure_ascii=False).encode("latin-1"), "not a chat completion"),
    "too deep": (200, {}, b"[" * 100_000, "not a chat completion"),
    "a list": (200, {}, b"[]", "not a chat completion"),
    "no choice": (200, {}, packed(GOOD | {"choices": []}), "not a chat completion"),
    "choices of null": (200, {}, packed({"choices": None}), "not a chat completion"),
    "a choice of text": (200, {}, packed({"choices": ["hello"]}), "not a chat completion"),
    "no message": (200, {}, packed({"choices": [{"text": "hello"}]}), "not a chat completion"),
    "content of a number": (200, {}, packed(completion(5)), "not a chat completion"),
    "an error with status 200": (200, {}, packed({"error": {"code": 502, "message": "upstream"}}), "upstream"),
    "an error in mid-answer": (200, {}, packed(completion("hel", "error")), "ended with 'error'"),
    "a redirect": (302, {"Location": "http://127.0.0.1:9/"}, b"", "HTTP 302"),
    "a broken header": (200, {"Transfer-Encoding": "chunked", "X": "y"}, iter([b"zz\r\nnonsense"]), "RemoteProtocolError"),
    "unauthorised": (401, {}, b'{"error": "who are\x1b[2J you"}', "HTTP 401: .*who are"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_whatever_comes_back_is_an_answer_or_an_error_of_the_question(name):
    status, headers, body, expected = ANSWERS[name]
    with raw_server(lambda handler, _: (status, headers, body)) as (url, seen):
        if isinstance(expected, Reply):
            assert ask(url, retries=3) == expected
            assert len(seen) == 1  # it is not paid for twice
            return
        with pytest.raises(OSError, match=expected) as caught:
            ask(url)
    assert str(caught.value).isprintable()
    assert url in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "usage", "error", "code", "finish_reason", "refusal", "prompt_tokens"]
            ),
            inner,
        )
    ),
    max_leaves=12,
)


@given(JSON, st.sampled_from([200, 400, 429, 503]))
def test_no_json_is_a_crash(value, status):
    try:
        reply = read_reply(status, {}, json.dumps(value).encode())
    except UnusableError as error:
        reply = error.cost
    assert isinstance(reply.text, str)
    assert all(isinstance(number, int) and number >= 0 for number in (reply.prompt_tokens, reply.completion_tokens))


def test_numbers_that_are_no_tokens_count_nothing():
    body = b'{"usage": {"prompt_tokens": 1' + b"0" * 4000 + b', "completion_tokens": 1e400}}'
    assert cost_of(json.loads(body)) == Reply("", False)
    assert cost_of({"usage": {"prompt_tokens": 7.0, "completion_tokens": float("nan")}}) == Reply("", False, 7)


def test_what_cannot_be_read_is_asked_again_and_counts():
    """Each attempt was paid for: those before the answer, and those of a question without any."""
    bodies = [packed(GOOD | {"choices": []}), packed(completion("hel", "error")), packed(GOOD)]
    with raw_server(lambda handler, _: (200, {}, bodies[min(len(seen), 3) - 1])) as (url, seen):
        assert ask(url, retries=2) == Reply("hello", True, 30, 15)
    with raw_server(lambda handler, _: (200, {}, bodies[0])) as (url, seen), pytest.raises(NoAnswerError) as caught:
        ask(url, retries=3)
    assert len(seen) == 4
    assert (caught.value.cost.prompt_tokens, caught.value.cost.completion_tokens) == (40, 20)


@pytest.mark.parametrize(("status", "times"), [(429, 3), (503, 3), (408, 3), (529, 3), (400, 1), (404, 1), (301, 1)])
def test_only_errors_that_may_pass_are_asked_again(status, times):
    with raw_server(lambda handler, _: (status, {}, b"{}")) as (url, seen), pytest.raises(OSError, match=f"HTTP {status}"):
        ask(url, retries=2)
    assert len(seen) == times


def test_an_answer_has_a_largest_size_also_once_it_is_inflated(monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 2**20)
    sent = []

    def endless():
        while True:
            sent.append(1)
            yield b" " * 2**16

    for headers, body in ({"Content-Encoding": "gzip"}, gzip.compress(b" " * 2**24)), ({}, endless()):
        with raw_server(lambda handler, _: (200, headers, body)) as (url, _), pytest.raises(OSError, match="at most 1,048,576"):  # noqa: B023
            ask(url)
    assert len(sent) < 500


def test_an_answer_that_dribbles_ends_and_one_that_is_late_arrives():
    """The time is an answer's: a byte now and then does not prolong it."""

    def dribble():
        for _ in range(100):
            time.sleep(0.05)
            yield b" "

    def late(handler, _):
        time.sleep(0.3)
        return 200, {}, packed(GOOD)

    with raw_server(lambda handler, _: (200, {}, dribble())) as (url, _), pytest.raises(OSError, match="TimeoutError"):
        ask(url, timeout=0.4)
    with raw_server(late) as (url, _):
        assert ask(url, timeout=5) == Reply("hello", True, 10, 5)


@pytest.mark.parametrize("around", ["{}\r", "{}\n", "{}\r\n", " {} ", "\ufeff{}", "\ufeff{}\r\n"])
def test_what_a_file_puts_around_a_key_is_not_sent(monkeypatch, around):
    monkeypatch.setenv("OPENAI_API_KEY", around.format(SECRET))
    with raw_server(lambda handler, _: (200, {}, packed(GOOD))) as (url, seen):
        ask(url)
    assert seen[0][1]["Authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize("key", [f"{SECRET}\nmore", f"{SECRET}\x07more", f"{SECRET}é", f"“{SECRET}”"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match="must be printable ASCII, got another at place") as caught:
        ask("http://127.0.0.1:9/v1")
    assert SECRET not in str(caught.value)


def shows(error, caplog):
    """True if an error, the way there or a log shows the secret, in whatever spelling."""
    told = "".join(traceback.format_exception(error)) + caplog.text
    return any(secret in told for secret in (SECRET, base64.b64encode(f"me:{SECRET}".encode()).decode()))


@pytest.mark.parametrize("place", ["key", "password", "user", "query", "redirected"])
@pytest.mark.parametrize("outcome", ["echoed", "refused"])
def test_secrets_are_in_no_error_and_no_log(monkeypatch, caplog, place, outcome):
    """A server that says what it got, such as one for debugging, or none at all."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET if place == "key" else "")

    def echo(handler, body):
        said = f"{' ' * 200}{handler.path} {handler.headers} http://elsewhere/?sig={SECRET}"
        return 401, {"Location": f"http://127.0.0.1:9/?sig={SECRET}"}, said.encode()

    with caplog.at_level(logging.DEBUG), raw_server(echo) as (url, seen):
        url = url if outcome == "echoed" else "http://127.0.0.1:9/v1"
        url = url.replace("//", {"password": f"//me:{SECRET}@", "user": f"//{SECRET}@"}.get(place, "//"))
        url += f"?sig={SECRET}" if place == "query" else ""
        with pytest.raises(OSError, match="gave no answer about k") as caught:
            ask(url)
    assert not shows(caught.value, caplog)
    assert SECRET not in repr(Endpoint(url)) + repr(Client(Endpoint(url)))
    if outcome == "echoed" and place in ("password", "user"):
        scheme, _, token = seen[0][1]["Authorization"].partition(" ")
        assert (scheme, SECRET in base64.b64decode(token).decode()) == ("Basic", True)


def test_a_query_stays_behind_the_path():
    """Azure's ``api-version``."""
    with raw_server(lambda handler, _: (200, {}, packed(GOOD))) as (url, seen):
        ask(f"{url}/deployments/m/?api-version=2024-06-01&sig=a%2Bb")
    assert seen[0][0] == "/v1/deployments/m/chat/completions?api-version=2024-06-01&sig=a%2Bb"


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "ftp://host/v1", "http://", "", "http://me:made-up/key-1@host/", "http://host/\n"]
)
def test_a_url_that_is_none_is_refused_at_once(url):
    with pytest.raises(ValueError, match="must b") as caught:
        Endpoint(url)
    assert "made-up" not in str(caught.value)


def test_an_error_does_nothing_to_a_terminal():
    assert printable("a\x1b[2J\nb\r\u202ec", 9) == "a?[2J b ?"


def waits(monkeypatch, respond, **settings):
    """Seconds that the client waits between its attempts."""
    waited, sleep = [], asyncio.sleep

    async def note(seconds):
        waited.append(seconds)
        await sleep(0)

    monkeypatch.setattr(module.asyncio, "sleep", note)
    with raw_server(respond) as (url, _), pytest.raises(OSError, match="HTTP"):
        ask(url, **settings)
    return waited


def test_pauses_double_and_none_follows_the_last_attempt(monkeypatch):
    assert waits(monkeypatch, lambda *_: (503, {}, b""), retries=3, pause=0.5) == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("said", "seconds"), [("7", 7), ("0.1", 0.5), ("9999", 60), ("inf", 60), ("-3", 0.5), ("Fri, 1 Jan", 0.5)]
)
def test_a_server_says_how_long_to_wait_up_to_a_minute(monkeypatch, said, seconds):
    assert waits(monkeypatch, lambda *_: (429, {"Retry-After": said}, b""), retries=1, pause=0.5) == [seconds]


def test_no_more_questions_begin_in_a_minute_than_may(monkeypatch):
    """By a clock that only sleeping moves."""
    now, begun = [1000.0], []

    async def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.asyncio, "sleep", sleep)

    async def begin():
        client = Client(Endpoint(per_minute=3))
        client.clock = asyncio.Lock()
        for _ in range(10):
            await client.turn()
            begun.append(now[0])
            now[0] += 4

    asyncio.run(begin())
    assert all(begun[place + 3] - begun[place] >= 60 for place in range(7))
    assert begun[-1] - begun[0] < 3 * 60 + 3 * 4


def test_media_travel_as_the_types_that_servers_know():
    kinds = [("image", "jpg"), ("image", "png"), ("document", "webp"), ("video", "mov"), ("audio", "flac"), ("audio", "mp3")]
    media = [Media(modality, suffix.encode(), f"a.{suffix}") for modality, suffix in kinds]
    text, *parts = module.content_of(["words", *media])
    assert text == {"type": "text", "text": "words"}
    data = [base64.b64encode(suffix.encode()).decode() for _, suffix in kinds]
    types = ["image/jpeg", "image/png", "image/webp", "video/quicktime"]
    names = ["image_url"] * 3 + ["video_url"]
    assert parts[:4] == [
        {"type": name, name: {"url": f"data:{kind};base64,{each}"}} for name, kind, each in zip(names, types, data, strict=False)
    ]
    assert parts[4:] == [
        {"type": "input_audio", "input_audio": {"data": each, "format": kind}}
        for each, kind in zip(data[4:], ("flac", "mp3"), strict=True)
    ]
    for odd in (Media("document", b"", "a.pdf"), Media("audio", b"", "a.wav", start=1.0), Media("video", b"", "a.mp4", end=2.0)):
        with pytest.raises(ValueError, match="takes whole files"):
            module.media_part(odd)
