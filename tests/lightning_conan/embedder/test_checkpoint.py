import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_conan.embedder import OmniProcessor, Provenance, load_folder, save_folder, tiny_embedder
from lightning_conan.embedder.checkpoint import check_replaceable, embeds_as, file_hash, record_golden, whole_folder
from lightning_conan.embedder.checkpoint.folder import check_folder


@pytest.fixture
def folder(base, tmp_path):
    return shutil.copytree(base, tmp_path / "copy")


def rewrite(folder, change):
    """Changes the tensors and makes the hashes fit again, so that only the tensors can be what is refused."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    record = json.loads((folder / "conan.json").read_text())
    record["files"]["model.safetensors"] = file_hash(path)
    (folder / "conan.json").write_text(json.dumps(record))


def test_what_was_saved_comes_back(tiny, folder, encoded):
    model, processor, provenance = load_folder(folder)
    items = list(encoded.values())
    with torch.no_grad():
        assert torch.equal(model.embed(items), tiny[0].embed(items))
    assert processor.config == tiny[1].config
    assert provenance.state == "base"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("audio_projector.linear_1.bias"), r"1 missing, such as 'audio_projector\.linear_1\.bias'"),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), "1 unexpected, such as 'extra'"),
        (lambda tensors: tensors.update({"audio_projector.linear_1.bias": torch.zeros(3)}), "1 of another shape"),
        (lambda tensors: tensors.update({"x.lora_A.weight": torch.zeros(3)}), "adapter was not merged"),
    ],
)
def test_partial_loads_are_refused_by_name(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        load_folder(folder)


def test_a_flipped_byte_is_refused(folder):
    """Neither torch.load nor safetensors would notice (fault 8)."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors differs from its hash"):
        load_folder(folder)


