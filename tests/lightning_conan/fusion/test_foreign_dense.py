"""Dense checkpoints of others, fused: sharded, tied or not, in each layout, with another vocabulary."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from foreign import CLASSES, HEAD, TABLE, assert_sums, dense, named, shared_rows
from mergekit.scripts.merge_raw_pytorch import main as mergekit_pytorch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from upstream import write_qwen3_vl

from lightning_conan.cli.main import main
from lightning_conan.embedder import ProcessorConfig, graft_folder, load_processor
from lightning_conan.embedder.checkpoint import open_foreign, open_tensors
from lightning_conan.fusion import Recipe, fuse_folders

SMALL = ("tokenizer.json", "tokenizer_config.json", "config.json")
ALPHA = 0.6


def write_dense(upstream, out, kind="head", seed=3, size=0.02, dtype=None, **options):
    """A checkpoint that somebody trained fully from ``upstream``; returns its tensors by our names."""
    model = CLASSES[kind].from_pretrained(upstream, **({"dtype": dtype} if dtype else {}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (size * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
    model.save_pretrained(out, **options)
    for name in SMALL[:2]:
        shutil.copy(upstream / name, out / name)
    return named(model)


def fuse(base, source, out, **options):
    report = fuse_folders(Recipe(base, {"other": source}, {"other": ALPHA}, owner="other", **options), out)
    return load_file(out / "model.safetensors"), report


def check(published, base, source, wanted, out, layout):
    """Fuses one checkpoint, and compares with a plain weighted sum."""
    found, report = fuse(base, source, out)
    start = {name: tensor for name, tensor in dense(published).items() if name in found and name in wanted}
    assert_sums(found, start, {"other": wanted}, {"other": ALPHA}, load_processor(base))
    told = report.foreign["other"]
    assert (told.kind, told.layout, told.refused) == ("dense", layout, {})
    before = load_file(base / "model.safetensors")
    audio = [name for name in found if name.startswith("audio_")]
    assert all(torch.equal(found[name], before[name]) for name in audio)
    assert told.kept["audio_encoder"] + told.kept["audio_projector"] == len(audio)
    return told


def rename(folder, change):
    (path,) = folder.glob("*.safetensors")
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("tie", ["tied", "untied"])
def test_a_sharded_checkpoint(published, bases, tmp_path, tie):
    wanted = write_dense(published / tie, tmp_path / "other", max_shard_size="100KB")
    assert len(list((tmp_path / "other").glob("*.safetensors"))) > 2
    told = check(published / tie, bases[tie], tmp_path / "other", wanted, tmp_path / "out", "head class")
    assert 0 < max(told.distances.values()) < 0.5


def test_one_of_the_base_class(published, bases, tmp_path):
    """As embedders are published: without an output head, which then is the base's."""
    wanted = write_dense(published / "untied", tmp_path / "other", "base")
    told = check(published / "untied", bases["untied"], tmp_path / "other", wanted, tmp_path / "out", "base class")
    assert told.kept["lm_head"] == 1
    found, before = (load_file(folder / "model.safetensors")[HEAD] for folder in (tmp_path / "out", bases["untied"]))
    assert torch.equal(found, before)


def test_one_in_the_layout_of_transformers_4(published, bases, tmp_path):
    wanted = write_dense(published / "tied", tmp_path / "other")
    rename(tmp_path / "other", lambda name: name.replace("model.language_model.", "model.").replace("model.visual.", "visual."))
    check(published / "tied", bases["tied"], tmp_path / "other", wanted, tmp_path / "out", "transformers 4.x")


def test_a_tied_checkpoint_beside_an_untied_base(published, bases, tmp_path):
    """Its output head is its token embeddings."""
    wanted = write_dense(published / "tied", tmp_path / "other")
    start = dense(published / "untied")
    model = CLASSES["head"].from_pretrained(published / "untied")
    with torch.no_grad():  # near the untied base, whose weights differ from the tied one's
        for name, parameter in model.named_parameters():
            if name != HEAD:
                parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        model.lm_head.weight.copy_(model.get_input_embeddings().weight)
    model.config.tie_word_embeddings = True
    model.save_pretrained(tmp_path / "other")
    path = tmp_path / "other" / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if name != HEAD}, path, metadata={"format": "pt"})
    wanted = named(model)
    found, report = fuse(bases["untied"], tmp_path / "other", tmp_path / "out")
    assert_sums(found, start, {"other": wanted}, {"other": ALPHA}, load_processor(bases["untied"]))
    assert not report.foreign["other"].ignored


