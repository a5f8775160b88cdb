import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from callbacks import FolderCheckpoint
from lightning_conan.embedder import Provenance, load_folder, save_folder, tiny_embedder
from lightning_conan.embedder.checkpoint import file_hash
from lightning_conan.embedder.checkpoint.folder import base_of
from lightning_conan.fusion import Recipe, fuse_folders
from lightning_conan.stages import Specialist
from lightning_conan.training import Lora
from runs import QUICK, data, trainer


def specialist(base, world, root, form, modality="audio"):
    module = Specialist(base, modality, QUICK, Lora(rank=4, alpha=8))
    trainer(root / f"work-{form}", 3, FolderCheckpoint(root / form, form)).fit(module, data(world, modality))
    return root / form


@pytest.fixture(scope="module")
def both(base, world, tmp_path_factory):
    """The same training, written dense and as an adapter."""
    root = tmp_path_factory.mktemp("forms")
    return {form: specialist(base, world, root, form) for form in ("dense", "adapter")}


def largest_difference(one, other):
    return max(float((tensor - other[name]).abs().max()) for name, tensor in one.items())


def test_an_adapter_loads_like_its_dense_folder(both, encoded):
    dense, adapter = (load_folder(both[form], verify=True) for form in ("dense", "adapter"))
    assert dense[2].state == adapter[2].state == "specialist"
    assert largest_difference(dense[0].state_dict(), adapter[0].state_dict()) < 1e-6
    items = list(encoded.values())
    with torch.no_grad():
        torch.testing.assert_close(adapter[0].embed(items), dense[0].embed(items), atol=1e-5, rtol=0)


def test_an_adapter_is_small(both):
    size = {form: sum(path.stat().st_size for path in folder.glob("*.safetensors")) for form, folder in both.items()}
    assert size["adapter"] < 0.2 * size["dense"]


def test_peft_reads_it_too(both, base):
    """With the base as transformers loads it, PEFT gives the same weights."""
    from peft import PeftModel
    from transformers import AutoModel

    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), both["adapter"]).merge_and_unload()
    assert largest_difference(load_folder(both["dense"])[0].state_dict(), model.state_dict()) < 1e-6


def test_adapters_fuse_like_dense_folders(both, base, tmp_path):
    for form in both:
        fuse_folders(Recipe(base, {"audio": both[form]}, {"audio": 0.5}), tmp_path / form)
    dense, adapter = (load_folder(tmp_path / form)[0].state_dict() for form in both)
    assert largest_difference(dense, adapter) < 1e-6


def test_an_adapter_of_another_base_is_refused(both, tmp_path):
    copy = shutil.copytree(both["adapter"], tmp_path / "copy")
    other = save_folder(tmp_path / "other", *tiny_embedder(1), Provenance("base"))
    rewrite(copy, "adapter_config.json", lambda fields: fields.update(base_model_name_or_path=str(other)))
    with pytest.raises(ValueError, match="was made on another base than"):
        load_folder(copy)
    rewrite(copy, "adapter_config.json", lambda fields: fields.update(base_model_name_or_path=str(tmp_path / "gone")))
    with pytest.raises(ValueError, match=r"needs its base .*gone, which is not there"):
        load_folder(copy)


def test_folders_may_move_together(both, base, tmp_path):
    """To another machine, say; what lies at the same place there and is another base is passed by."""
    runs = tmp_path / "runs"
    shutil.copytree(base, runs / "demo" / "base")
    copy = shutil.copytree(both["adapter"], runs / "demo" / "audio" / "final")
    gone = tmp_path / "old" / "demo" / "base"
    rewrite(copy, "adapter_config.json", lambda fields: fields.update(base_model_name_or_path=str(gone)))
    save_folder(runs / "demo" / "audio" / "base", *tiny_embedder(1), Provenance("base"))
    assert base_of(copy) == runs / "demo" / "base"
    dense = load_folder(both["dense"])[0].state_dict()
    assert largest_difference(dense, load_folder(copy)[0].state_dict()) < 1e-6

    (runs / "demo" / "base").rename(runs / "demo" / "other")
    with pytest.raises(ValueError, match="needs its base"):
        load_folder(copy)


def rewrite(folder, name, change):
    """Changes a JSON file and makes its hash fit again."""
    fields = json.loads((folder / name).read_text())
    change(fields)
    (folder / name).write_text(json.dumps(fields))
    rehash(folder, name)


def rehash(folder, name):
    record = json.loads((folder / "conan.json").read_text())
    record["files"][name] = file_hash(folder / name)
    (folder / "conan.json").write_text(json.dumps(record))


def first(tensors, part):
    return next(name for name in tensors if part in name)


def widen(tensors, name):
    tensors[name] = torch.cat([tensors[name], tensors[name]])


def whole_beside(tensors):
    """The whole tensor of a layer that has factors, too."""
    down = first(tensors, "lora_A")
    up = down.replace("lora_A", "lora_B")
    return {down.replace(".lora_A.", "."): torch.zeros(len(tensors[up]), tensors[down].shape[1])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(next(name for name in tensors if "lora_B" in name)), "is missing"),
        (lambda tensors: tensors.pop(next(name for name in tensors if "lora_A" in name)), "has no lora_A"),
        (lambda tensors: tensors.update({"base_model.model.extra.weight": torch.ones(2)}), "is not among the base's tensors"),
        (lambda tensors: tensors.update({"base_model.model.audio_projector.linear_1.bias": torch.ones(3)}), "must be"),
        (lambda tensors: widen(tensors, first(tensors, "lora_A")), "has factors of the ranks"),
        (lambda tensors: tensors.update(whole_beside(tensors)), "is there both whole and as factors"),
    ],
)
def test_adapters_that_do_not_fit_are_refused_by_name(both, tmp_path, change, message):
    copy = shutil.copytree(both["adapter"], tmp_path / "copy")
    tensors = load_file(copy / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, copy / "adapter_model.safetensors")
    rehash(copy, "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"must fit its base, but .* {message}"):
        load_folder(copy)


def test_adapters_of_another_kind_are_refused(both, tmp_path):
    copy = shutil.copytree(both["adapter"], tmp_path / "copy")
    rewrite(copy, "adapter_config.json", lambda fields: fields.update(use_dora=True))
    with pytest.raises(ValueError, match=r"use_dora in .* must be False, got True"):
        load_folder(copy)


def test_only_specialists_write_adapters(both, base, world, tmp_path):
    module = Specialist(base, "audio", QUICK, lora=None)
    with pytest.raises(ValueError, match="Only a specialist with LoRA"):
        trainer(tmp_path, 1, FolderCheckpoint(tmp_path / "out", "adapter")).fit(module, data(world, "audio"))
    assert not (tmp_path / "out").exists()
