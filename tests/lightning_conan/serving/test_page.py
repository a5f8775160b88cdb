"""The search page gives out its own files and the index's media, and nothing else."""

import io
import json
import re
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from page_world import FILES, KEYS, write_index, write_media
from PIL import Image
from served import make_service
from starlette.testclient import TestClient

from datamodules.shards.read import ShardSet
from lightning_conan.cli import serve
from lightning_conan.items import Item, Media
from lightning_conan.media import decode_document, decode_video
from lightning_conan.retrieval.search import top_k
from lightning_conan.retrieval.store import Origin, part_path, write_part
from lightning_conan.serving import Access, Service, create_app
from lightning_conan.serving.page import Page, PageSettings
from lightning_conan.serving.page.previews import peaks
from lightning_conan.serving.page.site import assets
from lightning_conan.serving.page.tickets import Tickets

OWN = assets()


@pytest.fixture(scope="module")
def world(base, tiny, tmp_path_factory):
    """A service without a page; ``media`` is a folder, ``index`` that folder's."""
    place = tmp_path_factory.mktemp("page")
    service = make_service(base)
    service.media, service.folder = write_media(place / "media"), place / "index"
    service.vectors = write_index(service.folder, service.media, *tiny, service.engine.fingerprint)
    service.open_index(service.folder)
    with TestClient(create_app(service)) as client:  # the model runs in this client's loop alone
        service.plain = client
        yield service


@pytest.fixture
def open_page(world):
    """Makes a client of the same model with a page, over another index if one is given."""

    def make(media=world.media, index=world.folder, key=None, **settings):
        service = Service(world.engine, world.name, world.limits, world.metrics, Access(key))
        service.open_index(index)
        service.open_page(PageSettings(media, **settings))
        return TestClient(create_app(service))

    return make


@pytest.fixture
def client(open_page):
    return open_page()


def entry(client, row, **headers):
    answer = client.get(f"/page/entries?rows={row}", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"][0]


def medium(client, row, name="media", part=0):
    return client.get("/" + entry(client, row)["parts"][part][name])


def error(answer):
    return answer.json()["error"]["message"]


def test_without_a_page_nothing_changes(world):
    for path in ("/", "/page", "/page/page.js", "/page/about", "/page/entries?rows=0"):
        assert world.plain.get(path).status_code == 404
    hits = world.plain.post("/v1/search", json={"input": "a storm"}).json()["data"]
    assert set(hits[0]) == {"object", "index", "key", "modality", "score"}


@pytest.mark.parametrize("name", OWN)
def test_own_files_come_with_strict_headers(client, name):
    answer = client.get(f"/page/{name}")
    assert answer.content == OWN[name][0]
    assert answer.headers["content-type"].split(";")[0] == OWN[name][1]
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?:", policy)


def test_the_page_needs_no_network_and_no_inline_script():
    """Every file that one of its files names is one of its own."""
    text = {name: data.decode() for name, (data, _) in OWN.items()}
    for found in text.values():
        assert set(re.findall(r"https?://[\w.]+", found)) <= {"http://www.w3.org"}
        assert set(re.findall(r'(?:from|import) "\./([^"]+)"', found)) <= set(OWN)
    page = text["page.html"]
    assert {link.removeprefix("page/") for link in re.findall(r'(?:src|href)="([^"#]+)"', page)} <= set(OWN)
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", page)
    ids = set(re.findall(r'id="([\w-]+)"', page))
    assert set(re.findall(r'find\("([\w-]+)"\)', "".join(text.values()))) <= ids
    icons = {name.removeprefix("icon-") for name in ids if name.startswith("icon-")}
    assert (
        set(re.findall(r'icon\("([\w-]+)"\)', "".join(text.values()))) | {"text", "image", "video", "audio", "document"} <= icons
    )


def test_the_address_of_the_server_leads_to_the_page(client):
    assert client.get("/").url.path == "/page"


def test_the_page_learns_of_model_and_index(client):
    about = client.get("/page/about").json()
    assert (about["model"], about["entries"], about["reasons"], about["media"]) == ("tiny", len(KEYS), False, True)
    assert about["modalities"] == {"image": 3, "video": 1, "audio": 2, "document": 2, "text": 2}
    assert about["limits"] == {"bytes": 32 * 10**6, "media": 64, "characters": 400_000, "seconds": 600.0}


def test_hits_name_rows_whose_entries_are_described(client, world, monkeypatch):
    monkeypatch.setattr(world, "page", Page(PageSettings(), world.store))
    hits = world.plain.post("/v1/search", json={"input": "a storm", "top_k": 20}).json()["data"]
    assert sorted(hit["key"] for hit in hits) == KEYS
    rows = ",".join(str(hit["row"]) for hit in hits)
    found = client.get(f"/page/entries?rows={rows}").json()["data"]
    assert [(one["key"], one["modality"], one["row"]) for one in found] == [
        (hit["key"], hit["modality"], KEYS.index(hit["key"])) for hit in hits
    ]


@pytest.mark.parametrize("row", range(len(KEYS)), ids=KEYS)
def test_each_entry_shows_its_own_file(client, row):
    """Texts as they are, pictures and clips bit for bit, pages as the model sees them; each with a thumbnail."""
    (part,) = entry(client, row)["parts"]
    name, _, page = KEYS[row].partition("#page=")
    if part["type"] == "text":
        assert part == {"type": "text", "text": FILES[name].decode(), "cut": False}
        return
    assert part["name"] == name.rpartition("/")[2]
    whole, small = client.get("/" + part["media"]), client.get("/" + part["thumbnail"])
    if page:
        wanted = decode_document(Media("document", FILES[name], name, page=int(page)))
        assert part["page"] == int(page)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(whole.content))), wanted.permute(1, 2, 0).numpy())
    else:
        assert whole.content == FILES[name]
        assert whole.headers["content-type"].startswith(part["type"] + "/")
    picture = Image.open(io.BytesIO(small.content))
    assert small.headers["content-type"] == f"image/{picture.format.lower()}"
    assert max(picture.size) <= 480
    for answer in (whole, small):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
        assert "private" in answer.headers["cache-control"]


