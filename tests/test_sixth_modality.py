"""The whole line with a modality that the package does not know: registered by one file of the tests (``depth.py``)."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import Dinov2Model

from callbacks import FrozenBackbone
from lightning_conan.cli.common.pair_sets import read_sets
from lightning_conan.cli.main import main
from lightning_conan.drift import measure_drift
from lightning_conan.embedder import (
    export_folder,
    extend_folder,
    load_folder,
    pack,
    read_provenance,
    register_modality,
    save_folder,
)
from lightning_conan.embedder.modalities import spec_of, unregister_modality
from lightning_conan.embedder.modalities.registry import VARIABLE, load_named
from lightning_conan.fusion import Recipe, fuse_folders
from lightning_conan.items import MODALITIES, Item, Media
from lightning_conan.stages import ProjectorRecovery, Rehearsal, Specialist
from lightning_conan.training import Lora, Training
from runs import QUICK, data, trainer

ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
PLACES = [(row, column) for row in range(3) for column in range(3)]
OWN = ("depth_encoder.", "depth_projector.")
ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "modalities.md").read_text()
BLOCKS = {language: re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL) for language in ("python", "yaml")}


@pytest.fixture(scope="module")
def depth():
    """The module that registers depth maps, imported as every process does that ``CONAN_MODALITIES`` reaches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "depth")
        load_named()
        import depth

        yield depth
    unregister_modality("depth")
    assert "depth" not in MODALITIES