def test_an_untied_copy_of_a_tied_head_is_ignored_and_another_refused(published, bases, tmp_path):
    wanted = write_dense(published / "tied", tmp_path / "other")
    path = tmp_path / "other" / "model.safetensors"
    tensors = load_file(path)
    tensors[HEAD] = tensors["model.language_model.embed_tokens.weight"].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    told = check(published / "tied", bases["tied"], tmp_path / "other", wanted, tmp_path / "out", "head class")
    assert told.ignored == {HEAD: "equals the token embeddings, which the base's output head shares"}
    save_file(tensors | {HEAD: tensors[HEAD] + 1}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"'lm_head\.weight', which is an output head that differs from the token embeddings"):
        fuse(bases["tied"], tmp_path / "other", tmp_path / "again")


def test_bfloat16_beside_bfloat16(published, tmp_path):
    """Differences are formed in float32, and the result is rounded once."""
    write_qwen3_vl(tmp_path / "half", dtype=torch.bfloat16)
    base = tmp_path / "base"
    graft_folder(str(tmp_path / "half"), str(published / "omni"), base, ProcessorConfig(), hidden=32, golden=False)
    wanted = write_dense(tmp_path / "half", tmp_path / "other", dtype=torch.bfloat16)
    found, _ = fuse(base, tmp_path / "other", tmp_path / "out", dtype="float32")
    start = {name: tensor.float() for name, tensor in load_file(base / "model.safetensors").items()}
    name = "backbone.language_model.layers.1.mlp.up_proj.weight"
    assert wanted[name].dtype == torch.bfloat16
    torch.testing.assert_close(found[name], start[name] + ALPHA * (wanted[name].float() - start[name]), atol=1e-6, rtol=0)


def test_a_coarser_checkpoint_is_refused(published, bases, tmp_path):
    write_dense(published / "tied", tmp_path / "other", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"must be at least as precise as the base's torch\.float32, it is torch\.bfloat16"):
        fuse(bases["tied"], tmp_path / "other", tmp_path / "out")


def test_rows_of_another_vocabulary_are_matched_by_token(published, bases, tmp_path):
    """Two tokens of its own, one of ours in another place, and a longer table."""
    write_dense(published / "tied", tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "other")
    tokenizer.add_tokens(["<theirs>", "<|AUDIO|>", "<more>"])
    tokenizer.save_pretrained(tmp_path / "other")
    path, name = tmp_path / "other" / "model.safetensors", "model.language_model.embed_tokens.weight"
    tensors = load_file(path)
    tensors[name] = torch.cat([tensors[name], torch.randn(9, 64)])
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["text_config"]["vocab_size"] += 9
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    found, report = fuse(bases["tied"], tmp_path / "other", tmp_path / "out")
    base, processor = load_file(bases["tied"] / "model.safetensors")[TABLE], load_processor(bases["tied"])
    rows, ours = shared_rows(processor), processor.tokenizer.get_vocab()
    wanted = base[rows] + ALPHA * (tensors[name][rows] - base[rows])
    torch.testing.assert_close(found[TABLE][rows], wanted, atol=1e-6, rtol=0)
    assert report.foreign["other"].dropped_tokens == ["<more>", "<theirs>"]
    theirs = tensors[name][tokenizer.get_vocab()["<|AUDIO|>"]]
    assert torch.allclose(found[TABLE][ours["<|AUDIO|>"]], theirs, atol=1e-6), "rows of audio are the owner's"
    emb = ours["<|emb|>"]
    assert torch.equal(found[TABLE][emb], base[emb]), "a token that only the base has"


@pytest.mark.parametrize("inner", ["", "0_Transformer"])
def test_a_sentence_transformers_folder(published, bases, tmp_path, inner):
    wanted = write_dense(published / "tied", tmp_path / "other" / inner)
    kind = "sentence_transformers.models"
    modules = [{"path": inner, "type": f"{kind}.Transformer"}, {"path": "1_Pooling", "type": f"{kind}.Pooling"}]
    modules.append({"path": "2_Normalize", "type": f"{kind}.Normalize"})
    (tmp_path / "other" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "other" / "1_Pooling").mkdir()
    (tmp_path / "other" / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}))
    told = check(published / "tied", bases["tied"], tmp_path / "other", wanted, tmp_path / "out", "head class")
    assert not told.notes
    graft_folder(str(tmp_path / "other"), str(published / "omni"), tmp_path / "base", ProcessorConfig(), hidden=32, golden=False)
    found = load_file(tmp_path / "base" / "model.safetensors")
    assert all(torch.equal(found[name], wanted[name]) for name in found if name.startswith("backbone.visual"))


def broken(change):
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return apply


def configured(part, **changes):
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config[part] |= changes
        (folder / "config.json").write_text(json.dumps(config))

    return apply


