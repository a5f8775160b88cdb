"""Every stage as a plain LightningModule: a user's own data module and loaders, of texts, PIL images and arrays."""

import pickle
import re
import resource
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import Callback
from lightning.pytorch.utilities import CombinedLoader
from PIL import Image
from plain import KINDS, QUICK, SMALL, Losses, Rows, columns, fit_rows, on_ranks, rows_of
from ranks import values
from torch.utils.data import DataLoader

from callbacks import DataMonitor, FolderCheckpoint, ProjectorDrift
from datamodules.shards.read import ShardSet
from lightning_conan.embedder import Batch, OmniProcessor, Provenance, load_folder, save_folder, tiny_embedder
from lightning_conan.items import Item, Media
from lightning_conan.stages import ProjectorRecovery, Rehearsal, Specialist, Trace
from lightning_conan.training import Stage
from lightning_conan.training.plain_batches import Collate
from runs import Record, Stop, data, noisy_recipe, state, trainer
from samples import flac, png

PAGE = Path(__file__).parents[1] / "docs" / "lightning.md"
WORDS = {"query": ["red", "one", "dog"], "target": ["rot", "eins", "Hund"]}


@pytest.fixture(scope="module")
def folders(base, fused, recovered, tmp_path_factory):
    recipe = noisy_recipe(base, tmp_path_factory.mktemp("recipe"))
    return {"base": base, "fused": fused, "recovered": recovered, "recipe": recipe}


@pytest.fixture(scope="module", params=KINDS)
def trained(request, folders, tmp_path_factory):
    """A stage of each kind, trained for two epochs of two batches; its losses and weights, and where its .ckpt lies."""
    root = tmp_path_factory.mktemp(request.param)
    return request.param, *fit_rows(request.param, folders, root, epochs=2), root / "checkpoints" / "last.ckpt"


def test_every_stage_trains_on_a_data_module_of_ones_own(trained):
    _, stage, losses, weights, _ = trained
    assert len(losses) == 4
    assert all(np.isfinite(losses))
    assert stage.global_step == 4
    assert stage.seen.total() == 12
    assert weights


def test_every_stage_resumes_after_an_epoch(trained, folders, tmp_path):
    kind, _, losses, weights, _ = trained
    fit_rows(kind, folders, tmp_path, 2, callbacks=[Stop(2)])
    _, more, again = fit_rows(kind, folders, tmp_path, 2, ckpt="last")
    assert more == losses[2:]
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())


def test_every_stage_is_scored_and_predicts(trained, tmp_path):
    _, stage, _, _, _ = trained
    rows = Rows("audio" if stage.modality == "audio" else "image")
    runner = trainer(tmp_path, 1)
    (found,) = runner.validate(stage, rows, verbose=False)
    assert found["val/recall@1"] == found["val/mine/recall@1"]
    found = runner.test(stage, rows, verbose=False)
    assert len(found) == 2
    assert found[0]["test/mrr"] == pytest.approx((found[0]["test/0/mrr"] + found[0]["test/1/mrr"]) / 2)
    sides = {"query": [row["query"] for row in rows.rows], "key": [row["key"] for row in rows.rows]}
    (one,) = runner.predict(stage, DataLoader([sides], batch_size=None))
    assert one.keys == sides["key"]
    torch.testing.assert_close(one.vectors, stage.embed(sides["query"], "query"), atol=1e-5, rtol=0)
    (both,) = runner.predict(stage, DataLoader(rows.rows, batch_size=6, collate_fn=columns))
    assert both.keys == sides["key"]
    torch.testing.assert_close(both.queries, one.vectors, atol=1e-5, rtol=0)
    assert both.targets.norm(dim=1).tolist() == pytest.approx([1] * 6, abs=1e-5)


def test_every_stage_is_loaded_from_its_ckpt(trained, tmp_path):
    """With what was trained; written, it is the folder that the run would have written."""
    _, stage, _, weights, path = trained
    found = type(stage).load_from_checkpoint(path)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in state(found).items())
    assert state(found).keys() == weights.keys()
    rows = ["a red circle", "two"]
    torch.testing.assert_close(found(rows, "target"), stage(rows, "target"), atol=1e-6, rtol=0)
    found.write_folder(tmp_path / "out")
    model, processor, _ = load_folder(tmp_path / "out")
    with torch.no_grad():
        merged = model.embed([processor(Item((text,)), "target") for text in rows])
    torch.testing.assert_close(merged, stage(rows, "target"), atol=1e-5, rtol=0)