def test_the_thumbnail_of_a_video_is_its_middle_frame(client):
    answer = medium(client, KEYS.index("clip.mp4"), "thumbnail")
    shown = decode_video(Media("video", FILES["clip.mp4"], "clip.mp4"))
    second = float(answer.headers["x-second"])
    assert abs(second - shown.seconds[-1] / 2) <= 0.26
    found = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert found.shape == (48, 48, 3)
    whole = decode_video(Media("video", FILES["clip.mp4"], "clip.mp4", start=second, end=second + 0.1))
    assert np.array_equal(found, whole.frames[0].permute(1, 2, 0).numpy())


def test_bars_of_a_waveform_are_the_loudest_samples():
    samples = torch.tensor([0.0, 0.5, -0.9, 0.1, 0.2, -0.2, 0.0, 0.0])
    torch.testing.assert_close(peaks(samples, 4), torch.tensor([0.5, 0.9, 0.2, 0.0]))
    assert peaks(samples[:2], 60).shape == (60,)


def test_players_read_parts_of_a_file(client):
    path = "/" + entry(client, KEYS.index("clip.mp4"))["parts"][0]["media"]
    answer = client.get(path, headers={"Range": "bytes=10-19"})
    assert (answer.status_code, answer.content) == (206, FILES["clip.mp4"][10:20])
    many = client.get(path, headers={"Range": "bytes=" + ",".join(f"{at}-{at}" for at in range(0, 2000, 2))})
    assert "one range of bytes" in error(many)


