"""Shards behind a real HTTP server: the same batches as from a folder, a bounded cache, and faults of a network."""

import errno
import gzip
import json
import logging
import os
import shutil
import threading
import time
import traceback
import tracemalloc
import zlib
from base64 import b64encode
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import fsspec
import pytest
import torch
from filelock import FileLock

from datamodules import RehearsalData, SpecialistData
from datamodules.loading.plan import Slot
from datamodules.loading.stream import Encoder
from datamodules.shards import download, remote
from datamodules.shards.indexed import PairReader, opened_files
from datamodules.shards.read import Reading, ShardSet
from datamodules.shards.remote import RemoteShard, ShardCache, UnreachableError
from datamodules.shards.write import write_shards
from datamodules.toy_world import draw_pairs
from lightning_conan.cli.main import main
from lightning_conan.items import Item, Pair

GB = 2**30


class Server(ThreadingHTTPServer):
    """Serves a folder, counts what is asked for, may fail, asks for a query or a password, and answers as told."""

    daemon_threads = True

    def __init__(self, root):
        self.root, self.asked, self.faults, self.slow = root, Counter(), Counter(), 0.0
        self.query = self.authorization = None
        self.answers = {}
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(root)))

    def handle_error(self, *_):
        """A client that has had enough is none."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        place, _, query = self.path.partition("?")
        name = place.rsplit("/", 1)[-1]
        self.server.asked[name] += 1
        time.sleep(self.server.slow)
        if self.server.faults[name] > 0:
            self.server.faults[name] -= 1
            self.send_error(500)
        elif self.server.query not in (None, query) or self.server.authorization not in (None, self.headers["Authorization"]):
            self.send_error(403, f"not {self.path}")
        elif name in self.server.answers:
            self.answer(*self.server.answers[name])
        else:
            super().do_GET()

    def do_HEAD(self):
        self.send_error(403)  # as a signature for GET alone has it

    def answer(self, status, headers, parts):
        """Sends a status, headers, and bytes as they come."""
        self.send_response(status)
        for field, value in headers.items():
            self.send_header(field, value)
        self.end_headers()
        for part in parts:
            self.wfile.write(part)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """A server of ``tmp_path / "served"``."""
    (tmp_path / "served").mkdir()
    with Server(tmp_path / "served") as found:
        threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.01)


def pack(folder, count=60, per_shard=6):
    """Texts of two tasks, each shard with both."""
    pairs = [Pair(f"{row:03d}", f"t{row % 2}", "text", Item((f"q{row} " * 50,)), Item((f"t{row}",))) for row in range(count)]
    write_shards(pairs, folder, per_shard)


def running(processor, epoch=0):
    """A trainer, as far as the data asks it."""
    model = SimpleNamespace(processor=processor)
    return SimpleNamespace(global_rank=0, world_size=1, current_epoch=epoch, lightning_module=model)


def batches(kind, processor, train, workers=0, **settings):
    """An epoch's batches."""
    data = kind(train, batch_size=8, num_workers=workers, **settings)
    data.trainer = running(processor)
    data.setup("fit")
    return list(data.train_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder_and_each_shard_comes_once(server, tmp_path, processor, workers):
    write_shards(draw_pairs("image", 40, 0), server.root / "set", 5)
    here, away = (
        batches(SpecialistData, processor, folder, workers, reading=Reading(window=10, cache=tmp_path / "cache"))
        for folder in (server.root / "set", f"{server.url}/set/")
    )
    assert [batch.keys for batch in away] == [batch.keys for batch in here]
    for one, other in zip(here, away, strict=True):
        pixels = ([tensor for item in batch.items() for tensor in item.inputs("vision")] for batch in (one, other))
        assert all(torch.equal(a, b) for a, b in zip(*pixels, strict=True))
    assert {name: count for name, count in server.asked.items() if name.endswith("tar")} == {f"{n:06d}.tar": 1 for n in range(8)}


def test_a_set_larger_than_the_cache_streams_through_it(server, tmp_path, processor):
    pack(server.root / "set", 240)
    size = max(path.stat().st_size for path in (server.root / "set").glob("*.tar"))
    limit, largest, done = 10 * size, 0, threading.Event()

    def watch():
        nonlocal largest
        while not done.is_set():
            with suppress(FileNotFoundError), FileLock(tmp_path / "cache" / "room.lock"):  # a .part may become a .tar meanwhile
                largest = max(largest, sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()))

    (tmp_path / "cache").mkdir()
    watcher = threading.Thread(target=watch)
    watcher.start()
    reading = Reading(window=12, cache=tmp_path / "cache", cache_gb=limit / GB)
    found = batches(SpecialistData, processor, f"{server.url}/set", 2, reading=reading)
    done.set()
    watcher.join()
    assert sorted(key for batch in found for key in batch.keys) == [f"{row:03d}" for row in range(240)]
    assert size < largest <= limit
    assert sum(server.asked[f"{number:06d}.tar"] for number in range(40)) <= 60  # each batch has samples of about seven