def test_two_ranks_recover_as_one(folders, tmp_path):
    """A stage that caches nothing and trains its projector alone, in shards; ``test_lightning_features.py`` has a specialist."""
    losses, scores, _ = on_ranks("recovery", folders, tmp_path / "one", "auto")
    for found in values(on_ranks, "recovery", folders, tmp_path / "two", "fsdp2"):
        assert found[0] == pytest.approx(losses, rel=1e-4)
        assert found[1] == pytest.approx(scores, abs=1e-3)


def test_plain_batches_train_as_packed_ones_do(base, world, tmp_path):
    """Bit for bit, in the same batches: from PIL images, and from batches that workers encode."""
    record, found = Record(), {}
    trainer(tmp_path / "packed", 3, record).fit(Specialist(base, "image", QUICK, SMALL), data(world))
    shards = ShardSet(world / "image")
    pairs = {pair.key: pair for pair in map(shards.read, range(len(shards)))}
    batches = [rows_of([pairs[key] for key in keys]) for keys in record.keys]
    for workers in (None, 2):
        losses, stage = Losses(), Specialist(base, "image", QUICK, SMALL)
        make = {"collate_fn": stage.collate, "num_workers": workers} if workers else {"collate_fn": columns}
        rows = [row for batch in batches for row in batch]
        trainer(tmp_path / str(workers), 3, losses).fit(stage, DataLoader(rows, batch_size=6, **make))
        found[workers] = losses.losses
    assert found == {None: record.losses, 2: record.losses}


def test_equal_contents_have_equal_hashes_in_whatever_form(processor, tmp_path):
    """Texts those of their items; pixels and samples whatever held them; of queries and targets alike."""
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.flac").write_bytes(flac())
    image = Image.open(tmp_path / "a.png")
    pixels, samples = np.asarray(image), processor.decode(Media("audio", tmp_path / "a.flac", "a.flac")).numpy()
    alike = [
        ["a red star", {"text": "a red star"}, Item(("a red star",))],
        [image, pixels, torch.from_numpy(pixels.copy()).movedim(-1, 0), str(tmp_path / "a.png"), {"image": tmp_path / "a.png"}],
        [samples, {"array": samples, "sampling_rate": 16_000}, {"audio": str(tmp_path / "a.flac")}],
        [{"image": image, "text": "make it blue"}, {"image": pixels, "text": "make it blue"}],
        [pixels[:, ::-1]],
        [samples[:-1]],
    ]
    hinted = OmniProcessor(processor.tokenizer, replace(processor.config, query_hint="Ask.", target_hint="Be found."))
    hashes = []
    for values_ in alike:
        batch = Collate(hinted, "image")([{"query": value, "target": value} for value in values_])
        assert batch.query_hashes == batch.target_hashes
        assert len(set(batch.query_hashes)) == 1
        hashes.append(batch.query_hashes[0])
    assert len(set(hashes)) == len(alike)
    assert hashes[0] == Item(("a red star",)).content_hash()