def test_long_texts_are_cut(open_page, world, tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    (folder / "note.txt").write_text("ä" * 300_000)
    (part,) = entry(open_page(folder), KEYS.index("note.txt"))["parts"]
    assert part == {"type": "text", "text": "ä" * 4000, "cut": True}


@pytest.mark.parametrize("rows", ["", "x", "-1", "1,", "1,,2", "1" * 13, "1.5", ",".join("1" * 101), "%00", "\u0661"])
def test_rows_are_numbers(client, rows):
    assert "rows must be 1 to 100 numbers" in error(client.get(f"/page/entries?rows={rows}"))
    assert client.get(f"/page/entries?rows={len(KEYS)}").status_code == 404


def test_a_medium_opens_with_its_own_ticket_alone(client):
    parts = [urlsplit("/" + entry(client, KEYS.index(key))["parts"][0]["media"]) for key in ("red.png", "tone.flac")]
    (red, ticket), (tone, other) = [(part.path, part.query) for part in parts]
    assert client.get(f"{red}?{ticket}").status_code == client.get(f"{tone}?{other}").status_code == 200
    wrong = ["", "?ticket=", f"?{other}", f"?{ticket[:-1]}", f"?{ticket}0", "?ticket=%c3%a9", "?ticket=" + "0" * 32]
    assert {client.get(red + query).status_code for query in wrong} == {403}
    for path in ("/page/media/-1/0", "/page/media/0/9", "/page/media/a/b", "/page/media/" + "9" * 5000 + "/0"):
        assert client.get(f"{path}?{ticket}").status_code == 403


def test_tickets_are_good_for_some_hours_and_one_process(monkeypatch):
    tickets, begun = Tickets(), time.time()
    ticket = tickets.make("3/0")
    assert tickets.opens(ticket, "3/0")
    assert not tickets.opens(ticket, "3/1")
    assert not Tickets().opens(ticket, "3/0")
    for hours, good in ((11.9, True), (24.1, False), (1000, False)):
        monkeypatch.setattr(time, "time", lambda hours=hours: begun + 3600 * hours)
        assert tickets.opens(ticket, "3/0") == good


@pytest.mark.parametrize(
    "path",
    [
        "/page/../../etc/passwd",
        "/page/%2e%2e/%2e%2e/etc/passwd",
        "/page/..%2f..%2fsetup.cfg",
        "/page/routes.py",
        "/page/__init__.py",
        "/page//etc/passwd",
        "/page/media/0/0/../../red.png",
        "/page/media/red.png",
    ],
)
def test_no_path_of_a_request_is_ever_read(client, path):
    answer = client.get(path, follow_redirects=False)
    assert answer.status_code == 404
    assert b"root:" not in answer.content


NAMES = [
    "../secret.png",
    "../secret.txt",
    "link.png",
    "away/secret.png",
    "a\0b.png",
    "/etc/passwd",
    "folder.png",
    "run.sh",
    "gone.png",
]


@pytest.fixture
def hostile(world, tmp_path):
    """An index whose keys and sources name files that are none of its folder's; its folder."""
    folder = tmp_path / "media"
    (folder / "folder.png").mkdir(parents=True)
    (folder / "red.png").write_bytes(FILES["red.png"])
    (folder / "run.sh").write_text("#!/bin/sh")
    for name in ("secret.png", "secret.txt"):
        (tmp_path / name).write_bytes(FILES["red.png"])
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "away").symlink_to(tmp_path)
    (tmp_path / "index").mkdir()
    names = ["red.png", *NAMES, str(tmp_path / "secret.png")]
    rows = torch.eye(len(names), 128)
    origin = Origin(world.engine.fingerprint, "s", "float32", 128, len(names), 1)
    write_part(tmp_path / "index", 0, origin, names, ["image"] * len(names), rows)
    return folder


@pytest.mark.parametrize("by", ["key", "source"])
def test_files_outside_the_folder_are_never_given_out(open_page, hostile, by):
    """Whatever an index says: links that lead out, other kinds of files, parents, absolute paths."""
    index = hostile.parent / "index"
    if by == "source":
        table = pq.read_table(part_path(index, 0))
        names = table["key"].to_pylist()
        sources = [None, *(str(hostile / name) if "\0" not in name else name for name in names[1:])]
        table = table.set_column(0, "key", pa.array(["red.png", *map(str, range(1, len(names)))]))
        pq.write_table(table.append_column("source", pa.array(sources, pa.string())), part_path(index, 0))
    client = open_page(hostile, index)
    for row in range(1, len(NAMES) + 2):
        found = entry(client, row)
        assert (found["parts"], found["missing"]) == ([], True), found
        page = client.app.routes[-1].endpoint.args[0].page
        for name in ("media", "thumbnail"):
            answer = client.get(f"/page/{name}/{row}/0?ticket={page.tickets.make(f'{row}/0')}")
            assert answer.status_code == 404
            assert str(hostile.parent) not in answer.text
    assert medium(client, 0).content == FILES["red.png"]


