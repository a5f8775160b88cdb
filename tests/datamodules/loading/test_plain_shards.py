"""Plain WebDataset shards in a run: one order whatever the workers and ranks, each sample once, exact resuming after a kill."""

import json
import os
import tarfile

import pytest
import yaml
from ranks import values
from scenarios import fit_plain

from datamodules import RehearsalData, SpecialistData, WebDataset
from lightning_conan.cli.main import main
from lightning_conan.stages import Specialist
from lightning_conan.training import Lora
from runs import QUICK, Record, in_mid_fit, trainer
from samples import img2dataset

KEYS = [f"{shard:05d}{row:04d}" for shard in range(4) for row in range(8)]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return img2dataset(tmp_path_factory.mktemp("set"))


def on_rank(train, processor, rank=0, world=1, epoch=0, done=0, **options):
    """One rank's data module, in the middle of a fit."""
    data = SpecialistData(train, batch_size=options.pop("batch_size", 7), **options)
    data.trainer = in_mid_fit(processor, rank, world, epoch, done)
    data.setup("fit")
    return data


def keys(data):
    return [batch.keys for batch in data.train_dataloader()]


def test_order_does_not_depend_on_workers_nor_ranks_and_each_sample_comes_once(shards, processor):
    train = WebDataset(str(shards), query="jpg")
    alone = keys(on_rank(train, processor, num_workers=0))
    assert sorted(key for batch in alone for key in batch) == KEYS
    assert alone != keys(on_rank(train, processor, num_workers=0, epoch=1))
    for workers in (1, 4):
        assert keys(on_rank(train, processor, num_workers=workers)) == alone
    ranks = [keys(on_rank(train, processor, rank, 2, num_workers=workers)) for rank, workers in ((0, 0), (1, 1))]
    assert [sorted(one + other) for one, other in zip(*ranks, strict=True)] == [sorted(batch) for batch in alone]


def test_two_ranks_index_together_and_train_on_the_same_batches(base, tmp_path):
    shards = img2dataset(tmp_path / "set")
    ranks = values(fit_plain, base, shards, tmp_path / "two", 4)
    keys, losses = fit_plain(base, shards, tmp_path / "one", 4)
    assert [sorted(one + other) for one, other in zip(*(found for found, _ in ranks), strict=True)] == [
        sorted(each) for each in keys
    ]
    assert sorted(key for batch in keys for key in batch) == KEYS
    assert all(found == pytest.approx(losses, rel=1e-3) for _, found in ranks)


def test_a_stop_leaves_exactly_the_rest_also_with_a_caption_an_epoch_and_a_window(shards, processor):
    from datamodules import Reading

    train = WebDataset(str(shards), query="jpg", target="json:captions[*]")
    options = {"num_workers": 0, "reading": Reading(window=10), "epoch": 2}
    whole = list(on_rank(train, processor, **options).train_dataloader())
    again = on_rank(train, processor, **options)
    again.load_state_dict(on_rank(train, processor, done=2, **options).state_dict())
    rest = list(again.train_dataloader())
    assert [batch.keys for batch in rest] == [batch.keys for batch in whole[2:]]
    assert [batch.target_hashes for batch in rest] == [batch.target_hashes for batch in whole[2:]]
    assert sorted(key for batch in whole for key in batch.keys) == KEYS
    other = on_rank(WebDataset(str(shards), query="jpg"), processor, **options)
    with pytest.raises(ValueError, match="Resuming needs the same data"):
        other.load_state_dict(on_rank(train, processor, **options).state_dict())


def config(tmp_path, base, train, **data):
    """A YAML as a user would write it."""
    model = {"class_path": "lightning_conan.stages.Specialist", "init_args": {"folder": str(base), "modality": "image"}}
    model["init_args"]["training"] = {"warmup_steps": 1, "token_budget": 4000}
    options = {"train": train, "batch_size": 8, "num_workers": 0, "max_bad_rate": 0.5} | data
    steps = {"accelerator": "cpu", "devices": 1, "max_steps": 4, "logger": False, "default_root_dir": str(tmp_path / "work")}
    text = {"seed_everything": 0, "model": model, "data": {"class_path": "datamodules.SpecialistData", "init_args": options}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(text | {"trainer": steps}))
    return ["fit", "--config", str(tmp_path / "run.yaml")]


def test_fit_streams_shards_by_a_yaml_and_lists_what_a_cut_one_lacks(base, tmp_path, capsys):
    root = img2dataset(tmp_path / "set")
    os.truncate(root / "00002.tar", (root / "00002.tar").stat().st_size // 2)
    command = config(tmp_path, base, {"urls": f"{root}/{{00000..00003}}.tar", "query": "jpg;png", "target": "txt"})
    assert main(command) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "work" / "quarantine.jsonl").read_text().splitlines()]
    cut = next(line for line in lines if line["key"].endswith("end of 00002.tar"))
    assert cut["where"] == f"{root}/00002.tar"
    assert "the shard is cut" in cut["reason"]
    assert all(line["where"].endswith("00002.tar") for line in lines)


@pytest.mark.parametrize(("option", "message"), [("quer", "quer"), ("query", "must tell its modality")])
def test_a_wrong_option_of_shards_is_refused(base, tmp_path, capsys, option, message):
    assert main(config(tmp_path, base, {"urls": "x.tar", option: "y"})) != 0
    assert message in capsys.readouterr().err