def test_equal_targets_are_no_negatives(base, tmp_path):
    """Two pairs that share a target have one candidate each, so that their loss is 0."""
    losses = Losses()
    rows = {"query": ["one", "two"], "target": ["the same", "the same"]}
    trainer(tmp_path, 1, losses).fit(Specialist(base, "text", QUICK, SMALL), DataLoader([rows], batch_size=None))
    assert losses.losses == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize(
    "negatives",
    [
        {"negative": [["blue", "green"], ["two"], []]},
        {"negative_1": ["blue", "two", None], "negative_2": ["green", None, None]},
        {"negative_10": ["green", None, None], "negative_2": ["blue", "two", None], "negative": [None, None, None]},
    ],
    ids=str,
)
def test_negatives_are_lists_or_columns(processor, negatives):
    batch = Collate(processor).columns(WORDS | negatives)
    wanted = [["blue", "green"], ["two"], []]
    assert batch.negative_hashes == [Item((text,)).content_hash() for row in wanted for text in row]
    assert [len(row) for row in batch.negatives] == [2, 1, 0]


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (WORDS | {"negatives": ["a", "b", "c"]}, r"Rename or remove 'negatives'"),
        (WORDS | {"target": ["rot"]}, r"of one length, got {'query': 3, 'target': 1}"),
        (WORDS | {"negative": [("a", "b", "c"), ("d", "e", "f"), ("g", "h", "i")]}, r"default collate makes tuples"),
        (WORDS | {"query": "red"}, r"must be a dictionary of lists, one entry a row, got 'red' as 'query'"),
        (WORDS | {"task": ["a", "b", "a"]}, r"All pairs of a batch must be of one task.*got \['a', 'b'\]"),
        (WORDS | {"modality": "smell"}, r"modality must be among .*got 'smell'"),
        (WORDS | {"query": ["red", None, "dog"], "key": [7, 8, 9]}, r"The query of row 8 cannot be encoded: .*got None"),
        ({"task": ["a"]}, r"must have 'query' and 'target', or one of them"),
        ({}, r"must have 'query' and 'target'.*got \[\]\. Add them"),
        ({"query": [], "target": []}, "A batch of pairs must have a row, got empty lists"),
        ({"query": ["a"], "negative": ["b"]}, r"Items that are embedded alone have no 'negative'"),
        (
            WORDS | {"target": [np.zeros((40, 40, 3), np.uint8), np.zeros(16_000, np.float32), "a"]},
            r"of several kinds.*'modality'",
        ),
        (
            WORDS | {"target": ["a", {"image": "/no/such.png"}, "a"]},
            r"The target of row 1 cannot be encoded: .*No such file",
        ),
        (WORDS | {"target": ["a", "b", "no/such.png"]}, r"row 2 cannot be encoded: 'no/such.png' is named like a media file"),
        (WORDS | {"target": ["a", Path("such.wav"), "b"]}, r"row 1 cannot be encoded: 'such.wav' is named like a media file"),
        (WORDS | {"image": ["a", "b", "c"]}, r"Rename or remove 'image'"),
        (WORDS | {"reasoning": ["why", "", ""]}, r"Only Trace trains on reasoning"),
        (
            WORDS | {"negative": [torch.zeros(3, 8, 8, 3)] * 3},
            r"default collate makes of rows with lists, got such as 'negative'",
        ),
    ],
)
def test_what_is_no_plain_batch_is_refused(processor, batch, said):
    with pytest.raises(ValueError, match=said):
        Collate(processor).columns(batch)


def test_a_batch_without_rows_is_refused(processor):
    with pytest.raises(ValueError, match="A batch must have a row, got an empty list"):
        Collate(processor)([])


def test_words_that_end_like_a_file_are_texts(processor, tmp_path, monkeypatch):
    """A file that exists is a medium, by a string or a path; what holds a space or no suffix of media is a text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(png())
    found = Collate(processor).columns({"query": ["a.png", Path("a.png")], "target": ["open a.png", "version 1.2"]})
    assert [len(query.inputs("vision")) for query in found.queries] == [1, 1]
    assert not any(target.inputs("vision") for target in found.targets)


def test_the_modality_is_that_of_the_media(processor):
    wave, pixels = np.zeros(16_000, np.float32), np.zeros((40, 40, 3), np.uint8)
    both = {"query": [wave], "target": [pixels]}
    assert Collate(processor).columns({"query": [wave], "target": ["a"]}).modality == "audio"
    assert Collate(processor).columns(WORDS).modality == "text"
    assert Collate(processor, "audio").columns(both).modality == "audio"
    assert Collate(processor, "document").columns({"query": ["a"], "target": [pixels]}).modality == "document"
    assert Collate(processor).columns(both | {"modality": "image"}).modality == "image"


def test_rows_are_collated_as_torch_would_and_as_ours_does(base, tmp_path):
    """Arrays that torch stacks; numbers as keys; what a specialist may not get is refused by it."""
    rows = [{"query": np.full((40, 40, 3), 20 * row, np.uint8), "target": f"gray {row}", "key": row} for row in range(4)]
    stage = Stage(base)
    stacked, (own,) = next(iter(DataLoader(rows, batch_size=4))), DataLoader(rows, batch_size=4, collate_fn=stage.collate)
    other = stage.as_pairs(stacked, 0)
    assert (other.keys, other.query_hashes, other.modality) == (own.keys, own.query_hashes, "image")
    assert own.keys == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match=r"audio specialist must hold audio pairs only, got the image task 'pairs'"):
        trainer(tmp_path, 1).fit(Specialist(base, "audio", QUICK, SMALL), DataLoader(rows, batch_size=4))


def test_a_large_batch_crosses_from_a_worker(processor):
    """Its thousands of tensors would take as many file descriptors; nothing of it changes on the way."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    rows = [{"query": f"query {row}", "target": f"target {row}", "negative": ["a", "b"]} for row in range(600)]
    collate = pickle.loads(pickle.dumps(Stage.collate.fget(SimpleNamespace(processor=processor, modality=None))))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limits[0]), limits[1]))
    try:
        (found,) = DataLoader(rows, batch_size=600, num_workers=1, collate_fn=collate)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    wanted = collate(rows)
    assert all(torch.equal(one.input_ids, two.input_ids) for one, two in zip(found.items(), wanted.items(), strict=True))
    assert (found.hashes(), found.keys, found.task) == (wanted.hashes(), wanted.keys, wanted.task)
    assert type(found) is Batch


