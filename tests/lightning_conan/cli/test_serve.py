"""`conan serve`: its options, before anything is loaded."""

import importlib.util
import socket
from pathlib import Path

import pytest
import torch

from lightning_conan.cli import serve
from lightning_conan.cli.main import main
from lightning_conan.retrieval.store import Origin, write_part
from lightning_conan.serving import Access
from lightning_conan.serving.errors import ApiError


@pytest.fixture(autouse=True)
def served(monkeypatch):
    """Services and hosts that would be served."""
    found = []
    monkeypatch.setattr("lightning_conan.serving.server.run_server", lambda service, host, port: found.append((service, host)))
    monkeypatch.delenv(serve.KEY, raising=False)
    return found


@pytest.mark.parametrize(("host", "local"), [
    ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("10.0.0.1", False),
    ("example.com", False),
])  # fmt: skip
def test_local_addresses_are_known(host, local):
    assert serve.is_local(host) == local


def test_the_key_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    assert serve.read_key(None) is None
    monkeypatch.setenv(serve.KEY, "fr0m-the-environment")
    assert serve.read_key(None) == "fr0m-the-environment"
    (tmp_path / "key").write_text("fr0m-a-file\n")
    assert serve.read_key(tmp_path / "key") == "fr0m-a-file"
    for bad in ("", "two words", "schlüssel"):
        (tmp_path / "key").write_text(bad)
        with pytest.raises(ValueError, match=r"one word of ASCII characters, that of .*key is not"):
            serve.read_key(tmp_path / "key")


@pytest.mark.parametrize(("key", "host", "given", "status"), [
    (None, "example.com", "", 421), (None, "127.0.0.1:8000", "", 0), (None, "[::1]:8000", "", 0), (None, "localhost", "", 0),
    (None, "", "", 421), (None, "127.0.0.1.evil.example", "", 421),
    ("k", "127.0.0.1", "", 401), ("k", "127.0.0.1", "Bearer k", 0), ("k", "127.0.0.1", "bearer k", 0),
    ("k", "127.0.0.1", "Bearer kk", 401), ("k", "127.0.0.1", "Bearer \xe9", 401), ("k", "127.0.0.1", "k", 401),
])  # fmt: skip
def test_access_is_by_name_and_key(key, host, given, status):
    access = Access(key, frozenset({"127.0.0.1", "localhost", "[::1]"}))
    if not status:
        access.check(host, given)
        return
    with pytest.raises(ApiError) as refused:
        access.check(host, given)
    assert refused.value.status == status


@pytest.mark.parametrize(("words", "said"), [
    (["--engine.token_budget", "0"], "token_budget must be positive"),
    (["--limits.max_inputs", "0"], "Limits of requests must be positive"),
    (["--port", "x"], "port"),
    (["--port", "70000"], "port must be from 0 to 65535, got 70000"),
    (["--host", "198.51.100.7"], "198.51.100.7:0 cannot be listened at"),
    (["--host", "nowhere.invalid"], "nowhere.invalid:0 cannot be listened at"),
    (["--name", "a:b"], "without a colon"),
    (["--index", "nowhere"], "nowhere holds no embeddings"),
])  # fmt: skip
def test_options_that_make_no_sense_are_refused(base, capsys, words, said):
    assert main(["serve", str(base), "--port=0", *words, "--engine.num_workers=0"]) > 0
    assert said in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(base, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(base), "--port", str(port)]) == 1
    assert f"127.0.0.1:{port} cannot be listened at" in capsys.readouterr().err


def test_a_folder_that_is_none_is_refused(tmp_path, capsys):
    assert main(["serve", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_an_index_of_another_model_is_refused(base, tmp_path, capsys, served):
    write_part(tmp_path, 0, Origin("another", "s", "float32", 128, 1, 1), ["a"], ["text"], torch.ones(1, 128))
    assert main(["serve", str(base), "--index", str(tmp_path), "--port=0", "--engine.num_workers=0"]) == 1
    assert "was made with another model" in capsys.readouterr().err
    assert not served


def test_what_is_missing_is_told_by_its_extra(base, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert main(["serve", str(base)]) == 1
    assert "Serving needs uvicorn, which is not installed: pip install 'lightning-conan[serve]'" in capsys.readouterr().err


def test_it_listens_here_alone_unless_told(base, served):
    """And without a key a local server answers to local names alone."""
    for words in ([], ["--host", "0.0.0.0"]):
        assert main(["serve", str(base), "--engine.num_workers=0", "--port=0", *words]) == 0
    (first, here), (second, everywhere) = served
    assert (here, everywhere) == ("127.0.0.1", "0.0.0.0")
    assert first.access.hosts == {"127.0.0.1", "localhost", "[::1]"}
    assert second.access.hosts is None
    assert first.name == Path(base).name
    assert not first.fetcher.hosts