def test_shards_are_sources_of_rehearsal_beside_packed_folders(shards, world, processor):
    data = RehearsalData({"web": WebDataset(str(shards), query="jpg"), "audio": world / "audio"}, batch_size=4, num_workers=0)
    data.setup("fit")
    assert {slot.source for slot in data.plan(0, 1)} == {"web", "audio"}
    with pytest.raises(ValueError, match="urls"):
        RehearsalData({"urls": "x.tar", "quer": "jpg"})


def unindexed(processor, shards, batches, urls=None, **options):
    """Batches of a stream without an index."""
    given = {"query": "jpg", "index": False} | {name: options.pop(name) for name in ("shuffle", "negatives") if name in options}
    given.setdefault("shuffle", 16)
    loader = on_rank(WebDataset(urls or str(shards), **given), processor, **options).train_dataloader()
    found = iter(loader)
    batches = [next(found) for _ in range(batches)]
    found.close()
    return batches


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_without_an_index_has_each_sample_once_a_pass(shards, processor, workers):
    passes = unindexed(processor, shards, 8, batch_size=8, num_workers=workers)
    names = sorted(key for batch in passes for key in batch.keys)
    assert [key for batch in passes for key in batch.keys] != names
    if not workers:  # a worker's buffer holds the next pass, too
        assert set(names) <= set(KEYS)
    assert not (shards / ".conan-index" / "nothing").exists()
    assert keys_of(passes) == keys_of(unindexed(processor, shards, 8, batch_size=8, num_workers=workers))


def keys_of(batches):
    return [batch.keys for batch in batches]


def test_ranks_of_a_stream_without_an_index_share_the_shards(shards, processor):
    small = {"shuffle": 1, "batch_size": 8, "num_workers": 0}
    ranks = [unindexed(processor, shards, 4, rank=rank, world=2, **small) for rank in range(2)]
    assert all(len(batch.keys) == 4 for batches in ranks for batch in batches)
    found = [key for batches in ranks for batch in batches for key in batch.keys]
    assert sorted(found) == KEYS


def test_a_stream_without_an_index_reads_compressed_shards_and_lists_cut_ones(tmp_path, processor):
    root = img2dataset(tmp_path / "set", 2, 60)
    for name in ("00000", "00001"):
        with tarfile.open(root / f"{name}.tar.gz", "w:gz") as packed, tarfile.open(root / f"{name}.tar") as tar:
            for member in tar:
                packed.addfile(member, tar.extractfile(member))
    data = (root / "00001.tar.gz").read_bytes()
    (root / "00001.tar.gz").write_bytes(data[: len(data) * 4 // 5])
    batches = unindexed(processor, root, 20, urls=str(root / "*.tar.gz"), num_workers=0)
    assert {key[:5] for batch in batches for key in batch.keys} == {"00000", "00001"}
    faults = [json.loads(fault) for batch in batches for fault in batch.faults]
    assert {fault["where"] for fault in faults} == {str(root / "00001.tar.gz")}
    assert any("cannot be read behind this sample" in fault["reason"] for fault in faults)  # one that is cut itself comes first


def test_a_negative_that_no_sample_of_a_shard_has_is_told_once(shards, processor, caplog):
    """A stream has no end at which to refuse it."""
    found = unindexed(processor, shards, 8, batch_size=8, num_workers=0, negatives=["json:wrong", "txt"])
    assert caplog.text.count("has the negative 'json:wrong'; samples have ['jpg', 'json', 'txt']") == 1
    assert all(len(row) == 1 for batch in found for row in batch.negatives)


def test_what_needs_an_index_is_refused_without(shards, processor, tmp_path):
    train = WebDataset(str(shards), query="jpg", index=False)
    with pytest.raises(ValueError, match="cache_gb needs an index"):
        SpecialistData(train, cache_gb=1.0)
    with pytest.raises(ValueError, match="one data set to train on"):
        SpecialistData(val={"a": train})
    with pytest.raises(ValueError, match="one data set to train on"):
        RehearsalData({"a": train, "b": tmp_path})
    data = on_rank(train, processor)
    with pytest.raises(ValueError, match="need an index"):
        next(data.texts())
    data.trainer.max_steps = -1
    with pytest.raises(ValueError, match="has no end"):
        data.train_dataloader()


def test_a_run_without_an_index_resumes_with_a_warning(base, shards, tmp_path, caplog):
    for steps in (2, 4):
        record = Record()
        module = Specialist(base, "image", QUICK, Lora(rank=4, alpha=4))
        data = SpecialistData(WebDataset(str(shards), query="jpg", index=False), batch_size=7, num_workers=0)
        trainer(tmp_path, steps, record).fit(module, data, ckpt_path="last")
        assert len(record.losses) == 2
    assert "starts in another order" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_of_empty_shards_ends(processor, tmp_path, workers):
    """With an error, instead of a search without end."""
    for number in range(3):
        tarfile.open(tmp_path / f"{number}.tar", "w").close()
    with pytest.raises((ValueError, RuntimeError), match="Shards must hold samples, 3 of them hold none"):
        unindexed(processor, tmp_path, 1, batch_size=2, num_workers=workers)