def test_items_are_embedded_without_a_trainer(base, tiny, items):
    model, processor = tiny
    stage = Stage(base)
    kinds = ["text", "image", "audio", "image and text"]
    with torch.no_grad():
        wanted = model.embed([processor(items[kind]) for kind in kinds])
    assert torch.equal(stage([items[kind] for kind in kinds]), wanted)
    assert torch.equal(stage.embed([processor(items[kind]) for kind in kinds]), wanted)
    assert torch.equal(stage(["a small red circle"], side="query"), stage([items["text"]]))
    assert not stage(["a"]).requires_grad
    with pytest.raises(ValueError, match=r"Items to embed must be a list, got 'a'. Write \[item\] for one"):
        stage("a")


def test_embedding_leaves_modes_as_they_were(base, world, tmp_path):
    """A callback may embed in mid-training: dropout goes on after it."""

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            before = {name: part.training for name, part in pl_module.named_modules()}
            pl_module.embed(["a"])
            assert before == {name: part.training for name, part in pl_module.named_modules()}
            assert any(before.values())

    trainer(tmp_path, 2, Look()).fit(Specialist(base, "image", QUICK, replace(SMALL, dropout=0.5)), data(world))


def test_a_model_that_tells_sides_apart_is_told_them(base, tmp_path):
    model, processor, provenance = load_folder(base)
    hinted = OmniProcessor(processor.tokenizer, replace(processor.config, query_hint="Ask.", target_hint="Be found."))
    stage = Stage(save_folder(tmp_path / "hinted", model, hinted, provenance))
    with pytest.raises(ValueError, match="a side must be given, got none"):
        stage(["a"])
    query, target = stage(["a"], "query"), stage(["a"], "target")
    assert not torch.allclose(query, target, atol=1e-3)
    with pytest.raises(ValueError, match="a side must be given, got none"):
        trainer(tmp_path, 1).predict(stage, DataLoader(["a", "b"], batch_size=2))
    (found,) = trainer(tmp_path, 1).predict(stage, DataLoader([{"query": ["a", "b"]}], batch_size=None))
    torch.testing.assert_close(found.vectors[:1], query, atol=1e-5, rtol=0)


def test_reasoning_is_taught_and_never_given_away(base, tmp_path):
    """A column of its own in training; queries that are scored must not carry it."""
    rows = {"query": ["red star", "one"], "target": ["a", "b"], "reasoning": ["it is red", None]}
    stage = Trace(base, QUICK, SMALL, query_hint="", target_hint="")
    batch = stage.as_pairs(rows, 0)
    plain = stage.as_pairs({name: rows[name] for name in ("query", "target")}, 0)
    assert len(batch.queries[0]) > len(plain.queries[0])
    assert len(batch.queries[1]) == len(plain.queries[1])
    with pytest.raises(ValueError, match="must not carry their reasoning"):
        trainer(tmp_path, 1).test(stage, DataLoader([rows], batch_size=None))
    with pytest.raises(ValueError, match="add or remove the column 'reasoning'"):
        trainer(tmp_path, 1).fit(Trace(base, QUICK, SMALL), DataLoader([WORDS], batch_size=None))


