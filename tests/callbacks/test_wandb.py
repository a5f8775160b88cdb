"""Runs as Weights & Biases keeps them, read back from its own offline files; and the tables of other loggers."""

import io
import json
import shutil
import sys
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import av
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from offline_runs import offline_runs
from PIL import Image
from ranks import values
from scenarios import table_of_ranks

from callbacks import RetrievalTable, RunRecord, WandbArtifacts, WandbRun
from callbacks.table_rows import Scored, choose, drawn
from callbacks.wandb_artifacts import artifact_name, model_artifact
from datamodules import SpecialistData
from lightning_conan.cli.main import main
from lightning_conan.embedder import load_folder, read_provenance
from lightning_conan.training import Stage
from runs import trainer
from samples import CONFIGS

KINDS = ("image", "video", "document", "audio")


@pytest.fixture(scope="module")
def fitted(base, world, tmp_path_factory):
    """A fit of two steps, scored after each, and resumed for a third one; its root."""
    root = tmp_path_factory.mktemp("fitted")
    words = ["fit", "--config", str(CONFIGS / "base.yaml"), "--config", str(CONFIGS / "tiny" / "specialist.yaml")]
    words += ["--trainer.default_root_dir", str(root / "work"), "--trainer.callbacks.out", str(root / "image")]
    words += ["--model.init_args.folder", str(base), "--data.init_args.train", str(world / "image")]
    words += ["--data.init_args.batch_size", "4", "--data.init_args.val", json.dumps({name: str(world / name) for name in KINDS})]
    words += ["--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", "1"]
    words += ["--config", str(CONFIGS / "wandb.yaml"), "--trainer.logger.init_args.save_dir", str(root)]
    words += ["--trainer.callbacks+", "callbacks.RetrievalTable", "--trainer.callbacks.queries", "4"]
    words += ["--trainer.callbacks.worst", "1", "--trainer.log_every_n_steps", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DATA_DIR", str(root / "wandb" / "data"))
        patch.setenv("WANDB_SILENT", "true")
        assert main([*words, "--trainer.max_steps", "2"]) == 0
        assert main([*words, "--trainer.max_steps", "3", "--ckpt_path", "last"]) == 0
    return root


@pytest.fixture(scope="module")
def logged(fitted):
    """Both parts of the run, as their files have them."""
    return offline_runs(fitted)


def test_a_run_lies_below_the_folder_of_its_start(tmp_path, monkeypatch):
    """One service serves all runs of a process, and stays where the first one began: a relative folder would be lost there."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
        logger = WandbRun(save_dir="runs")
        logger.log_metrics({"x": 1.0})
        logger.finish()
        (found,) = offline_runs(tmp_path / name / "runs")
        assert [line["x"] for line in found.history] == [1.0]


def test_a_resumed_run_is_the_same_run(logged, fitted):
    first, second = logged
    assert first.id == second.id == (fitted / "work" / "checkpoints" / "wandb-run-id").read_text().strip()
    steps = [line["trainer/global_step"] for run in logged for line in run.history if "train/loss" in line]
    assert len(steps) == 3
    assert all(one < other for one, other in pairwise(steps))


def test_the_configuration_has_every_setting(logged, fitted, base, world):
    config = logged[0].config
    assert len(config) >= 40
    assert config["trainer/max_steps"] == 2
    assert config["training"]["lr"] == 1e-3
    assert config["data/batch_size"] == 4
    assert config["versions/torch"] == version("torch")
    assert config["folders/folder/hash"] == read_provenance(base).fingerprint
    content = json.loads((world / "audio" / "index.json").read_text())["content_hash"]
    assert config["data/contents/validate/audio/digest"] == content


def test_the_summary_has_headline_scores(logged):
    last = [line for line in logged[1].history if "val/recall@1" in line][-1]
    assert logged[1].summary["headline/val/recall@1"] == pytest.approx(last["val/recall@1"], abs=1e-3)
    assert logged[1].summary["headline/steps"] == 3


def test_artifacts_make_a_graph_of_folders_and_data(logged, fitted, base, world, tmp_path):
    """Named by what they hold, so that whoever logs a folder means the same one; nothing is copied."""
    start, end = read_provenance(base), read_provenance(fitted / "image")
    models = {name for run in logged for name, found in run.uses.items() if found.type == "model"}
    assert models == {artifact_name("base", None, start.fingerprint)}
    (name,) = logged[1].logs
    assert name == artifact_name("specialist", "image", end.fingerprint)
    assert all(entry.ref.startswith("file://") and not entry.local_path for entry in logged[1].logs[name].manifest.contents)
    data = [found for found in logged[0].uses.values() if found.type == "dataset"]
    assert {entry.ref for found in data for entry in found.manifest.contents} >= {
        path.as_uri() for kind in KINDS for path in (world / kind).glob("*.tar")
    }
    moved = shutil.copytree(base, tmp_path / "moved")
    assert model_artifact(moved).digest == logged[0].uses[artifact_name("base", None, start.fingerprint)].digest


def tables(run):
    """Each table's name, rows as dictionaries, and media by their paths."""
    for artifact in run.tables:
        files = {entry.path: entry.local_path for entry in artifact.manifest.contents}
        (path,) = (path for path in files if path.endswith(".table.json"))
        found = json.loads(Path(files[path]).read_text())
        rows = [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]
        yield path.split("/")[-1].removesuffix(".table.json"), rows, files


def test_tables_hold_media_that_play(logged):
    for name, rows, files in tables(logged[0]):
        column = f"query {name}"
        media = [row[column] for row in rows]
        assert len(media) == 4, name
        for medium in media:
            data = Path(files[medium["path"]]).read_bytes()
            assert medium["_type"] == {"video": "video-file", "audio": "audio-file"}.get(name, "image-file")
            if name in ("image", "document"):
                Image.open(io.BytesIO(data)).load()
            else:
                with av.open(io.BytesIO(data)) as container:
                    assert sum(1 for _ in container.decode(**{name: 0})) > 1
    assert {name for name, _, _ in tables(logged[0])} == set(KINDS)


def test_each_validation_shows_the_same_queries(logged):
    seen = {name: [] for name in KINDS}
    for run in logged:
        for name, rows, _ in tables(run):
            seen[name].append([row["key"] for row in rows if row["row"] == "random"])
    for keys in seen.values():
        assert len(keys) == 3
        assert all(len(one) == 3 and one == other for one, other in pairwise(keys))


def test_a_row_tells_the_rank_and_the_first_hits(logged, fitted, world):
    """By a plain loop over the weights that the last validation scored."""
    model, processor, _ = load_folder(fitted / "image")
    data = SpecialistData(val={"image": world / "image"})
    data.setup("validate")
    reader = data.sets["validate"]["image"]
    pairs = {reader.samples.key(number): reader.read(number) for number in range(len(reader))}
    with torch.no_grad():
        targets = {pair.target.content_hash(): pair.target for pair in pairs.values()}
        corpus = model.embed([processor(target, "target") for target in targets.values()])
        (rows,) = (rows for name, rows, _ in tables(logged[1]) if name == "image")
        for row in rows:
            pair = pairs[row["key"]]
            scores = dict(zip(targets, (corpus @ model.embed([processor(pair.query, "query")])[0]).tolist(), strict=True))
            own = scores[pair.target.content_hash()]
            assert row["rank"] == 1 + sum(score >= own for name, score in scores.items() if name != pair.target.content_hash())
            best = sorted(scores.values(), reverse=True)[:5]
            assert [row[f"hit {place} score"] for place in range(1, 6)] == pytest.approx(best, abs=2e-4)
            texts = [row[f"hit {place} text"] for place in range(1, 6)]
            assert texts == [targets[name].parts[0] for name in sorted(scores, key=scores.__getitem__, reverse=True)[:5]]
            assert [row[f"hit {place} relevant"] for place in range(1, 6)] == [text == pair.target.parts[0] for text in texts]
            assert row["first hit"] == "text"
            assert row["positive text"] == pair.target.parts[0]


def test_the_worst_query_is_shown(logged):
    for run in logged:
        for _, rows, _ in tables(run):
            assert [row["row"] for row in rows] == ["random"] * 3 + ["worst"]


@pytest.fixture
def disabled(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")


def scored(base, world, root, **options):
    """A validation without Weights & Biases; its table's choices."""
    table = RetrievalTable(queries=6, worst=2, **options)
    loggers = [WandbRun(save_dir=root), CSVLogger(root)]
    runner = trainer(root, 1, table, RunRecord(), WandbArtifacts())
    runner.loggers = loggers
    found = []
    show = table.show
    table.show = lambda trainer, name, rows: (found.extend(rows), show(trainer, name, rows))
    runner.validate(Stage(base), SpecialistData(val={"image": world / "image"}, batch_size=7, num_workers=0), verbose=False)
    loggers[0].finish()
    return [(row.choice.kind, row.choice.key, row.choice.rank) for row in found]


def test_two_ranks_are_one_run_with_the_same_table(base, world, tmp_path, disabled):
    """Disabled, nothing is written for Weights & Biases, and the page beside the other log is."""
    alone = scored(base, world, tmp_path / "alone")
    assert not list((tmp_path / "alone").glob("wandb/*run*"))
    (page,) = (tmp_path / "alone").rglob("retrieval/image.html")
    assert page.read_text().count("<tr>") == 1 + 6
    assert "data:image/png;base64," in page.read_text()
    (settings,) = (tmp_path / "alone").rglob("hparams.yaml")
    assert len(yaml.safe_load(settings.read_text())) >= 40
    ranks = values(table_of_ranks, base, world, tmp_path / "two")
    assert ranks == [alone, []]
    (run,) = offline_runs(tmp_path / "two")
    assert [name for name, _, _ in tables(run)] == ["image"]


def test_a_table_has_no_more_bytes_than_asked(base, world, tmp_path, disabled):
    """The rest is named."""
    scored(base, world, tmp_path / "whole")
    scored(base, world, tmp_path / "small", max_mb=0.002)
    whole, small = (next((tmp_path / name).rglob("image.html")).read_text() for name in ("whole", "small"))
    kept = whole.count("data:image") - small.count("data:image")
    assert 0 < small.count("data:image") < whole.count("data:image")
    assert small.count("[image ") == kept


def test_without_wandb_tables_are_written(base, world, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    table = RetrievalTable(queries=3, worst=0)
    runner = trainer(tmp_path, 1, table, RunRecord(), WandbArtifacts())
    runner.validate(Stage(base), SpecialistData(val={"a": world / "audio"}, batch_size=20, num_workers=0), verbose=False)
    page = (tmp_path / "retrieval" / "a.html").read_text()
    assert page.count("<audio") == 3
    monkeypatch.setattr("callbacks.table_outputs.show_parts", lambda *_: pytest.fail("media are made again"))
    runner.validate(Stage(base), SpecialistData(val={"a": world / "audio"}, batch_size=20, num_workers=0), verbose=False)
    assert (tmp_path / "retrieval" / "a.html").read_text() == page


def test_chosen_queries_do_not_depend_on_their_order():
    """Nor on others that are missing; equal queries are one."""
    keys = [f"k{number}" for number in range(50)]
    ids = [number // 2 for number in range(50)]
    chosen = [keys[row] for row in drawn(keys, ids, 1, 10)]
    assert len({ids[keys.index(key)] for key in chosen}) == 10
    assert [keys[::-1][row] for row in drawn(keys[::-1], ids[::-1], 1, 10)] == chosen
    assert [keys[row] for row in drawn(keys, ids, 2, 10)] != chosen
    less = [key for key in keys if key != chosen[0]]
    rest = [less[row] for row in drawn(less, [keys.index(key) // 2 for key in less], 1, 10)]
    assert set(chosen[1:]) <= {*rest, *chosen[:1]}


def test_the_worst_are_those_with_the_worst_ranks():
    """Among the queries that the seed did not choose; a query with several targets counts by the best of them."""
    generator = torch.Generator().manual_seed(0)
    queries, targets = torch.randn(2, 30, 4, generator=generator)
    queries[1] = queries[0]
    ids = [0, 0, *range(2, 30)]
    scored = Scored([f"k{row}" for row in range(30)], queries, targets, ids, list(range(30)))
    chosen = choose(scored, count=10, worst=4, depth=3, seed=0)
    ranks = {}
    for row in range(30):
        scores = (targets @ queries[row]).tolist()
        own = [other for other in range(30) if ids[other] == ids[row]]
        ranks[f"k{row}"] = 1 + sum(score >= max(scores[other] for other in own) for n, score in enumerate(scores) if n not in own)
    assert all(choice.rank == ranks[choice.key] for choice in chosen)
    random = {choice.key for choice in chosen if choice.kind == "random"}
    twin = {"k0", "k1"} - {"k0" if "k0" in random else "k1"}
    rest = sorted((rank for key, rank in ranks.items() if key not in random | twin), reverse=True)
    assert len(random) == 6
    assert [choice.rank for choice in chosen if choice.kind == "worst"] == rest[:4]


@pytest.mark.parametrize("options", [{"queries": 0}, {"queries": 201}, {"worst": 101}, {"hits": 0}, {"max_mb": -1.0}])
def test_impossible_tables_are_refused(options):
    with pytest.raises(ValueError, match="RetrievalTable takes queries of 1 to 200"):
        RetrievalTable(**options)


def test_a_run_that_is_resumed_without_its_id_is_a_new_one(tmp_path, caplog):
    logger = WandbRun(save_dir=tmp_path)
    logger.resume(tmp_path)
    assert "a new run of Weights & Biases" in caplog.text
    assert logger.version is None