def test_shards_are_fetched_before_their_batch_is_due(server, tmp_path, processor):
    pack(server.root / "set", 96)
    data = SpecialistData(f"{server.url}/set", batch_size=8, num_workers=0, reading=Reading(12, tmp_path / "cache"))
    data.trainer = running(processor)
    data.setup("fit")
    coming = iter(data.train_dataloader())
    next(coming)
    deadline = time.monotonic() + 20
    while len(list((tmp_path / "cache").glob("*.tar"))) < 16 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 16
    coming.close()


def shard_of(server, name="000000.tar"):
    entry = next(entry for entry in json.loads((server.root / "set/index.json").read_text())["shards"] if entry["file"] == name)
    return RemoteShard(f"{server.url}/set/{name}", entry["bytes"], entry["sha256"])


def test_a_server_that_fails_twice_is_asked_again(server, tmp_path):
    pack(server.root / "set")
    server.faults.update({"index.json": 2, "000000.tar": 2})
    shards = ShardSet(f"{server.url}/set", ShardCache(tmp_path / "cache", GB))
    assert shards.read(0).key == shards.samples[0].key
    assert server.asked["000000.tar"] >= 3


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer"])
def test_a_shard_that_is_not_what_was_packed_stops_the_run_and_is_not_kept(server, tmp_path, processor, damage):
    pack(server.root / "set")
    path = server.root / "set" / "000000.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes({"flipped": bytes(data), "cut": bytes(data[:-512]), "longer": bytes(data) + bytes(2**20)}[damage])
    reading = Reading(cache=tmp_path / "cache")
    with pytest.raises(UnreachableError, match=r"000000\.tar must be reachable, and failed 3 times: .*the index's SHA-256"):
        batches(SpecialistData, processor, f"{server.url}/set", reading=reading)
    deadline = time.monotonic() + 20
    while list((tmp_path / "cache").glob("*.part")) and time.monotonic() < deadline:
        time.sleep(0.01)  # the thread that fetches ahead may be at another shard
    assert not list((tmp_path / "cache").glob("*.part"))
    assert not (tmp_path / "cache" / f"{shard_of(server).sha256}.tar").exists()