@pytest.mark.parametrize(
    ("loaders", "names"),
    [
        (lambda one: one, ["data"]),
        (lambda one: [one], ["data"]),
        (lambda one: [one, one], ["0", "1"]),
        (lambda one: {"z.b": one, "a": one}, ["a", "z.b"]),
        (lambda one: CombinedLoader({"z": one, "a": one}, "sequential"), ["a", "z"]),
    ],
)
def test_data_sets_are_named_by_their_loaders(base, tmp_path, loaders, names):
    one = DataLoader([WORDS], batch_size=None)
    found = trainer(tmp_path, 1).test(Stage(base), loaders(one), verbose=False)
    assert sorted({name.split("/")[1] for name in found[0] if name.count("/") > 1}) == names
    assert len(found) == len(names)


def test_each_loaders_pairs_count_for_its_own_data_set(base, tmp_path):
    """A set in which all is found, and one in which nothing is: their mean is logged beside them."""
    same = {"query": ["red", "one", "dog"], "target": ["red", "one", "dog"]}
    turned = {"query": ["red", "one", "dog"], "target": ["one", "dog", "red"]}
    loaders = {name: DataLoader([rows], batch_size=None) for name, rows in (("same", same), ("turned", turned))}
    runner, stage = trainer(tmp_path, 1), Stage(base)
    for _ in range(2):  # nothing is left of the first time
        found = runner.test(stage, loaders, verbose=False)[0]
        assert (found["test/same/recall@1"], found["test/turned/recall@1"], found["test/recall@1"]) == (100, 0, 50)
    assert all(metric.update_count == 0 for metric in stage.metrics)
    assert runner.validate(stage, loaders["same"], verbose=False)[0]["val/data/recall@1"] == 100


def test_loaders_without_order_or_name_are_refused(base, tmp_path):
    one = DataLoader([WORDS], batch_size=None)
    with pytest.raises(ValueError, match="must hold no slash"):
        trainer(tmp_path, 1).test(Stage(base), {"a/b": one})
    with pytest.raises(ValueError, match="loaders must be one, a list or a dictionary"):
        trainer(tmp_path, 1).test(Stage(base), CombinedLoader({"a": [one, one]}, "sequential"))


def test_callbacks_of_ours_take_plain_batches(base, tmp_path):
    rows = [{"query": np.full((40, 40, 3), 20 * row, np.uint8), "target": f"gray {row}"} for row in range(8)]
    monitor = DataMonitor(2)
    seen = []
    monitor.on_train_batch_end = lambda *args: seen.append(monitor.pairs)
    model, processor, _ = load_folder(base)
    folder = save_folder(tmp_path / "image", model, processor, Provenance("specialist", "image"))
    drift = ProjectorDrift(folder, "image", every_n_steps=1)
    writes = FolderCheckpoint(tmp_path / "out", monitor="val/recall@1")
    loader = DataLoader(rows, batch_size=4)
    trainer(tmp_path, 2, monitor, drift, writes).fit(Specialist(base, "image", QUICK, SMALL), loader, loader)
    assert seen == [4, 8]
    assert [step for step, _ in drift.history] == [0, 1, 2]
    assert load_folder(tmp_path / "out")[2].notes["best"]["step"] == 2


def test_a_bank_says_what_it_lacks(fused, tmp_path):
    stage = ProjectorRecovery(fused, QUICK, constants=tmp_path / "constants", bank=True)
    with pytest.raises(ValueError, match=r"A bank of texts needs a data module with `texts\(\)`, got Rows"):
        trainer(tmp_path, 1).fit(stage, Rows("audio"))