def test_columns_of_the_index_name_file_page_and_seconds(open_page, world, tmp_path, monkeypatch):
    """A row may stand for a page or a part of a clip under any key, and its source as it was typed."""
    monkeypatch.chdir(world.media.parent)
    index = tmp_path / "index"
    index.mkdir()
    write_part(index, 0, Origin(world.engine.fingerprint, "s", "float32", 128, 3, 1), list("abc"), ["x"] * 3, torch.eye(3, 128))
    table = pq.read_table(part_path(index, 0))
    table = table.append_column("source", pa.array(["media/report.pdf", "media/clip.mp4", str(world.media / "red.png")]))
    for name, values in {"page": [2, None, None], "start": [None, 0.5, None], "end": [None, 1.5, None]}.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, part_path(index, 0))
    client = open_page(index=index)
    shown = [
        [{name: part.get(name) for name in ("type", "name", "page", "start", "end")} for part in entry(client, row)["parts"]]
        for row in range(3)
    ]
    assert [list(part.values()) for (part,) in shown] == [
        ["document", "report.pdf", 2, None, None],
        ["video", "clip.mp4", None, 0.5, 1.5],
        ["image", "red.png", None, None, None],
    ]
    assert float(medium(client, 1, "thumbnail").headers["x-second"]) == pytest.approx(1.0, abs=0.26)


def test_items_of_a_manifest_show_all_their_parts(open_page, world, tmp_path, tiny):
    lines = [
        {"key": "both", "image": "red.png", "text": "but blue"},
        {"key": "part", "video": {"path": "clip.mp4", "start": 0.5}},
    ]
    manifest = world.media / "items.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_index(tmp_path / "index", manifest, *tiny, world.engine.fingerprint)
    client = open_page(manifest, tmp_path / "index")
    image, text = entry(client, 0)["parts"]
    assert (image["type"], text["text"]) == ("image", "but blue")
    assert client.get("/" + image["media"]).content == FILES["red.png"]
    assert entry(client, 1)["parts"][0]["start"] == 0.5
    page = client.app.routes[-1].endpoint.args[0].page
    assert client.get(f"/page/media/0/1?ticket={page.tickets.make('0/1')}").status_code == 404, "a text is no medium"


@pytest.mark.parametrize("side", ["target", "query"])
def test_items_of_a_packed_set_come_from_its_shards(open_page, world, request, tmp_path, side):
    folder = request.getfixturevalue("world_of_pairs") / "image"
    shards = ShardSet(folder)
    keys = [shards.samples.key(number) for number in range(4)]
    index = tmp_path / "index"
    index.mkdir()
    write_part(index, 0, Origin(world.engine.fingerprint, "s", "float32", 128, 4, 1), keys, ["image"] * 4, torch.eye(4, 128))
    client = open_page(folder, index, side=side)
    for row in range(4):
        item: Item = getattr(shards.read(row), side)
        for number, part in enumerate(item.parts):
            shown = entry(client, row)["parts"][number]
            assert (shown["text"] if isinstance(part, str) else medium(client, row, part=number).content) == (
                part if isinstance(part, str) else part.read()
            )


@pytest.fixture(scope="module")
def world_of_pairs(request, tmp_path_factory):
    from datamodules.shards.write import write_shards
    from datamodules.toy_world import draw_pairs

    root = tmp_path_factory.mktemp("pairs")
    write_shards(draw_pairs("image", 4, 0), root / "image", pairs_per_shard=2)
    return root