def test_no_more_is_kept_of_an_endless_file_than_it_should_have(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK", 2**16)
    (server.root / "endless.tar").write_bytes(bytes(2**23))
    scratch = tmp_path / "scratch"
    scratch.touch()
    with pytest.raises(ValueError, match="got more bytes"):
        remote.transfer(RemoteShard(f"{server.url}/endless.tar", 1000, "0" * 64), scratch)
    assert scratch.stat().st_size <= 1000 + 2**16


def test_a_shard_that_is_missing_or_a_server_that_is_gone_is_no_broken_sample(server, tmp_path, processor):
    """The quarantine is for samples; a network comes back."""
    pack(server.root / "set")
    sets = ShardSet(f"{server.url}/set", ShardCache(tmp_path / "cache", GB))
    (server.root / "set" / "000000.tar").unlink()
    slot = Slot("a", (0, 1))
    with pytest.raises(UnreachableError, match=r"000000\.tar is not there, or its server is not"):
        Encoder({"a": sets}, processor)(slot)
    server.shutdown()
    server.server_close()
    with pytest.raises(UnreachableError, match=r"000002\.tar must be reachable, and failed 3 times: ConnectError"):
        Encoder({"a": sets}, processor)(Slot("a", (12,)))
    with pytest.raises(UnreachableError, match=r"index\.json must be reachable"):
        ShardSet(f"{server.url}/set")


def fetch(root, shard):
    return str(ShardCache(root, GB).fetch(shard))


def test_processes_that_want_the_same_shard_fetch_it_once(server, tmp_path):
    pack(server.root / "set")
    server.slow = 0.5
    shard = shard_of(server)
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:
        found = set(pool.map(fetch, [tmp_path / "cache"] * 3, [shard] * 3))
    assert found == {str(tmp_path / "cache" / f"{shard.sha256}.tar")}
    assert server.asked["000000.tar"] == 1


def test_what_was_unused_for_longest_is_given_up_and_what_is_read_goes_on(server, tmp_path):
    pack(server.root / "set")
    sizes = [shard_of(server, f"{number:06d}.tar").size for number in range(3)]
    cache = ShardCache(tmp_path / "cache", sum(sizes) - 1)
    reader = ShardSet(f"{server.url}/set", cache)
    first, second, third = (shard_of(server, f"{number:06d}.tar") for number in range(3))
    reader.bring([0])
    cache.fetch(second)
    os.utime(tmp_path / "cache" / f"{second.sha256}.tar", (1, 1))
    cache.fetch(third)
    assert not (tmp_path / "cache" / f"{second.sha256}.tar").exists()
    assert (tmp_path / "cache" / f"{first.sha256}.tar").exists()
    (tmp_path / "cache" / f"{first.sha256}.tar").unlink()
    assert reader.read(1).key == reader.samples[1].key
    with pytest.raises(ValueError, match=r"reading\.cache_gb must hold"):
        ShardCache(tmp_path / "tiny", 100).fetch(first)


def test_what_was_given_up_and_is_not_needed_is_closed(server, tmp_path):
    """While it is open it takes as much of the disk as before."""
    pack(server.root / "set")
    reader = ShardSet(f"{server.url}/set", ShardCache(tmp_path / "cache", GB))
    reader.bring([0, 6, 12])  # of three shards
    for number in (0, 1):
        (tmp_path / "cache" / f"{shard_of(server, f'{number:06d}.tar').sha256}.tar").unlink()
    reader.bring([1, 18])
    held = {name for mark, name in opened_files if mark is reader.mark}
    assert held == {"000000.tar", "000002.tar", "000003.tar"}
    assert reader.read(1).key == reader.samples[1].key
    assert server.asked["000000.tar"] == 1


def test_what_a_killed_transfer_left_is_used_by_nobody_and_given_up(server, tmp_path):
    pack(server.root / "set")
    shard, other = shard_of(server), shard_of(server, "000001.tar")
    cache = ShardCache(tmp_path / "cache", shard.size + 900)
    cache.root.mkdir()
    left, dead = cache.root / f"{shard.sha256}.part", cache.root / f"{other.sha256}.part"
    for path in (left, dead):
        path.write_bytes(b"x" * 1000)
    os.utime(dead, (1, 1))
    path = cache.fetch(shard)
    assert path.read_bytes() == (server.root / "set" / "000000.tar").read_bytes()
    assert not left.exists()
    assert not dead.exists()


def test_a_full_disk_is_said(server, tmp_path, monkeypatch):
    pack(server.root / "set")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remote, "transfer", full)
    with pytest.raises(UnreachableError, match=r"No space left on device.*lower reading\.cache_gb"):
        ShardCache(tmp_path / "cache", GB).fetch(shard_of(server))


@pytest.mark.parametrize(
    "url", ["pipe://cat", "file:///etc", "simplecache::https://example.org/set", "memory://set", "ssh://h/x"]
)
def test_other_protocols_are_refused(url):
    with pytest.raises(ValueError, match="A remote data set must be a URL of https"):
        ShardSet(url)


def test_an_index_that_leads_elsewhere_is_refused(server, tmp_path):
    pack(server.root / "set")
    index = json.loads((server.root / "set/index.json").read_text())
    for field, value in (("file", "../secret.tar"), ("sha256", "../../.bashrc")):
        shutil.copytree(server.root / "set", server.root / field)
        odd = index | {"shards": [index["shards"][0] | {field: value}]}
        (server.root / field / "index.json").write_text(json.dumps(odd))
        with pytest.raises(ValueError, match="must name shards in its own folder"):
            ShardSet(f"{server.url}/{field}")
    with pytest.raises(UnreachableError, match=r"nothing/index\.json is not there, or its server is not"):
        ShardSet(f"{server.url}/nothing")


