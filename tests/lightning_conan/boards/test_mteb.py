"""mteb both ways: its mock tasks, public data and its own layout, on our encoder and on an exported folder."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import mteb
import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, Image
from mteb.types import PromptType
from mteb_grid import stock_wrapper
from mteb_tasks import MEASURES, scores, task_of, write_task
from PIL import Image as Pil
from torch.utils.data import DataLoader

from lightning_conan.boards import mteb_data
from lightning_conan.boards.mteb_board import find_board
from lightning_conan.boards.mteb_embedder import EncoderOptions
from lightning_conan.boards.mteb_encoder import MtebEncoder
from lightning_conan.boards.mteb_model import model_meta, mteb_model
from lightning_conan.cli.main import main
from lightning_conan.embedder import Provenance, load_folder, save_folder, tiny_embedder
from lightning_conan.embedder.checkpoint import export_folder
from lightning_conan.items import Item, Media
from lightning_conan.media import Clip
from samples import mp4, png

GRID = {"text": 28, "image": 15, "audio": 10, "video": 7, "audio-visual": 13}


@pytest.fixture(scope="module")
def exported(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "whole"
    export_folder(base, folder)
    return folder


@pytest.fixture(scope="module")
def wrappers(exported):
    """The exported folder in mteb's own wrapper, and in ours."""
    return stock_wrapper(exported), mteb_model(exported, "cpu")


