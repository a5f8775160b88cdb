"""Plain WebDataset shards behind a real HTTP server: fetched once, the same batches as from a folder, changes noticed."""

import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import fsspec
import pytest
import webdataset as wds

from datamodules import Reading, SpecialistData, WebDataset
from datamodules.loading.unindexed import UnindexedLoader
from datamodules.shards import remote
from datamodules.shards.plain import PlainReader
from datamodules.shards.remote import ShardCache, UnreachableError
from samples import png

GB = 2**30


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, counts what is asked for, and wants a signature if told."""

    asked: Counter[str]
    query = ""

    def do_GET(self):
        place, _, query = self.path.partition("?")
        self.asked[place.rsplit("/", 1)[-1]] += 1
        if query != self.query:
            self.send_error(403)
        else:
            super().do_GET()

    def do_HEAD(self):
        self.send_error(403)  # as a signature for GET alone has it

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    (tmp_path / "set").mkdir()
    for shard in range(3):
        with wds.TarWriter(str(tmp_path / "set" / f"{shard:05d}.tar")) as writer:
            for row in range(6):
                writer.write({"__key__": f"{shard}{row}", "png": png(), "txt": f"shape {shard} {row}"})
    handler = type("Counting", (Handler,), {"asked": Counter()})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path))) as found:
        threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
        yield SimpleNamespace(url=f"http://127.0.0.1:{found.server_port}", handler=handler, root=tmp_path)
        found.shutdown()


def batches(processor, root, urls, workers=0, **options):
    """An epoch's batches."""
    reading = Reading(window=8, cache=root / "cache")
    data = SpecialistData(WebDataset(urls, task="t", **options), batch_size=4, num_workers=workers, reading=reading)
    model = SimpleNamespace(processor=processor)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, current_epoch=0, lightning_module=model)
    data.setup("fit")
    return [(batch.keys, batch.query_hashes, batch.target_hashes) for batch in data.train_dataloader()]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder_and_each_shard_is_fetched_once(server, processor, workers):
    away = batches(processor, server.root, f"{server.url}/set/{{00000..00002}}.tar", workers)
    assert away == batches(processor, server.root, str(server.root / "set"), workers)
    assert server.handler.asked == {f"0000{n}.tar": 2 for n in range(3)}  # its size, and it
    batches(processor, server.root, f"{server.url}/set/{{00000..00002}}.tar", workers)
    assert sum(server.handler.asked.values()) == 6


def test_a_signature_is_sent_and_shown_nowhere(server, processor):
    server.handler.query = "sig=made-up-1"
    options = WebDataset(f"{server.url}/set/{{00000..00002}}.tar?sig=made-up-1", target="txt;none.txt")
    reader = PlainReader(options, ShardCache(server.root / "cache", GB))
    assert reader.read(0).key == "00"
    shown = [options.name, reader.shown, *reader.shards, reader.place(reader.samples.shard(0)), repr(reader.remote_shards([0]))]
    assert "made-up" not in "".join(shown)
    assert "made-up" not in "".join(str(path) for path in (server.root / "cache").rglob("*"))
    renewed = WebDataset(f"{server.url}/set/{{00000..00002}}.tar?sig=made-up-2")
    assert PlainReader(renewed, ShardCache(server.root / "cache", GB)).read(17).key == "25"  # nothing is fetched again
    with pytest.raises(UnreachableError, match=r"0000\d\.tar cannot be opened: HTTP 403") as caught:
        PlainReader(renewed, ShardCache(server.root / "other", GB))
    assert "made-up" not in str(caught.value)


def test_a_shard_that_has_changed_there_stops_the_run_by_name(server):
    urls = f"{server.url}/set/{{00000..00002}}.tar"
    reader = PlainReader(WebDataset(urls), ShardCache(server.root / "cache", GB))
    for path in (server.root / "cache").glob("*.tar"):
        path.unlink()  # as evicted
    path = server.root / "set" / "00001.tar"
    path.write_bytes(path.read_bytes().replace(b"shape 1 3", b"shape 1 X"))
    assert reader.read(0).key == "00"
    with pytest.raises(UnreachableError, match=r"00001\.tar must be reachable.*SHA-256"):
        reader.read(8)


def test_a_shard_larger_than_the_cache_or_that_is_not_there_is_refused(server):
    with pytest.raises(ValueError, match=r"cache_gb must hold .*00000\.tar"):
        PlainReader(WebDataset(f"{server.url}/set/00000.tar"), ShardCache(server.root / "cache", 1000))
    with pytest.raises(UnreachableError, match=r"00009\.tar is not there"):
        PlainReader(WebDataset(f"{server.url}/set/00009.tar"), ShardCache(server.root / "cache", GB))
    with pytest.raises(ValueError, match="has no list of files"):
        WebDataset(f"{server.url}/set/*.tar").shards()


def test_a_pattern_in_a_store_that_lists_files(server, monkeypatch):
    monkeypatch.setattr(remote, "PROTOCOLS", (*remote.PROTOCOLS, "memory"))
    store = fsspec.filesystem("memory")
    for path in (server.root / "set").iterdir():
        store.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    options = WebDataset("memory://bucket/*.tar")
    assert options.shards() == [f"memory://bucket/0000{n}.tar" for n in range(3)]
    reader = PlainReader(options, ShardCache(server.root / "cache", GB))
    assert [pair.key for pair in reader.each(range(18))] == [f"{shard}{row}" for shard in range(3) for row in range(6)]


def test_a_stream_without_an_index_reads_urls(server, processor):
    from datamodules.loading.stream import Encoder

    options = WebDataset(f"{server.url}/set/{{00000..00002}}.tar", index=False, shuffle=1)
    loader = iter(UnindexedLoader(options, Encoder({}, processor), 6, (0, 1), 0, lambda: "0"))
    found = [next(loader) for _ in range(3)]
    assert [batch.faults for batch in found] == [[]] * 3
    assert sorted(key for batch in found for key in batch.keys) == [f"{n}{row}" for n in range(3) for row in range(6)]
