"""URLs are shown without their secrets, and compressed bodies inflate a block at a time."""

import gzip
import logging
import zlib
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_conan import web
from lightning_conan.web import Inflater, check_host, file_url, redact, redact_logs, secrets_of, without_secrets

SECRET = "made-up-pass"


@pytest.mark.parametrize(("url", "shown"), [
    ("http://user:made-up-pass@127.0.0.1:9/set", "http://127.0.0.1:9/set"),
    ("https://made-up-pass@host/set", "https://host/set"),
    ("http://127.0.0.1:9/set?X-Amz-Signature=made-up-pass", "http://127.0.0.1:9/set"),
    ("http://host/set#access_token=made-up-pass", "http://host/set"),
    ("http://u:made-up-pass@[::1]:80/x?y=z", "http://[::1]:80/x"),
    ("simplecache::https://u:made-up-pass@host/x", "simplecache::https://host/x"),
    ("https:/u:made-up-pass@host/x", "https:/host/x"),  # a Path takes a slash away
    ("http://u:12@34/made-up-pass@host/x", "http://host/x"),
    ("http://u:made-up/pass@host/x", "http://***"),
    ("http://u:made-up?pass@host/x", "http://***"),
    ("http://u:a@b?made-up-pass@host/x", "http://***"),
    ("hf://datasets/me/set@v1.0/train", "hf://datasets/me/set@v1.0/train"),
    ("https://host/npm/pkg@1/x", "https://host/npm/pkg@1/x"),
    ("s3://bucket/a folder/x", "s3://bucket/a folder/x"),
    ("http://localhost:8000/v1", "http://localhost:8000/v1"),
    ("/data/me@home/set?", "/data/me@home/set?"),
    (r"C:/Users/me@home/set", r"C:/Users/me@home/set"),
])  # fmt: skip
def test_a_url_is_shown_without_its_secrets(url, shown):
    assert without_secrets(url) == shown


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=4, max_size=12).filter(str.strip)


@given(WORDS, WORDS, st.sampled_from(["password", "user", "signature", "fragment"]))
def test_no_secret_of_a_well_formed_url_is_shown(secret, path, place):
    """Python's own parser says what is left."""
    secret, path = quote(f"zz{secret}zz", safe=""), quote(path, safe="")
    url = {
        "password": f"https://me:{secret}@host:8000/{path}?a=b",
        "user": f"https://{secret}@host:8000/{path}",
        "signature": f"https://host:8000/{path}?a=b&sig={secret}",
        "fragment": f"https://host:8000/{path}#{secret}",
    }[place]
    parts = urlsplit(url)
    assert without_secrets(url) == f"https://{parts.hostname}:{parts.port}{parts.path}"
    assert secret not in redact(f"refused: '{url}', since {url} ({secret})", *secrets_of(url)) or place == "fragment"


def test_texts_of_libraries_are_shown_without_secrets_in_whatever_spelling():
    url = "https://me:p%40ss-word@host/set?sig=a%2Bb%2Fc%3D&other=1"
    texts = [
        "url=URL('https://me:p%40ss-word@host/set')",
        "p@ss-word",
        "a+b/c=",
        "a%2Bb%2Fc%3D",
        "Basic bWU6cEBzcy13b3Jk",
        "me:p%40ss-word",
    ]
    for text in texts:
        found = redact(f"it said {text}!", *secrets_of(url))
        assert not any(secret in found for secret in ("ss-word", "a+b", "a%2B", "bWU6cEBzcy13b3Jk"))
    other = "403, message='Forbidden', url='https://cdn.example.org/x?Signature=made-up-pass' in 1 try"  # of a redirect
    assert redact(other, *secrets_of(url)) == "403, message='Forbidden', url='https://cdn.example.org/x' in 1 try"


@pytest.mark.parametrize(("folder", "name", "url"), [
    ("https://host/set", "index.json", "https://host/set/index.json"),
    ("https://host/set/", "index.json", "https://host/set/index.json"),
    ("https://host/set?sig=a%2Bb&x=/", "000000.tar", "https://host/set/000000.tar?sig=a%2Bb&x=/"),
    ("https://host/set/?sig=a#part", "000000.tar", "https://host/set/000000.tar?sig=a"),
    ("https://host?sig=a", "000000.tar", "https://host/000000.tar?sig=a"),
    ("http://host/set", "odd name?x#y.tar", "http://host/set/odd%20name%3Fx%23y.tar"),
    ("https://host/openai/deployments/m?api-version=1", "chat/completions",
     "https://host/openai/deployments/m/chat/completions?api-version=1"),
    ("s3://bucket/what?/x", "index.json", "s3://bucket/what?/x/index.json"),  # part of a key there
    ("/data/set", "index.json", "/data/set/index.json"),
])  # fmt: skip
def test_a_file_of_a_folder_stands_before_the_query(folder, name, url):
    assert file_url(folder, name) == url


@pytest.mark.parametrize("url", ["http://user:made-up/pass@host/x", "http://host:port/x", "http://user:made-up?pass@host/x"])
def test_a_port_that_is_none_is_refused_without_being_shown(url):
    with pytest.raises(ValueError, match="port must be a number") as caught:
        check_host(url)
    assert "made-up" not in str(caught.value)


def test_logs_of_the_client_show_no_secrets(caplog):
    redact_logs()
    redact_logs()
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("httpx").info('HTTP Request: %s %s "%d"', "GET", "http://me:made-up-pass@host/x?sig=made-up-pass", 200)
        logging.getLogger("httpcore.http11").debug("headers=[(b'location', b'http://host/x?sig=made-up-pass')] 100%")
    assert [record.getMessage() for record in caplog.records] == [
        'HTTP Request: GET http://host/x "200"',
        "headers=[(b'location', b'http://host/x')] 100%",
    ]


def inflate(encoding, data, step):
    inflater = Inflater(encoding)
    blocks = [block for start in range(0, len(data), step) for block in inflater.feed(data[start : start + step])]
    return [*blocks, inflater.end()]


@given(st.binary(max_size=400), st.integers(1, 50), st.sampled_from(["gzip", "x-gzip", "GZIP", "deflate", "identity", "", "br"]))
def test_a_body_inflates_to_what_was_compressed(data, step, encoding):
    packed = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}.get(encoding.lower(), bytes)
    assert b"".join(inflate(encoding, packed(data), step)) == data


def test_a_small_body_inflates_a_block_at_a_time(monkeypatch):
    monkeypatch.setattr(web, "BLOCK", 1000)
    blocks = inflate("gzip", gzip.compress(bytes(100_000), mtime=0), 2**20)
    assert b"".join(blocks) == bytes(100_000)
    assert max(map(len, blocks)) <= 1000


def test_a_body_that_is_not_what_its_header_says_is_passed_on():
    assert b"".join(inflate("gzip", b'{"a": 1}', 3)) == b'{"a": 1}'


@pytest.mark.parametrize("step", [1, 2**10])
@pytest.mark.parametrize(("data", "reason"), [
    (gzip.compress(b"x" * 1000, mtime=0)[:-9], "ends early"), (b"\x1f\x8b", "ends early"),
    (gzip.compress(b"x", mtime=0) + b"more", "bytes follow"),
])  # fmt: skip
def test_a_compressed_body_is_whole(data, reason, step):
    with pytest.raises(OSError, match=reason):
        inflate("gzip", data, step)