def test_what_cannot_be_decoded_has_no_thumbnail(open_page, tmp_path):
    folder = write_media(tmp_path / "media")
    for name in ("red.png", "clip.mp4", "tone.flac", "report.pdf"):
        (folder / name).write_bytes(b"nothing of the kind")
    client = open_page(folder)
    for key in ("red.png", "clip.mp4", "tone.flac", "report.pdf#page=1"):
        assert medium(client, KEYS.index(key), "thumbnail").status_code == 404
    assert medium(client, KEYS.index("photos/wide.jpg"), "thumbnail").status_code == 200


def test_media_are_refused_while_too_much_waits(client, world, monkeypatch):
    part = entry(client, KEYS.index("red.png"))["parts"][0]
    monkeypatch.setattr(world.engine.batcher, "tokens", world.limits.max_waiting_tokens)
    answer = client.get("/" + part["media"])
    assert (answer.status_code, answer.headers["retry-after"].isdigit()) == (429, True)


def test_a_page_without_media_shows_keys_alone(open_page):
    client = open_page(None)
    assert not client.get("/page/about").json()["media"]
    assert entry(client, 0) == {"row": 0, "key": KEYS[0], "modality": "video", "parts": []}


def test_media_of_another_index_are_refused(open_page, world, tmp_path):
    with pytest.raises(ValueError, match=r"--page\.media must hold the items of the index, .* 'clip\.mp4' is not there"):
        open_page(tmp_path)
    world.store, store = None, world.store
    try:
        with pytest.raises(ValueError, match="Set --index"):
            world.open_page(PageSettings())
    finally:
        world.store = store
    with pytest.raises(ValueError, match="hits must be at least 1"):
        PageSettings(hits=0)


def test_a_key_is_asked_for_all_but_the_pages_own_files(open_page):
    """And media open by their tickets, since a player cannot send a key."""
    client = open_page(key="secret")
    for path in ("/page/about", "/page/entries?rows=0"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"Authorization": "Bearer secret"}).status_code == 200
    assert client.get("/page").status_code == client.get("/page/page.js").status_code == 200
    part = entry(client, KEYS.index("red.png"), Authorization="Bearer secret")["parts"][0]
    assert client.get("/" + part["media"]).content == FILES["red.png"]


@pytest.mark.parametrize("chosen", [["image"], ["audio", "text"], ["video"]])
def test_a_search_may_keep_to_some_modalities(world, tiny, chosen):
    answer = world.plain.post("/v1/search", json={"input": "a storm", "top_k": 3, "modalities": chosen}).json()["data"]
    model, processor = tiny
    with torch.inference_mode():
        query = model.embed([processor(Item(("a storm",)))])
    rows = [row for row in range(len(KEYS)) if world.store.entry(row)[1] in chosen]
    scores, best = top_k(query, [world.vectors[rows]], 3)
    assert [hit["key"] for hit in answer] == [KEYS[rows[number]] for number in best[0].tolist()]
    torch.testing.assert_close(torch.tensor([hit["score"] for hit in answer]), scores[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("chosen", [[], ["picture"], ["image", "smell"], ["image+text"]])
def test_a_modality_that_the_index_lacks_is_refused(world, chosen):
    answer = world.plain.post("/v1/search", json={"input": "a", "modalities": chosen})
    assert answer.status_code == 400
    assert "modalities must be among the index' own, ['audio', 'document', 'image', 'text', 'video']" in error(answer)


@pytest.mark.parametrize(
    ("words", "page"),
    [
        (["f"], None),
        (["f", "--page"], PageSettings()),
        (["--page", "f", "--page.media", "photos", "--page.hits", "9"], PageSettings(Path("photos"), hits=9)),
    ],
)
def test_the_command_serves_the_page(monkeypatch, words, page):
    monkeypatch.setattr(serve, "serve", lambda options: seen.append(options.page))
    seen: list = []
    serve.run(words)
    assert seen == [page]


def test_a_page_without_an_index_is_refused_before_the_model_is_loaded():
    with pytest.raises(ValueError, match="Set --index"):
        serve.run(["no folder", "--page"])