@pytest.fixture(scope="module")
def encoder(base, tmp_path_factory):
    return MtebEncoder(base, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def embed(base):
    """Each item alone, by the plain model: the oracle."""
    model, processor, _ = load_folder(base)

    def embed(*items, side="target"):
        with torch.no_grad():
            return torch.cat([model.embed([processor(item, side)]) for item in items]).numpy()

    return embed


@pytest.fixture(scope="module")
def grid(base, exported, tmp_path_factory):
    """Results of `mteb_grid.py`, with FFmpeg's libraries as PyAV's wheel holds them."""
    links, libraries = tmp_path_factory.mktemp("ffmpeg"), Path(av.__file__).parents[1] / "av.libs"
    for file in libraries.glob("lib*"):
        if name := re.sub(r"^(lib(?:av|sw)\w+)-\w+(\.so\.\d+).*", r"\1\2", file.name):
            (links / name).symlink_to(file)
    script = Path(__file__).parents[2] / "mteb_grid.py"
    command = [sys.executable, "-W", "ignore", str(script), str(base), str(exported), str(tmp_path_factory.mktemp("grid"))]
    paths = os.pathsep.join(filter(None, [str(links), str(libraries), os.environ.get("LD_LIBRARY_PATH")]))
    environment = {**os.environ, "LD_LIBRARY_PATH": paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    if "libnppicc" in done.stderr:
        pytest.skip("this torchcodec needs CUDA's NPP (0.11, for torch 2.11)")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("model", ["ours", "exported"])
def test_every_mock_task_passes_and_none_is_skipped(grid, model):
    assert grid[model] == {"passed": GRID, "failed": {}}


def evaluated(base, name, root):
    """Scores of `conan evaluate --tasks`, by mteb's names."""
    words = ["evaluate", "--folder", str(base), "--tasks", json.dumps([str(write_task(name, root))]), "--accelerator", "cpu"]
    assert main([*words, "--out", str(root / "out")]) == 0
    found = json.loads((root / "out" / "scores.json").read_text())["tasks"][name]
    assert found["ties"] == 0
    return {name: found["scores"][ours] / 100 for name, ours in MEASURES.items()}


def rounded(found):
    return {name: round(value, 5) for name, value in found.items()}  # as mteb rounds most


@pytest.mark.parametrize("name", ["digits", "countries", "icons"])
def test_public_data_scores_alike_in_mteb_and_here(base, wrappers, encoder, tmp_path, name):
    wrapped, *others = (rounded(scores(model, name)) for model in (*wrappers, encoder))
    assert 0 < wrapped["ndcg_at_10"] < 1
    assert others == [pytest.approx(wrapped, abs=1e-6)] * 2
    assert rounded(evaluated(base, name, tmp_path)) == pytest.approx(wrapped, abs=1e-6)


@pytest.mark.parametrize("name", ["tones", "sounds"])
def test_sounds_of_any_rate_score_alike(base, grid, tmp_path, name):
    wanted = rounded(evaluated(base, name, tmp_path))
    for found in grid[name].values():
        assert rounded(found) == pytest.approx(wanted, abs=1e-6)


# Inputs


TASK = SimpleNamespace(name="T", type="STS")


def encode(encoder, rows, task=TASK, **kwargs):
    loader = DataLoader(rows, batch_size=2, collate_fn=lambda found: {name: [row[name] for row in found] for name in found[0]})
    return encoder.encode(loader, task_metadata=task, hf_split="test", hf_subset="default", **kwargs)


def test_rows_of_a_data_set_are_read_from_their_files(encoder, embed):
    """PNG, TIFF (which only Pillow reads), no image at all, and empty texts; order of the columns."""
    import io

    tiff = io.BytesIO()
    pixels = Pil.open(io.BytesIO(png()))
    pixels.save(tiff, "TIFF")
    rows = [
        {"id": "a", "image": {"bytes": png(seed=1)}, "text": "red"},
        {"id": "b", "image": {"bytes": tiff.getvalue()}, "text": None},
        {"id": "c", "image": None, "text": "blue"},
        {"id": "d", "image": {"bytes": png(seed=1)}, "text": ""},
    ]
    data = Dataset.from_list(rows).cast_column("image", Image())
    found = encode(encoder, data)
    image, other = Media("image", png(seed=1), "a.png"), Media("image", png(), "b.png")
    wanted = embed(Item((image, "red")), Item((other,)), Item(("blue",)), Item((image,)))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    before = encoder.embedded
    encode(encoder, data.select([3, 2, 1, 0, 0]))
    assert encoder.embedded == before


def test_what_collators_make_is_taken(encoder, embed, processor):
    """Bare frames beside a sound, stereo, mixed rates, and None where a row lacks a modality."""
    frames = torch.randint(0, 255, (6, 3, 48, 64), dtype=torch.uint8)
    tone = (0.3 * torch.sin(torch.arange(24_000) * 0.05)).numpy()
    rows = [
        {"video": frames, "audio": {"array": tone, "sampling_rate": 16_000}, "text": "both"},
        {"video": None, "audio": {"array": np.stack([tone, 0 * tone]), "sampling_rate": 8_000}, "text": None},
        {"video": frames, "audio": None, "text": "alone"},
    ]
    found = encode(encoder, rows)
    model = encoder.stage.embedder
    from torchaudio.functional import resample

    numbers = processor.config.sampling.indices(6, 24.0)
    clip = Clip(frames[numbers], [number / 24 for number in numbers])
    half = resample(torch.from_numpy(tone) / 2, 8_000, 16_000)
    parts = [["both", clip, torch.from_numpy(tone)], [half], ["alone", clip]]
    with torch.no_grad():
        wanted = torch.cat([model.embed([processor.encode(each, None, "target")]) for each in parts]).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_texts_that_are_empty_are_embedded_and_rows_without_anything_are_not(encoder, processor):
    with torch.no_grad():
        wanted = encoder.stage.embedder.embed([processor.encode([""], None, "target")]).numpy()
    np.testing.assert_allclose(encode(encoder, [{"text": ""}]), wanted, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"T: 1 inputs cannot be read.*Row 1 must hold one of text, image, video, audio, got none"
    ):
        encode(encoder, [{"text": "a", "image": None}, {"text": None, "image": None}])
    broken = Dataset.from_list([{"image": {"bytes": png()[:60]}}]).cast_column("image", Image())
    with pytest.raises(ValueError, match="T: 1 inputs cannot be read"):
        encode(encoder, broken)


PROMPTS = {"STS12-query": "a", "STS12": "b", "STS-query": "c", "STS": "d", "query": "e", "document": "f"}


@pytest.mark.parametrize(
    ("name", "kind", "side", "wanted"),
    [
        ("STS12", "STS", "query", "a"),
        ("STS12", "STS", "document", "b"),
        ("STS13", "STS", "query", "c"),
        ("STS13", "STS", None, "d"),
        ("SciFact", "Retrieval", "query", "e"),
        ("SciFact", "Retrieval", "document", "f"),
        ("SciFact", "Retrieval", None, None),
    ],
)
def test_instructions_are_chosen_as_mteb_does(base, encoder, embed, name, kind, side, wanted):
    asking = MtebEncoder(base, encoder.cache.folder.parent, EncoderOptions(PROMPTS))
    found = encode(asking, [{"text": "red"}], SimpleNamespace(name=name, type=kind), prompt_type=side and PromptType(side))
    np.testing.assert_allclose(found, embed(Item(("red",), wanted)), atol=1e-6)


def test_prompts_of_unknown_tasks_are_refused(base, tmp_path):
    with pytest.raises(ValueError, match=r"Prompts must be named by mteb's tasks.*STS0 is not valid"):
        MtebEncoder(base, tmp_path, EncoderOptions({"STS0": "a"}))


def test_models_that_tell_sides_read_queries_as_such(tmp_path, exported):
    model, processor = tiny_embedder()
    from dataclasses import replace

    from lightning_conan.embedder import OmniProcessor

    processor = OmniProcessor(processor.tokenizer, replace(processor.config, query_hint="Ask.", target_hint="Answer."))
    folder = save_folder(tmp_path / "sides", model, processor, Provenance("base"))
    asking = MtebEncoder(folder, tmp_path / "cache")
    export_folder(folder, tmp_path / "exported")
    wrapped = mteb_model(tmp_path / "exported", "cpu")
    sides = {"query": "query", "document": "target", None: "target"}
    for name, side in sides.items():
        with torch.no_grad():
            wanted = model.embed([processor(Item(("red",)), side)]).numpy()
        kwargs = {"prompt_type": name and PromptType(name)}
        np.testing.assert_allclose(encode(asking, [{"text": "red"}], **kwargs), wanted, atol=1e-6)
        np.testing.assert_allclose(encode(wrapped, [{"text": "red"}], **kwargs), wanted, atol=1e-6)


def test_videos_keep_their_rate(encoder, embed):
    from datasets import Video

    data = Dataset.from_list([{"video": {"bytes": mp4()}, "audio": None}]).cast_column("video", Video())
    found = encode(encoder, data.remove_columns("audio"))
    np.testing.assert_allclose(found, embed(Item((Media("video", mp4(), "a.mp4"),))), atol=1e-6)


def test_the_model_meta_loads_the_exported_folder(exported, base):
    meta = model_meta(exported, "me/model")
    assert (meta.name, meta.modalities, meta.embed_dim) == ("me/model", ["text", "image", "video", "audio"], 128)
    assert meta.revision != model_meta(base).revision
    loaded = meta.load_model(device="cpu")
    assert encode(loaded, [{"text": "red"}]).shape == (1, 128)


def test_a_corpus_that_shares_half_of_anothers_embeds_the_other_half(base, tmp_path):
    encoder = MtebEncoder(base, tmp_path)
    first, second = task_of("countries"), task_of("countries")
    split = second.dataset["default"]["test"]
    changed = [
        {**row, "text": row["text"] + " again" if number % 2 else row["text"]} for number, row in enumerate(split["corpus"])
    ]
    split["corpus"] = Dataset.from_list(changed)
    mteb.evaluate(encoder, [first], cache=None, show_progress_bar=False)
    assert encoder.embedded == 80
    mteb.evaluate(encoder, [second], cache=None, show_progress_bar=False)
    assert encoder.embedded == 80 + 20


def test_candidates_are_ranked_as_the_whole_corpus_is(encoder):
    whole, pooled = task_of("countries"), task_of("countries")
    split = pooled.dataset["default"]["test"]
    ids = split["corpus"]["id"]
    split["top_ranked"] = {query: list(reversed(ids)) for query in split["queries"]["id"]}
    (first,), (second,) = (
        mteb.evaluate(encoder, [task], cache=None, show_progress_bar=False).task_results for task in (whole, pooled)
    )
    assert first.scores["test"][0]["ndcg_at_10"] == second.scores["test"][0]["ndcg_at_10"]


# conan evaluate --board mteb:NAME


def hub_copy(folder, configs, split="test"):
    """A data set as a repository of the hub: Parquet files and their configs."""
    folder.mkdir(parents=True)
    listed = []
    for name, rows in configs.items():
        data = Dataset.from_list(rows)
        data = data.cast_column("image", Image()) if "image" in data.column_names else data
        data.to_parquet(folder / f"{name}.parquet")
        listed.append({"config_name": name, "data_files": [{"split": split, "path": f"{name}.parquet"}]})
    (folder / "README.md").write_text("---\n" + yaml.safe_dump({"configs": listed}) + "---\n")


def retrieval(prefix, images=False):
    """Configs of a retrieval task in mteb's layout."""
    corpus = [{"id": f"d{n}", **({"image": {"bytes": png(seed=n)}} if images else {"text": f"{prefix} {n}"})} for n in range(12)]
    return {
        "corpus": corpus,
        "queries": [{"id": f"q{n}", "text": f"find {prefix} {n}"} for n in range(4)],
        "qrels": [{"query-id": f"q{n}", "corpus-id": f"d{n}", "score": 1} for n in range(4)],
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """All tasks of BuiltBench(eng), and one of page images, in their own layouts."""
    root = tmp_path_factory.mktemp("hub")
    clusters = [{"sentences": [f"{kind} {n}" for kind in ("pump", "door") for n in range(6)], "labels": ["p"] * 6 + ["d"] * 6}]
    for name in ("p2p", "s2s"):
        hub_copy(root / f"mehrzad-shahin/BuiltBench-clustering-{name}", {"default": clusters})
    hub_copy(root / "mteb/BuiltBenchRetrieval", retrieval("pump"))
    pools = [{"query-id": f"q{n}", "corpus-ids": [f"d{m}" for m in range(n, n + 6)]} for n in range(4)]
    hub_copy(root / "mteb/BuiltBenchReranking", {**retrieval("door"), "top_ranked": pools})
    hub_copy(root / "whybe-choi/kovidore-v2-hr-mteb", retrieval("page", images=True))
    return root


def board(base, name, out, *options):
    return main(
        ["evaluate", "--folder", str(base), "--board", f"mteb:{name}", "--out", str(out), "--accelerator", "cpu", *options]
    )


def test_a_benchmark_is_evaluated_by_its_name(base, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert board(base, "BuiltBench(eng)", out, "--data", str(data)) == 0
    said = capsys.readouterr()
    assert "embedded 32 items" in said.err  # of 44: the clusters' texts stand in both corpora
    report = json.loads((out / "scores.json").read_text())
    found = report["tasks"]
    assert [task["group"] for task in found.values()] == ["Clustering", "Clustering", "Retrieval", "Reranking"]
    headlines = {name: task["scores"][task["headline"]] for name, task in found.items()}
    kinds = {}
    for name, task in found.items():
        kinds.setdefault(task["group"], []).append(headlines[name])
    means = {kind: sum(values) / len(values) for kind, values in kinds.items()}
    wanted = {"Mean(Task)": sum(headlines.values()) / 4, "Mean(TaskType)": sum(means.values()) / 3, **means}
    assert report["boards"] == {"BuiltBench(eng)": pytest.approx(wanted)}
    assert f"| BuiltBench(eng): Mean(TaskType) | {wanted['Mean(TaskType)']:.2f} |" in said.out

    # mteb's own files, through its own reader
    (result,) = mteb.ResultCache(out / "mteb").load_results(tasks=["BuiltBenchRetrieval"]).model_results
    (theirs,) = result.task_results
    assert 100 * theirs.get_score() == pytest.approx(headlines["BuiltBenchRetrieval"])

    # again: nothing is embedded or evaluated
    kept = {path: path.stat().st_mtime_ns for path in (out / "mteb").rglob("*.json")}
    assert board(base, "BuiltBench(eng)", out, "--data", str(data)) == 0
    assert "embedded 0 items, 32 were in" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (out / "mteb").rglob("*.json")} == kept
    assert json.loads((out / "scores.json").read_text()) == report


def test_pages_of_one_task_and_other_instructions(base, data, tmp_path, capsys, embed):
    words = ["KoViDoRe(v2)", tmp_path / "out", "--cells", '["KoVidore2HrRetrieval"]', "--data", str(data)]
    assert board(base, *words) == 0
    assert "embedded 16 items" in capsys.readouterr().err
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert "boards" not in found  # a part of a benchmark has none of its means
    queries = embed(*(Item((f"find page {n}",)) for n in range(4)), side="query")
    pages = embed(*(Item((Media("image", png(seed=n), "a.png"),)) for n in range(12)))
    ranks = [sorted(range(12), key=lambda page, row=row: -float(row @ pages[page])).index(n) for n, row in enumerate(queries)]
    gains = [1 / np.log2(rank + 2) if rank < 10 else 0 for rank in ranks]
    task = found["tasks"]["KoVidore2HrRetrieval"]
    assert task["scores"]["ndcg_at_10"] == pytest.approx(100 * np.mean(gains), abs=1e-3)
    assert task["contract"]["query_instruction"] is None
    assert board(base, *words, "--prompts", '{"DocumentUnderstanding-query": "Find the page."}') == 1
    assert "KoVidore2HrRetrieval was scored under another contract: query_instruction differ" in capsys.readouterr().err


def test_a_copy_that_has_changed_is_other_data(base, data, tmp_path, capsys):
    """`datasets` knows prepared copies by their names alone."""
    copied, out = tmp_path / "hub", tmp_path / "out"
    shutil.copytree(data / "mteb/BuiltBenchRetrieval", copied / "mteb/BuiltBenchRetrieval")
    assert board(base, "BuiltBenchRetrieval", out, "--data", str(copied)) == 0
    assert "embedded 16 items" in capsys.readouterr().err
    shutil.rmtree(copied)
    more = retrieval("pump")
    more["corpus"] += [{"id": f"e{n}", "text": f"more {n}"} for n in range(5)]
    hub_copy(copied / "mteb/BuiltBenchRetrieval", more)
    assert board(base, "BuiltBenchRetrieval", out, "--data", str(copied)) == 1
    assert "was scored under another contract: revision differ" in capsys.readouterr().err
    assert board(base, "BuiltBenchRetrieval", tmp_path / "other", "--data", str(copied), "--cache", str(out / "cache")) == 0
    assert "embedded 5 items, 16 were in" in capsys.readouterr().err


def test_a_missing_folder_is_told_before_the_data_is_asked_for(tmp_path, capsys):
    words = ["evaluate", "--folder", str(tmp_path / "none"), "--board", "mteb:NFCorpus", "--data", str(tmp_path)]
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    assert f"{tmp_path / 'none'}" in (said := capsys.readouterr().err)
    assert "NFCorpus" not in said


def test_what_is_missing_is_one_error_before_anything_is_embedded(base, data, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert board(base, "KoViDoRe(v2)", out, "--data", str(data)) == 1
    said = capsys.readouterr().err
    assert "no copy of the data set below --data, for: KoVidore2CybersecurityRetrieval (" in said
    assert said.count("KoVidore2") == 3
    monkeypatch.setattr(mteb_data.HfApi, "dataset_info", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.setattr(mteb_data, "codec_fault", lambda: "torchcodec is not there, for")
    assert board(base, "MAEB(v1)", out) == 1
    said = capsys.readouterr().err
    assert "torchcodec is not there, for: ClothoT2ARetrieval, " in said
    assert (
        "the hub does not answer and the data set is not in its cache, give --data, for: ClothoT2ARetrieval (mteb/Clotho), "
        in said
    )
    assert said.count("FSD2019Kaggle") == 2
    assert board(base, "SciFct", out) == 1
    assert "knows no benchmark or task 'SciFct'. Did you mean SciFact" in capsys.readouterr().err
    assert board(base, "KoViDoRe(v2)", out, "--cells", '["HrRetrieval"]') == 1
    assert "KoViDoRe(v2) has the tasks KoVidore2" in capsys.readouterr().err
    assert not out.exists()


def test_without_torchcodec_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    assert mteb_data.codec_fault().startswith("torchcodec is not there")


def test_without_mteb_the_extra_is_named(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lightning_conan.extras.importlib.util.find_spec", lambda name: None)
    assert board(base, "SciFact", tmp_path / "out") == 1
    assert (
        "Board mteb:SciFact needs mteb, which is not installed: pip install 'lightning-conan[boards]'" in capsys.readouterr().err
    )


def test_commands_and_python_of_the_page(base, exported, data, tmp_path, monkeypatch, capsys):
    """As test_readme.py runs the other pages'; the hub's data is not there, which is said."""
    page = (Path(__file__).parents[3] / "docs" / "mteb.md").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    for link, folder in (("runs/demo/final", base), ("exported", exported), ("hub", data)):
        (tmp_path / link).symlink_to(folder)
    monkeypatch.setattr(mteb_data.HfApi, "dataset_info", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no network")))
    maeb, pages = (line for line in page.splitlines() if line.startswith("conan "))
    assert main(shlex.split(maeb)[1:]) == 1
    assert "(mteb/Clotho)" in capsys.readouterr().err
    assert main([*shlex.split(pages)[1:], "--accelerator", "cpu"]) == 0
    assert (tmp_path / "pages" / "scores.md").is_file()
    for code in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        scope = {"task": task_of("icons")}
        exec(code.replace('mteb.get_task("SciFact")', "task, cache=None"), scope)
        assert 0 < scope["result"].task_results[0].get_score() < 1


@pytest.mark.parametrize(("name", "count"), [("MAEB(v1)", 30), ("MVEB(v1)", 23), ("MIEB(lite)", 51), ("ViDoRe(v3)", 10)])
def test_the_boards_of_the_documentation_exist(name, count):
    assert len(find_board(name).tasks) == count