def test_a_fit_that_failed_before_its_first_step_may_be_repeated(base, tmp_path):
    stage = Specialist(base, "text", QUICK, SMALL)
    with pytest.raises(ValueError, match="Rename or remove"):
        trainer(tmp_path, 1).fit(stage, DataLoader([WORDS | {"oops": ["a"] * 3}], batch_size=None))
    trainer(tmp_path, 1).fit(stage, DataLoader([WORDS], batch_size=None))
    with pytest.raises(ValueError, match="A stage trains once"):
        trainer(tmp_path, 1).fit(stage, DataLoader([WORDS], batch_size=None))


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    """A .ckpt of a text specialist of its own base folder."""
    root = tmp_path_factory.mktemp("saved")
    folder = save_folder(root / "base", *load_folder(base))
    trainer(root, 1).fit(Specialist(folder, "text", QUICK, SMALL), DataLoader([WORDS], batch_size=None))
    return folder, root / "checkpoints" / "last.ckpt"


def test_a_ckpt_follows_its_folder(saved, tmp_path):
    folder, path = saved
    wanted = Specialist.load_from_checkpoint(path)(["a"])
    moved = folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"checkpoint folder .*base, which does not exist. Name it where .*folder=\.\.\."):
        Specialist.load_from_checkpoint(path)
    found = Stage.load_from_checkpoint(path, folder=moved)
    assert type(found) is Specialist
    assert torch.equal(found(["a"]), wanted)
    other = save_folder(tmp_path / "other", *tiny_embedder(1), Provenance("base"))
    with pytest.raises(ValueError, match=r"from another folder than .*other"):
        Specialist.load_from_checkpoint(path, folder=other)
    with pytest.raises(ValueError, match=r"must keep its lora.rank. It began with 2, got 4"):
        Specialist.load_from_checkpoint(path, folder=moved, lora=replace(SMALL, rank=4))
    with pytest.raises(ValueError, match=r"make a .*Specialist, which must be Rehearsal"):
        Rehearsal.load_from_checkpoint(path, folder=moved)
    with pytest.raises(ValueError, match="Options of Specialist must be those of its class"):
        Specialist.load_from_checkpoint(path, folder=moved, colour="red")
    moved.rename(folder)


def test_a_loaded_stage_is_scored_and_trains_no_more(saved, tmp_path):
    stage = Specialist.load_from_checkpoint(saved[1])
    loader = DataLoader([WORDS], batch_size=None)
    assert trainer(tmp_path, 1).test(stage, loader, verbose=False)[0]["test/recall@10"] == 100
    with pytest.raises(ValueError, match="load_from_checkpoint only embeds"):
        trainer(tmp_path, 1).fit(stage, loader)


def test_only_what_was_trained_is_written(base, saved, tmp_path):
    """Embedding loads the model, and does not train it."""
    stage = Specialist(base, "text", QUICK, SMALL)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"writes what was trained, and this Specialist was not fitted\. Call trainer\.fit"):
            stage.write_folder(tmp_path / "out")
        stage.embed(["a"])
    with pytest.raises(ValueError, match="Stage trains nothing, so it writes no folder"):
        Stage(base).write_folder(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    stage = Specialist.load_from_checkpoint(saved[1])
    stage.write_folder(tmp_path / "adapter", "adapter")
    stage.write_folder(tmp_path / "dense")
    with pytest.raises(ValueError, match="Adapters are written before they are merged"):
        stage.write_folder(tmp_path / "again", "adapter")


@pytest.mark.parametrize("modality", ["foo", "Image", ""])
def test_an_unknown_modality_is_refused_at_once(base, modality):
    with pytest.raises(ValueError, match=f"modality must be among .*, got '{modality}'"):
        Specialist.__init__.__wrapped__(Specialist.__new__(Specialist, base, modality), base, modality)


def test_the_pages_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(block, scope := {})
    assert scope["scores"]["test/recall@1"] == scope["scores"]["test/gray/recall@1"]
    assert scope["found"].keys == [f"g{row}" for row in range(6)]
    assert scope["vectors"].shape == (2, 128)
    model, processor, provenance = load_folder(tmp_path / "image")
    assert (provenance.state, provenance.notes["steps"] > 0) == ("specialist", True)
    with torch.no_grad():
        written = model.embed([processor(Item(("a gray square",)))])
    torch.testing.assert_close(written, scope["vectors"][:1], atol=1e-5, rtol=0)