def test_a_cache_that_two_windows_do_not_fit_into_is_refused(server, tmp_path, processor):
    pack(server.root / "set")
    size = shard_of(server).size
    reading = Reading(window=12, cache=tmp_path / "cache", cache_gb=3 * size / GB)
    with pytest.raises(ValueError, match="must hold two windows of the remote sets"):
        batches(RehearsalData, processor, {"a": f"{server.url}/set"}, reading=reading)
    with pytest.raises(ValueError, match=r"reading\.window and cache_gb must be positive"):
        Reading(window=0)


def test_packed_folders_elsewhere_are_checked(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pack(server.root / "set")
    assert main(["pack", "--check", f"{server.url}/set", str(server.root / "set")]) == 0
    said = capsys.readouterr().out
    assert f"{server.url}/set: 60 pairs, every shard is what was packed" in said
    assert f"{server.url}/set and {server.root / 'set'} share 60 queries" in said


def test_a_shard_that_was_damaged_where_it_is_kept_is_fetched_once_more(server, tmp_path):
    """A power cut may leave a file of the right size and of zeros."""
    pack(server.root / "set")
    shard, cache = shard_of(server), ShardCache(tmp_path / "cache", GB)
    cache.fetch(shard).write_bytes(bytes(shard.size))
    sets = ShardSet(f"{server.url}/set", cache)
    assert sets.read(0).key == ShardSet(server.root / "set").read(0).key
    assert server.asked["000000.tar"] == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datamodules.shards.indexed.xxhash.xxh3_64_intdigest", lambda data: 0)  # as if it had been packed so
        with pytest.raises(ValueError, match="is not what was packed"):
            sets.read(1)
    assert server.asked["000000.tar"] == 3


def test_transfers_at_one_time_keep_to_the_limit(server, tmp_path):
    pack(server.root / "set", 60, 6)
    shards = ShardSet(f"{server.url}/set", ShardCache(tmp_path / "cache", GB)).remote_shards(range(60))
    cache = ShardCache(tmp_path / "cache", max(shard.size for shard in shards) * 5 // 2)
    server.slow, sizes, done = 0.05, [], threading.Event()

    def watch():
        while not done.wait(0.005):
            with cache.lock("room"):  # else one given up and its successor are both seen
                sizes.append(sum(path.stat().st_size for path in cache.root.glob("*.*")))

    watching = threading.Thread(target=watch)
    watching.start()
    with ThreadPoolExecutor(len(shards)) as pool:
        assert all(pool.map(cache.fetch, shards))
    done.set()
    watching.join()
    assert max(sizes) <= cache.limit


@pytest.mark.parametrize("fails", [False, True])
def test_a_transfer_that_was_taken_for_dead_is_made_again(server, tmp_path, monkeypatch, fails):
    """It stalled for long, others gave up its file to have the room, and it goes on: by itself, or after a fault."""
    pack(server.root / "set")
    shard, cache = shard_of(server), ShardCache(tmp_path / "cache", GB)
    transfer, tries = remote.transfer, []

    def stall(shard, scratch):
        transfer(shard, scratch)
        tries.append(scratch.stat().st_size)
        if len(tries) == 1:
            scratch.unlink()
            if fails:
                raise OSError("the connection was reset")

    monkeypatch.setattr(remote, "transfer", stall)
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    path = cache.fetch(shard)
    assert path.read_bytes() == (server.root / "set" / "000000.tar").read_bytes()
    assert tries == [shard.size] * 2


def test_a_cache_of_another_user_is_read_and_its_locks_are_everyones(server, tmp_path, monkeypatch):
    pack(server.root / "set")
    shard, cache = shard_of(server), ShardCache(tmp_path / "cache", GB)
    old = os.umask(0o022)
    try:
        path = cache.fetch(shard)
    finally:
        os.umask(old)
    assert all(lock.stat().st_mode & 0o777 == 0o666 for lock in cache.root.glob("*.lock"))

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", "a.lock")

    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", "a.tar")

    for reason in (refuse, read_only):
        monkeypatch.setattr(os, "utime", reason)
        assert cache.fetch(shard) == path
    monkeypatch.setattr(ShardCache, "lock", refuse)
    path.unlink()
    with pytest.raises(UnreachableError, match=r"reading\.cache must be a folder that you may write to"):
        cache.fetch(shard)


QUERY = "X-Amz-Credential=A%2Fmade-up-0%2Fs3&X-Amz-Signature=made-up-1%2Bb%3D"


@pytest.mark.parametrize("end", ["", "/"])
def test_a_signed_set_is_read_with_its_signature_on_each_file(server, tmp_path, processor, end):
    """It is sent as it was written, since it may cover its escapes. Where it is renewed, the shards that are kept still hold."""
    pack(server.root / "set")
    reading = Reading(cache=tmp_path / "cache")
    here = batches(SpecialistData, processor, server.root / "set", reading=Reading(window=10_000))
    for query in (QUERY, QUERY.replace("made-up-1", "made-up-2")):
        server.query = query
        away = batches(SpecialistData, processor, f"{server.url}/set{end}?{query}", reading=reading)
        assert [batch.keys for batch in away] == [batch.keys for batch in here]
    assert {count for name, count in server.asked.items() if name.endswith("tar")} == {1}


def test_a_set_behind_a_password_is_read(server, tmp_path):
    pack(server.root / "set")
    server.authorization = "Basic " + b64encode(b"me:made-up@1").decode()
    shards = ShardSet(server.url.replace("//", "//me:made-up%401@") + "/set", ShardCache(tmp_path / "cache", GB))
    assert shards.read(0).key == shards.samples[0].key


def trouble(url, cache):
    """Error of opening and reading a set, with all that a traceback shows."""
    try:
        shards = ShardSet(url, ShardCache(cache, GB))
        shards.read(0)
    except (ValueError, UnreachableError) as error:
        return "".join(traceback.format_exception(error))
    raise AssertionError("it should fail")


SECRETS = {
    "password": lambda url: url.replace("//", "//me:made-up-pass@"),
    "escaped": lambda url: url.replace("//", "//me:made%2Dup-pass@"),
    "user": lambda url: url.replace("//", "//made-up-pass@"),
    "signature": lambda url: f"{url}?X-Amz-Signature=made-up-pass&a=b",
    "slash": lambda url: url.replace("//", "//me:made-up-pass/1@"),
    "protocol": lambda url: url.replace("http://", "ftp://me:made-up-pass@"),
    "chain": lambda url: f"simplecache::{url.replace('//', '//me:made-up-pass@')}",
    "path": lambda url: Path(url.replace("//", "//me:made-up-pass@")),
}


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("fault", ["gone", "forbidden", "redirected", "no index", "another index", "another shard", "too large"])
def test_secrets_in_a_url_are_in_no_error_and_no_log(server, tmp_path, monkeypatch, caplog, secret, fault):
    pack(server.root / "set")
    url, redirect = f"{server.url}/set", f"{server.url}/cdn?Signature=made-up-pass"
    server.answers |= {
        "forbidden": {"index.json": (403, {}, [f"see {redirect}".encode()])},
        "redirected": {"index.json": (302, {"Location": redirect}, []), "cdn": (403, {}, [])},
        "another index": {"index.json": (200, {}, [b"nonsense"])},
        "another shard": {"000000.tar": (200, {}, [b"nonsense"])},
        "too large": {"index.json": (200, {}, [b" " * 2**21])},
    }.get(fault, {})
    monkeypatch.setattr(remote, "INDEX_LIMIT", 2**20)
    url = {"gone": "http://127.0.0.1:9/set", "no index": f"{server.url}/nothing"}.get(fault, url)
    with caplog.at_level(logging.DEBUG):
        told = trouble(SECRETS[secret](url), tmp_path / "cache")
    assert not any(form in told + caplog.text for form in ("made-up", "made%2Dup", b64encode(b"me:made-up-pass").decode()))


def test_secrets_in_a_url_are_in_no_list_no_name_and_no_message_of_a_worker(server, tmp_path, processor, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pack(server.root / "set")
    url = f"{server.url.replace('//', '//me:made-up-0@')}/set?sig=made-up-1"
    sets = ShardSet(url, ShardCache(tmp_path / "cache", GB))
    shown = f"{server.url}/set"
    assert sets.place("000000.tar") == f"{shown}/000000.tar"
    assert "made-up" not in repr(sets) + repr(sets.remote_shards([0])) + str(sets.remote_shards([0])[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datamodules.shards.read.decode_pair", lambda members: {}["json"])
        (batch,) = [Encoder({"a": sets}, processor)(Slot("a", (0,)))]
    assert json.loads(batch.faults[0])["where"] == f"{shown}/{sets.samples.shard(0)}"
    assert main(["pack", "--check", url]) == 0
    assert f"{shown}: 60 pairs" in capsys.readouterr().out
    server.answers["000003.tar"] = (403, {}, [])
    with pytest.raises(UnreachableError, match=r"000003\.tar cannot be opened: HTTP 403") as caught:
        batches(SpecialistData, processor, url, 2, reading=Reading(cache=tmp_path / "other"))
    assert "made-up" not in "".join(traceback.format_exception(caught.value))


def endless(sent):
    """Blanks, without end."""
    while True:
        sent.append(1)
        yield b" " * 2**16


@pytest.mark.parametrize("name", ["index.json", "index.parquet"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", None, "endless"])
def test_an_index_has_a_largest_size_also_once_it_is_inflated(server, tmp_path, monkeypatch, name, encoding):
    pack(server.root / "set")
    monkeypatch.setattr(remote, "INDEX_LIMIT", 2**20)
    blanks, sent = b" " * 2**25, []
    parts = {"gzip": [gzip.compress(blanks)], "deflate": [zlib.compress(blanks)], None: [blanks], "endless": endless(sent)}[
        encoding
    ]
    server.answers[name] = (200, {"Content-Encoding": encoding} if encoding in ("gzip", "deflate") else {}, parts)
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"{name} must have at most [\d,]+ bytes, got more"):
        ShardSet(f"{server.url}/set")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert server.asked[name] == 1  # nothing passes by itself there
    assert most < 2**23 + (len(blanks) if encoding is None else 0)  # the server is in this process, with its body
    assert len(sent) < 500


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_a_server_compresses_on_the_way_is_what_was_packed(server, tmp_path, encoding):
    """Though it was asked not to."""
    pack(server.root / "set")
    pack_body = {"gzip": gzip.compress, "deflate": zlib.compress}[encoding]
    for path in (server.root / "set").iterdir():
        server.answers[path.name] = (200, {"Content-Encoding": encoding}, [pack_body(path.read_bytes())])
    shards = ShardSet(f"{server.url}/set", ShardCache(tmp_path / "cache", GB))
    assert [shards.read(number).key for number in range(60)] == [sample.key for sample in ShardSet(server.root / "set").samples]


def drops(data, seconds, size=1000):
    """Bytes in small parts, each after a while."""
    for start in range(0, len(data), size):
        time.sleep(seconds)
        yield data[start : start + size]


@pytest.mark.parametrize("name", ["index.json", "000000.tar"])
def test_what_comes_slowly_but_steadily_arrives(server, tmp_path, monkeypatch, name):
    """The whole takes three times as long as the longest silence."""
    pack(server.root / "set")
    monkeypatch.setattr(download, "SILENCE", 0.5)
    data = (server.root / "set" / name).read_bytes()
    server.answers[name] = (200, {"Content-Length": str(len(data))}, drops(data, 0.1, len(data) // 15 + 1))
    shards = ShardSet(f"{server.url}/set", ShardCache(tmp_path / "cache", GB))
    assert shards.read(0).key == shards.samples[0].key
    assert server.asked[name] == 1


def test_what_falls_silent_has_failed(server, tmp_path, monkeypatch):
    pack(server.root / "set")
    monkeypatch.setattr(download, "SILENCE", 0.2)
    silent = threading.Event()

    def stops():
        yield b"x"
        silent.wait(20)

    server.answers["000000.tar"] = (200, {"Content-Length": "1000"}, stops())
    shards = ShardSet(f"{server.url}/set", ShardCache(tmp_path / "cache", GB))
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    with pytest.raises(UnreachableError, match=r"000000\.tar must be reachable, and failed 1 times: ReadTimeout"):
        shards.read(0)
    silent.set()


def test_a_transfer_that_goes_on_is_not_taken_for_dead(server, tmp_path, monkeypatch):
    """Each byte that arrives is seen in its file, whose time says when the last one did."""
    data = os.urandom(6_000)
    shard = RemoteShard(f"{server.url}/a.tar", len(data), sha256(data).hexdigest())
    scratch, sizes = tmp_path / "a.part", []
    scratch.write_bytes(bytes(len(data)))

    def watched():
        for start in range(0, len(data), 2_000):
            os.utime(scratch, (1, 1))
            yield data[start : start + 2_000]
            time.sleep(0.2)
            sizes.append(scratch.stat().st_mtime)

    server.answers["a.tar"] = (200, {"Content-Length": str(len(data))}, watched())
    remote.transfer(shard, scratch)
    assert scratch.read_bytes() == data
    assert all(moment > time.time() - 60 for moment in sizes)


def test_other_file_systems_are_read_in_blocks():
    """Other protocols than ``https:``: any of fsspec's; here its memory."""
    fsspec.filesystem("memory").pipe("/set/000000.tar", bytes(range(250)) * 10)
    blocks = list(download.blocks_of("memory://set/000000.tar", 999))
    assert b"".join(blocks) == bytes(range(250)) * 10
    assert max(map(len, blocks)) == 999


@pytest.mark.parametrize(("code", "times"), [(401, 1), (403, 1), (404, 3), (410, 3), (429, 3), (500, 3), (204, 3), (304, 3)])
def test_what_may_not_be_read_is_said_at_once(server, code, times):
    server.answers["index.json"] = (code, {}, [])
    with pytest.raises(UnreachableError, match="cannot be opened: HTTP" if times == 1 else r"index\.json"):
        ShardSet(f"{server.url}/set")
    assert server.asked["index.json"] == times


def test_a_shard_that_is_moved_is_followed(server, tmp_path):
    pack(server.root / "set")
    (server.root / "set" / "000000.tar").rename(server.root / "moved")
    server.answers["000000.tar"] = (307, {"Location": "/moved?sig=x"}, [])
    shards = ShardSet(f"{server.url}/set", ShardCache(tmp_path / "cache", GB))
    assert shards.read(0).key == shards.samples[0].key


def test_a_server_without_ranges_is_read(server, tmp_path, monkeypatch):
    """Python's own, whose shards have several blocks."""
    pack(server.root / "set")
    monkeypatch.setattr(remote, "BLOCK", 1000)
    shards = ShardSet(f"{server.url}/set", ShardCache(tmp_path / "cache", GB))
    assert shards.read(0).key == shards.samples[0].key
    assert server.asked["000000.tar"] == 1


def test_pauses_between_tries_double(server, monkeypatch):
    waited = []
    monkeypatch.setattr(remote.time, "sleep", waited.append)
    monkeypatch.setattr(remote, "PAUSE", 1.0)
    with pytest.raises(UnreachableError, match="failed 3 times"):
        ShardSet("http://127.0.0.1:9/set")
    assert waited == [1.0, 2.0]


def test_a_shard_that_is_read_counts_as_used(server, tmp_path):
    """Fetched anew, found there, or kept open for long."""
    pack(server.root / "set")
    shard, cache = shard_of(server), ShardCache(tmp_path / "cache", GB)
    reader = ShardSet(f"{server.url}/set", cache)
    path = cache.fetch(shard)
    for use in (lambda: cache.fetch(shard), lambda: reader.bring([0]), lambda: reader.bring([0])):
        os.utime(path, (1, 1))
        use()
        assert path.stat().st_mtime > 1000


def test_two_windows_are_those_of_the_largest_shards(tmp_path):
    """Whichever come together in an epoch."""
    shards = [SimpleNamespace(size=size, numbers=range(6)) for size in (10, 40, 20, 30)]
    sets = Mock(spec=PairReader, remote=True, shards=dict(enumerate(shards)))
    for limit, fits in ((70, True), (69, False)):
        reading = Reading(window=6, cache=tmp_path, cache_gb=(limit + 0.5) / GB)
        if fits:
            reading.check_room([sets])
        else:
            with pytest.raises(ValueError, match="two windows"):
                reading.check_room([sets])


def test_the_oldest_of_many_shards_are_evicted_whatever_their_names(tmp_path):
    ages = [5, 2, 7, 0, 3, 6, 1, 4]
    for name, age in enumerate(ages):
        (tmp_path / f"{name}.tar").write_bytes(bytes(100))
        os.utime(tmp_path / f"{name}.tar", (1000 + age, 1000 + age))
    assert ShardCache(tmp_path, 1000).reserve(tmp_path / "new.part", 500)
    assert sorted(int(path.stem) for path in tmp_path.glob("*.tar")) == [place for place, age in enumerate(ages) if age >= 3]