UP = "model.language_model.layers.1.mlp.up_proj.weight"
ODD = {
    "missing": (broken(lambda tensors: tensors.pop(UP)), r"layers\.1\.mlp\.up_proj\.weight', which the source does not have"),
    "unknown": (
        broken(lambda tensors: tensors.update({"extra.weight": torch.ones(1)})),
        r"'extra\.weight', which names no tensor",
    ),
    "shape": (
        broken(lambda tensors: tensors.update({UP: torch.ones(3, 64)})),
        r"up_proj\.weight', which has the shape \[3, 64\]",
    ),
    "positions": (
        configured("text_config", rms_norm_eps=0.5),
        r"text_config\.rms_norm_eps of .* must be 1e-06 as of .*, got 0\.5: it is another architecture",
    ),
    "deepstack": (configured("vision_config", deepstack_visual_indexes=[1]), r"deepstack_visual_indexes of .* must be \[0\]"),
    "tokenizer": (lambda folder: [(folder / name).unlink() for name in SMALL[:2]], "must have its tokenizer beside its weights"),
    "pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        r"holds pytorch_model\.bin, and weights must be safetensors",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_what_does_not_fit_is_refused_by_name(published, bases, tmp_path, case):
    write_dense(published / "tied", tmp_path / "other")
    change, message = ODD[case]
    change(tmp_path / "other")
    with pytest.raises(ValueError, match=message):
        fuse(bases["tied"], tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_model_is_refused(published, bases, tmp_path):
    with pytest.raises(ValueError, match=r"must be of the family of .*, 'qwen3_vl', it is 'qwen3_omni_moe'"):
        open_foreign(published / "omni", bases["tied"], open_tensors(bases["tied"]))


def test_another_base_is_refused_or_trusted_with_a_note(published, bases, tmp_path, capsys):
    other = write_qwen3_vl(tmp_path / "other", seed=1)
    words = ["fuse", "--recipe.base", str(bases["tied"]), "--recipe.specialists", json.dumps({"other": str(other)})]
    words += ["--recipe.alphas", '{"other": 0.5}', "--recipe.owner", "other", "--out", str(tmp_path / "out")]
    assert main(words) == 1
    assert "language model has the distance 1.41 to it" in capsys.readouterr().err
    assert main([*words, "--trust_base", "true"]) == 0
    assert "It is far from the base, and was taken because of trust_base." in capsys.readouterr().err
    noted = json.loads((tmp_path / "out" / "conan.json").read_text())["notes"]["foreign"]["other"]
    assert noted["trusted"]
    assert noted["distances"]["language model"] == pytest.approx(2**0.5, abs=0.01)


def test_a_dry_run_lists_each_key_and_what_is_refused(published, bases, tmp_path, capsys):
    write_dense(published / "tied", tmp_path / "other")
    words = ["fuse", "--recipe.base", str(bases["tied"]), "--recipe.specialists", json.dumps({"other": str(tmp_path / "other")})]
    words += ["--recipe.alphas", '{"other": 0.5}', "--recipe.owner", "other", "--out", str(tmp_path / "out"), "--dry", "true"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "head class: 74 mapped, 0 ignored, 0 refused" in told
    assert f"{UP} -> backbone.language_model.layers.1.mlp.up_proj.weight" in told
    broken(lambda tensors: tensors.update({"extra.weight": torch.ones(1)}))(tmp_path / "other")
    assert main(words) == 1
    shown = capsys.readouterr()
    assert "other:   extra.weight is refused: it names no tensor of the base" in shown.out
    assert "1 do not, such as 'extra.weight'" in shown.err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_the_base_is_told(published, bases, tmp_path, capsys):
    write_dense(published / "tied", tmp_path / "other")
    folders = {"same": str(published / "tied"), "other": str(tmp_path / "other")}
    words = ["fuse", "--recipe.base", str(bases["tied"]), "--recipe.specialists", json.dumps(folders)]
    words += ["--recipe.alphas", '{"same": 0.5, "other": 0.5}', "--recipe.owner", "other", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    told = capsys.readouterr().err
    assert "same: its task vector is 0, so it adds nothing" in told
    assert "other: its task vector" not in told


def test_a_merge_that_mergekit_wrote(published, bases, tmp_path):
    """By its own writer, sharded with an index."""
    models = [write_dense(published / "tied", tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two"))]
    entries = [{"model": str(tmp_path / name / "model.safetensors"), "parameters": {"weight": 0.5}} for name in ("one", "two")]
    config = {"merge_method": "linear", "models": entries, "dtype": "float32"}
    (tmp_path / "merge.yml").write_text(yaml.safe_dump(config))
    words = [str(tmp_path / "merge.yml"), str(tmp_path / "out"), "--out-shard-size", "60K"]
    result = CliRunner().invoke(mergekit_pytorch, words)
    assert result.exit_code == 0, result.output
    for name in SMALL:
        shutil.copy(tmp_path / "one" / name, tmp_path / "out" / name)
    wanted = {name: (models[0][name] + models[1][name]) / 2 for name in models[0]}
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    check(published / "tied", bases["tied"], tmp_path / "out", wanted, tmp_path / "fused", "head class")
