"""`ColumnEmbedder`: columns of a batch become what one process embeds, with Ray and without it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_conan.embedder import load_folder
from lightning_conan.items import Item, Media
from lightning_conan.training import ColumnEmbedder
from samples import flac, mp4, png


@pytest.fixture(scope="module")
def embed(base):
    return ColumnEmbedder(base, keep=["label"], device="cpu")


@pytest.fixture
def rows(tmp_path):
    """Rows of all modalities, of bytes and of a path, with what a row leaves out."""
    (tmp_path / "b.png").write_bytes(png(seed=2))
    return [
        {"key": "text", "text": "a red circle"},
        {"key": "both", "image": png(), "text": "make it blue"},
        {"key": "path", "image": str(tmp_path / "b.png")},
        {"key": "video", "video": mp4()},
        {"key": "sound", "audio": flac()},
        {"key": "page", "document": png(64, 48, 3)},
    ]


def columns(rows, array=False):
    """A batch as Ray gives it: arrays of objects."""
    names = ("key", "image", "video", "document", "audio", "text")
    lists = {name: [row.get(name) for row in rows] for name in names} | {"label": list(range(len(rows)))}
    if not array:
        return lists
    found = {}
    for name, values in lists.items():
        found[name] = np.empty(len(values), dtype=object)
        found[name][:] = values
    return found


def read(value):
    return value if isinstance(value, bytes) else Path(value).read_bytes()


@pytest.mark.parametrize("array", [False, True])
def test_rows_are_the_items_that_the_model_embeds(base, embed, rows, array):
    found = embed(columns(rows, array))
    model, processor, _ = load_folder(base)
    for row, vector, kinds in zip(rows, found["embedding"], found["modality"], strict=True):
        held = [name for name in ("image", "video", "document", "audio", "text") if name in row]
        parts = [row[name] if name == "text" else Media(name, read(row[name]), name) for name in held]
        with torch.no_grad():
            wanted = model.embed([processor(Item(tuple(parts)))])[0]
        torch.testing.assert_close(torch.from_numpy(vector), wanted, atol=1e-6, rtol=0)
        assert kinds == "+".join(held)
    assert [*found["key"]] == [row["key"] for row in rows]
    assert [*found["label"]] == [*range(len(rows))]
    assert found["embedding"].dtype == np.float32
    assert set(found) == {"key", "label", "modality", "embedding"}


def test_invalid_rows_are_an_error_or_left_out_and_logged(base, caplog):
    batch = {"key": ["a", "b", "c"], "image": [png(), b"no image", None]}
    strict = ColumnEmbedder(base, device="cpu")
    with pytest.raises(ValueError, match="Row b cannot be encoded"):
        strict(batch)
    found = ColumnEmbedder(base, skip_invalid=True, device="cpu")(batch)
    assert [*found["key"]] == ["a"]
    assert "Row b" in caplog.text
    assert "Row c" in caplog.text
    assert ColumnEmbedder(base, skip_invalid=True, device="cpu")({"text": [""]})["embedding"].shape == (0, 128)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"key": ["a"], "img": [b""], "text": ["x"]}, "drop 'img'"),
        ({"key": ["a"]}, "must have columns among"),
        ({"key": ["a"], "text": ["x", "y"]}, "of one length"),
        ({"text": [7]}, "must hold strings"),
        ({"image": [7]}, "must hold the bytes"),
    ],
)
def test_batches_without_a_meaning_are_refused(base, batch, said):
    with pytest.raises(ValueError, match=said):
        ColumnEmbedder(base, device="cpu")(batch)


def test_two_actors_of_ray_embed_what_one_process_does(base):
    """Each key once, to 1e-6."""
    ray = pytest.importorskip("ray")
    texts = [
        {"key": f"k{n}", "text": f"{n} apples " * (n % 9 + 1), "image": png(seed=n) if n % 3 == 0 else None} for n in range(40)
    ]
    wanted = ColumnEmbedder(base, device="cpu")({name: [row[name] for row in texts] for name in texts[0]})
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        data = ray.data.from_items(texts, override_num_blocks=4)
        options = {"fn_constructor_args": [str(base)], "fn_constructor_kwargs": {"device": "cpu"}}
        found = data.map_batches(ColumnEmbedder, **options, concurrency=2, batch_size=8).take_all()
    finally:
        ray.shutdown()
    assert sorted(row["key"] for row in found) == sorted(wanted["key"])
    by_key = dict(zip(wanted["key"], wanted["embedding"], strict=True))
    for row in found:
        np.testing.assert_allclose(row["embedding"], by_key[row["key"]], atol=1e-6)