@pytest.mark.parametrize(
    "left",
    ["model.safetensors.index.json", "adapter_config.json", "delta_config.json", "model-00001-of-00002.safetensors"],
)
def test_weights_that_another_folder_left_are_refused(folder, left):
    """As `cp -r new/. old` does: each of the new folder's own files passes, and loading would take the old one's."""
    (folder / left).write_text("{}")
    with pytest.raises(ValueError, match=f"must hold the weights that conan.json lists, and holds {left} too"):
        load_folder(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_part_whose_config_names_a_dtype_does_not_overrule_the_folder(tmp_path, dtype):
    """As transformers writes it into each folder that it saves, and grafting takes over."""
    model, processor = tiny_embedder(0)
    other = {torch.float32: torch.bfloat16, torch.bfloat16: torch.float32}[dtype]
    model.config.backbone_config.dtype = model.config.audio_config.dtype = other
    save_folder(tmp_path / "out", model, processor, Provenance("base"))
    loaded = load_folder(tmp_path / "out", dtype=dtype)[0]
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    before = model.state_dict()
    assert all(torch.equal(tensor, before[name].to(dtype)) for name, tensor in loaded.state_dict().items())


def test_a_change_in_any_file_is_refused_by_name(folder):
    """Not in the weights alone: another tokenizer, config or processor gives other vectors from equal weights."""
    files = json.loads((folder / "conan.json").read_text())["files"]
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(files) == there - {"conan.json", "README.md"}
    for name in sorted(files):
        path = folder / name
        data = path.read_bytes()
        path.write_bytes(data + b" ")  # which no reader of JSON would mind
        with pytest.raises(ValueError, match=f"{re.escape(name)} differs from its hash"):
            check_folder(folder)
        path.write_bytes(data)
    check_folder(folder)


def test_fingerprints_are_those_of_the_weights_alone(folder, tiny):
    """A model card, hints or notes make no other parent of what was trained from a folder."""
    before = load_folder(folder)[2].fingerprint
    hinted = OmniProcessor(tiny[1].tokenizer, replace(tiny[1].config, instruction="Find it."))
    save_folder(folder, tiny[0], hinted, Provenance("base", notes={"steps": 7}))
    assert load_folder(folder)[2].fingerprint == before


def test_a_missing_file_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing"):
        load_folder(folder)


def test_other_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not a checkpoint folder"):
        load_folder(tmp_path)
    with pytest.raises(ValueError, match="holds a base model, and a fused one is needed"):
        load_folder(folder, ("fused",))


def test_only_our_own_folders_are_replaced(tiny, folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not a checkpoint folder"):
        save_folder(tmp_path / "mine", *tiny, Provenance("base"))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    save_folder(folder, *tiny, Provenance("base", notes={"again": True}))
    assert load_folder(folder)[2].notes == {"again": True}


def test_a_failed_save_leaves_the_old_folder_and_no_litter(tiny, folder, monkeypatch):
    before = file_hash(folder / "conan.json")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tiny[0], "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        save_folder(folder, *tiny, Provenance("base"))
    assert file_hash(folder / "conan.json") == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_fingerprints_tell_weights_apart(folder):
    before = load_folder(folder)[2].fingerprint
    rewrite(folder, lambda tensors: tensors["audio_projector.linear_1.bias"].add_(1))
    assert load_folder(folder)[2].fingerprint != before


def test_fingerprints_are_of_weights_alone():
    files = {"model-1.safetensors": "aa", "model-2.safetensors": "bb", "tokenizer.json": "cc", "config.json": "dd"}
    found = Provenance("base", files=files).fingerprint
    assert Provenance("fused", files={**files, "tokenizer.json": "ee", "more.txt": "ff"}).fingerprint == found
    assert Provenance("base", files=dict(reversed(files.items()))).fingerprint == found
    assert Provenance("base", files={**files, "model-2.safetensors": "ee"}).fingerprint != found


def test_fingerprints_do_not_see_golden_vectors(folder):
    """Recording them anew, as their own error advises, must not cut a folder off from what was made of it."""
    model, processor, before = load_folder(folder)
    record_golden(folder, model.to(torch.bfloat16), processor)
    after = load_folder(folder)[2]
    assert after.files != before.files
    assert after.fingerprint == before.fingerprint
    other = OmniProcessor(processor.tokenizer, replace(processor.config, instruction="Find it."))
    assert embeds_as(before, processor) == embeds_as(after, processor) != embeds_as(after, other)


def test_what_stood_between_two_renames_comes_back(folder, tiny):
    """A process may end when the old folder has made room and the new one is not there yet."""
    before = file_hash(folder / "conan.json")
    folder.rename(folder.parent / f".{folder.name}.partial-old")
    with pytest.raises(RuntimeError, match="disk"), whole_folder(folder, "base"):
        raise RuntimeError("disk")
    assert file_hash(folder / "conan.json") == before


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(folder, monkeypatch):
    before, rename = file_hash(folder / "conan.json"), Path.rename

    def fail(self, target):
        if ".partial-" in self.name and self.name.rpartition("-")[2].isdigit():
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="what was there before is untouched"), whole_folder(folder, "base") as scratch:
        (scratch / "a").write_text("new")
    assert file_hash(folder / "conan.json") == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_folder_that_another_process_writes_is_left_alone(folder):
    other = folder.parent / f".{folder.name}.partial-{os.getppid()}"
    other.mkdir()
    with whole_folder(folder, "base") as scratch:
        (scratch / "conan.json").write_text("{}")
    assert other.is_dir()


def test_what_a_process_of_the_same_number_left_is_no_obstacle(folder, tiny):
    (folder.parent / f".{folder.name}.partial-{os.getpid()}").mkdir()
    with whole_folder(folder, "base") as scratch:
        (scratch / "conan.json").write_text("{}")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_specialist_of_another_modality_is_not_replaced(tmp_path):
    for name in ("image", "audio"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "conan.json").write_text(Provenance("specialist", name).to_json())
    check_replaceable(tmp_path / "image", "specialist", "image")
    with pytest.raises(ValueError, match=r"hold a specialist model of modality image, but it holds a .* of modality audio"):
        check_replaceable(tmp_path / "audio", "specialist", "image")


def test_a_link_stays_a_link_and_what_it_leads_to_is_written(folder, tiny, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder)
    for _ in range(2):
        save_folder(link, *tiny, Provenance("base"))
        assert link.is_symlink()
        load_folder(folder)
    assert {path.name for path in tmp_path.iterdir()} == {"copy", "link"}


@pytest.mark.parametrize("change", [lambda text: text[:-40], lambda text: "{}", lambda text: text.replace("parents", "parent")])
def test_a_damaged_provenance_is_named(folder, change):
    path = folder / "conan.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=r"conan\.json was cut or changed"):
        load_folder(folder)


@pytest.mark.parametrize(("state", "modality"), [("fused", None), ("specialist", "image"), ("recovered", None)])
def test_a_model_of_another_state_is_not_replaced(folder, tiny, state, modality):
    before = file_hash(folder / "conan.json")
    with pytest.raises(ValueError, match=f"must be free or hold a {state} model(?s:.*) but it holds a base model"):
        save_folder(folder, *tiny, Provenance(state, modality))
    assert file_hash(folder / "conan.json") == before


def test_a_folder_fits_its_hashes_at_every_moment_of_recording(folder, monkeypatch):
    """A process may end there, or another read it."""
    model, processor, _ = load_folder(folder)
    rename, looks = Path.rename, []

    def watched(self, target):
        looks.append(check_folder(folder).state)
        found = rename(self, target)
        looks.append(check_folder(folder).state)
        return found

    monkeypatch.setattr(Path, "rename", watched)
    record_golden(folder, model, processor)
    assert len(looks) >= 6