@pytest.fixture(scope="module")
def media(depth, tmp_path_factory):
    """Manifests of nine scenes, each a near bump in one of nine places, drawn three times; the last ones are held out."""
    root, rng = tmp_path_factory.mktemp("depth"), random.Random(0)
    for name, count in (("train", 3), ("held_out", 1)):
        lines = []
        for number, (row, column) in enumerate(PLACES * count):
            metres = torch.full((48, 48), 4 + rng.random())
            metres[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 0.5 + 0.2 * rng.random()
            (root / f"{name}{number}.tiff").write_bytes(depth.tiff(metres))
            pair = {"key": f"{name}{number}", "task": "places", "modality": "depth"}
            sides = {"query": {"text": f"{ROWS[row]} {COLUMNS[column]}"}, "target": {"depth": f"{name}{number}.tiff"}}
            lines.append(json.dumps(pair | sides))
        (root / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def line(depth, media, base, world, tmp_path_factory):
    """Packed sets, an extended base, specialists of depth and of audio, and their fusion."""
    root = tmp_path_factory.mktemp("line")
    for name in ("train", "held_out"):
        assert main(["pack", str(media / f"{name}.jsonl"), "--out", str(root / name)]) == 0
    (root / "runs").mkdir()
    (root / "runs" / "base").symlink_to(base)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        exec(BLOCKS["python"][1])
    (root / "runs" / "base_depth").rename(root / "base")
    fast = Training(lr=3e-3, warmup_steps=2, token_budget=4000)
    for name, place, steps, settings in (("depth", root / "train", 12, fast), ("audio", world / "audio", 3, QUICK)):
        stage = Specialist(root / "base", name, settings, Lora(rank=4, alpha=8), train_fully=spec_of(name).owned)
        trainer(root / f"run-{name}", steps).fit(stage, data(place.parent, place.name))
        stage.write_folder(root / name)
    fuse_folders(Recipe(root / "base", {name: root / name for name in ("audio", "depth")}), root / "fused")
    return root


def tensors(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def recall(folder, packed):
    model = load_folder(folder)[0]
    sets = read_sets({"depth": packed}, folder, 9)
    with torch.no_grad():
        return sets["depth"].recall(*sets["depth"].embed(model))


def test_the_page_shows_the_file_and_the_default_owners(depth):
    assert BLOCKS["python"][0] == (ROOT / "tests" / "depth.py").read_text()
    (block,) = BLOCKS["yaml"]
    shown = yaml.safe_load(block)["recipe"]
    folders = {name: Path(folder) for name, folder in shown["specialists"].items()}
    told = Recipe(Path(shown["base"]), folders, owners={name: tuple(owned) for name, owned in shown["owners"].items()})
    assert told.owning == Recipe(told.base, told.specialists).owning == Recipe(told.base, told.specialists, owner="audio").owning


def test_a_base_has_a_modality_once_and_only_one_with_an_encoder(line, tmp_path):
    for name, message in (("depth", "must not have 'depth' yet"), ("image", "has an EncoderTower, got 'image'")):
        with pytest.raises(ValueError, match=message):
            extend_folder(line / "base", tmp_path / "out", name, {})


def test_an_encoder_comes_with_its_weights(line, base, depth, tmp_path):
    """From a checkpoint of transformers, whose names on disk differ from those in memory; everything else is as without."""
    torch.manual_seed(1)
    encoder = Dinov2Model(depth.ENCODER)
    encoder.save_pretrained(tmp_path / "dinov2")
    extend_folder(base, tmp_path / "out", "depth", tmp_path / "dinov2", hidden=32)
    found, drawn = tensors(tmp_path / "out"), tensors(line / "base")
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(found[f"{OWN[0]}{name}"], tensor)
    assert all(torch.equal(found[name], drawn[name]) for name in found if not name.startswith(OWN[0]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "audio"}, "must be a new lower-case word"),
        ({"name": "Depth 2"}, "must be a new lower-case word"),
        ({"name": "other", "tokens": {"other": "<|AUDIO|>"}}, "is that of audio"),
        ({"name": "other", "tokens": {"end": "<|o|>"}}, "'end' is that of the template"),
        ({"name": "other", "suffixes": ("png",), "tokens": {"o": "<|o|>"}}, "'png' is that of image"),
        ({"name": "other", "tokens": {"o": "<|o|>"}, "tower": None}, "must have a tower"),
        ({"name": "other", "tokens": {"o": "<|o|>"}, "placeholder": ""}, "must have a placeholder"),
    ],
)
def test_what_cannot_be_registered_is_refused(depth, fields, message):
    before = list(MODALITIES)
    spec = depth.Depth()
    for name, value in {"suffixes": (), "tokens": {"o": "<|o|>"}, **fields}.items():
        setattr(spec, name, value)
    with pytest.raises(ValueError, match=message):
        register_modality(spec)
    assert before == MODALITIES


def test_the_specialist_trains_its_own_modules_and_leaves_those_of_audio_and_vision_alone(line):
    found, before = tensors(line / "depth"), tensors(line / "base")
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert all(any(name.startswith(own) for name in changed) for own in OWN)
    assert any(name.startswith("backbone.language_model.") for name in changed)
    assert not any(name.startswith(("audio_", "backbone.visual.")) for name in changed)


def test_a_batch_of_every_modality_embeds_as_each_alone(line, items, depth):
    model, processor, _ = load_folder(line / "depth")
    maps = [Item((Media("depth", depth.tiff(torch.rand(20, 30) * size), "a.tiff"), "and")) for size in (2, 9)]
    encoded = [processor(item) for item in [*items.values(), *maps]]
    encoded += [processor(Item((*items["audio"].parts, *maps[0].parts, *items["image"].parts)))]
    with torch.no_grad():
        together = torch.cat([model(chunk) for chunk in pack(encoded, 100_000)])
        rows = [row for chunk in pack(encoded, 100_000) for row in chunk.rows]
        for place, row in enumerate(rows):
            assert torch.allclose(model.embed([encoded[row]])[0], together[place], atol=1e-5)
        near, far = model.embed(encoded[-3:-1])
    assert float((near - far).norm()) > 1e-3, "depth is seen"


def test_both_owners_modules_and_token_rows_are_copied_and_the_rest_is_fused(line, tmp_path):
    """Bit for bit, each from its own specialist, all of whose tensors moved."""
    for seed, name in enumerate(("audio", "depth")):
        model, processor, provenance = load_folder(line / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        save_folder(tmp_path / name, model, processor, provenance)
    fuse_folders(Recipe(line / "base", {name: tmp_path / name for name in ("audio", "depth")}), tmp_path / "fused")
    folders = {"base": tensors(line / "base"), **{name: tensors(tmp_path / name) for name in ("audio", "depth", "fused")}}
    ids = load_folder(line / "fused")[1].ids
    table = "backbone.language_model.embed_tokens.weight"
    for owner in ("audio", "depth"):
        names = [name for name in folders["fused"] if name.startswith((f"{owner}_encoder.", f"{owner}_projector."))]
        assert names
        assert all(torch.equal(folders["fused"][name], folders[owner][name]) for name in names)
        rows = [ids[token] for token in spec_of(owner).tokens]
        assert torch.equal(folders["fused"][table][rows], folders[owner][table][rows])
    name = "backbone.language_model.layers.0.mlp.up_proj.weight"
    base, audio, deep = (folders[part][name] for part in ("base", "audio", "depth"))
    assert torch.allclose(folders["fused"][name], base + 0.5 * (audio - base) + 0.5 * (deep - base), atol=1e-6)
    assert read_provenance(line / "fused").notes["owner"] == "audio, depth"


def test_an_owner_that_is_no_specialist_is_refused(line):
    recipe = Recipe(line / "base", {"depth": line / "depth"})
    with pytest.raises(ValueError, match="owner must be among the specialists"):
        recipe.check()
    alone = Recipe(line / "base", {"depth": line / "depth"}, owner="depth")
    assert alone.owning == {"depth": ("audio_encoder.", "audio_projector.", *OWN)}
    assert alone.check()


def test_drift_and_recovery_of_its_projector(line, tmp_path):
    """With the encoder's rows cached: it runs once for each of the maps, and only the projector moves."""
    encoded = []
    stage = ProjectorRecovery(line / "fused", QUICK, projectors=("depth_projector.",), constants=tmp_path / "constants")
    assert (stage.modality, stage.encoded) == ("depth", {"depth"})
    fit = trainer(tmp_path / "run", 8, FrozenBackbone(("depth_projector.",)))
    load = stage.load_model

    def watched(fitting):
        load(fitting)
        encode = stage.embedder.encode_frames
        stage.embedder.encode_frames = lambda tower, inputs: encoded.append(len(inputs)) or encode(tower, inputs)

    stage.load_model = watched
    fit.fit(stage, data(line, "train"))
    assert 24 <= sum(encoded) <= 27, "of 48 that passed"
    stage.write_folder(tmp_path / "recovered")
    found, before = tensors(tmp_path / "recovered"), tensors(line / "fused")
    assert {name.split(".")[0] for name in found if not torch.equal(found[name], before[name])} == {"depth_projector"}
    sets = read_sets({"depth": line / "held_out"}, line / "fused", 9)
    states = {"fused": line / "fused", "recovered": tmp_path / "recovered"}
    report = measure_drift({"depth": line / "depth"}, states, sets)
    assert report.verdicts["depth"].specialist == pytest.approx(recall(line / "depth", line / "held_out"))
    assert report.verdicts["depth"].fused_projector == report.verdicts["depth"].specialist, "the projector was copied"
    assert all(0 < cosine < 0.9999 for cosine in report.layers["depth"]["fused"][1:])
    assert report.layers["depth"]["fused"][0] == pytest.approx(1.0, abs=1e-4)


def test_recovery_of_both_projectors_caches_both_encoders(line, tmp_path):
    both = ("audio_projector.", "depth_projector.")
    stage = ProjectorRecovery(line / "fused", projectors=both, constants=tmp_path)
    assert (stage.modality, stage.encoded) == (None, {"audio", "depth"})
    assert Rehearsal(line / "fused", train_projector=True).trainable_prefixes == both


def test_export_embed_and_search(line, media, depth, tmp_path, capsys):
    """In sentence-transformers and on the command line a caption finds the map whose vector is nearest."""
    from sentence_transformers import SentenceTransformer

    export_folder(line / "depth", tmp_path / "exported")
    exported = SentenceTransformer(str(tmp_path / "exported"), device="cpu", trust_remote_code=True)
    model, processor, _ = load_folder(line / "depth", verify=True)
    places = [media / f"held_out{number}.tiff" for number in range(9)]
    with torch.no_grad():
        wanted = model.embed([processor(Item((Media("depth", place, place.name),))) for place in places])
    assert torch.allclose(torch.from_numpy(exported.encode([str(place) for place in places])), wanted, atol=1e-5)
    in_memory = exported.encode([{"depth": processor.decode(Media("depth", places[0], "a.tiff"))}])
    assert torch.allclose(torch.from_numpy(in_memory), wanted[:1], atol=1e-5)
    words = ["--folder", str(line / "depth"), "--accelerator", "cpu", "--precision", "float32"]
    (tmp_path / "maps").mkdir()
    for place in places:
        (tmp_path / "maps" / place.name).write_bytes(place.read_bytes())
    assert main(["embed", *words, "--source", str(tmp_path / "maps"), "--out", str(tmp_path / "index")]) == 0
    capsys.readouterr()
    query = ["--text", "top left", "--k", "9", "--format", "jsonl"]
    assert main(["search", "--folder", str(line / "depth"), "--index", str(tmp_path / "index"), *query]) == 0
    (answer,) = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    with torch.no_grad():
        asked = model.embed([processor(Item(("top left",)))])
    cosines = F.cosine_similarity(asked, wanted).tolist()
    expected = {place.name: cosine for place, cosine in zip(places, cosines, strict=True)}
    assert {hit["key"]: hit["score"] for hit in answer["hits"]} == pytest.approx(expected, abs=1e-5)


def test_a_model_without_it_refuses_its_items_and_a_process_without_it_its_folder(line, tiny, depth):
    item = Item((Media("depth", depth.tiff(torch.ones(9, 9)), "a.tiff"),))
    with pytest.raises(ValueError, match="must know the tokens of depth"):
        tiny[1](item)
    unregister_modality("depth")
    try:
        with pytest.raises(ValueError, match=r"modality 'depth', which is not registered here.*CONAN_MODALITIES"):
            load_folder(line / "depth")
    finally:
        register_modality(depth.Depth())
