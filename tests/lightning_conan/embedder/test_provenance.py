"""Content of ``conan.json``, and the modes of the files beside it."""

import json
import os
import shutil
import stat

import pytest
import torch

from lightning_conan.embedder import Provenance, export_folder, load_folder, read_provenance, save_adapter_folder, save_folder
from lightning_conan.embedder.checkpoint import Adapter, record_golden
from lightning_conan.embedder.checkpoint.publish import is_repository, without_paths


@pytest.fixture
def folder(base, tmp_path):
    return shutil.copytree(base, tmp_path / "copy")


def rewrite(folder, change):
    record = json.loads((folder / "conan.json").read_text())
    change(record)
    (folder / "conan.json").write_text(json.dumps(record))


def test_a_field_of_a_later_version_is_named_with_the_version_and_the_remedy(folder):
    rewrite(folder, lambda record: (record.update(licence="MIT"), record["versions"].update({"lightning-conan": "9.1"})))
    with pytest.raises(
        ValueError, match=r"has the field 'licence', .* does not know: 9\.1 wrote it\. Upgrade lightning-conan, or"
    ):
        load_folder(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"files": []}, r"\$\.files"),
        ({"files": {"config.json": 3}}, r"\$\.files"),
        ({"parents": ["a"]}, r"\$\.parents"),
        ({"notes": None}, r"\$\.notes"),
        ({"versions": "1"}, r"\$\.versions"),
        ({"state": "distilled"}, "'distilled'"),
    ],
    ids=str,
)
def test_values_of_another_type_are_one_error(folder, change, said):
    rewrite(folder, lambda record: record.update(change))
    with pytest.raises(ValueError, match=rf"conan\.json was cut or changed \(.*{said}"):
        load_folder(folder)


def test_a_modality_that_is_not_known_here_is_named(folder):
    rewrite(folder, lambda record: record.update({"modality": "smell"}))
    with pytest.raises(ValueError, match=r"conan\.json names the modality 'smell', which is not.*CONAN_MODALITIES"):
        load_folder(folder)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"base"', "[" * 100_000, b"\xff\xfe{}"], ids=lambda text: str(text[:6]))
def test_json_that_is_no_object_is_one_error(folder, text):
    (folder / "conan.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"conan\.json was cut or changed"):
        read_provenance(folder)


def test_it_names_the_version_that_wrote_it(base):
    assert read_provenance(base).versions["lightning-conan"]


def modes(folder):
    """The modes of a folder's files and of its folders, itself included."""
    paths = [folder, *folder.rglob("*")]
    return tuple({stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir() == kind} for kind in (False, True))


@pytest.fixture(params=[0o002, 0o027, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_every_file_has_the_mode_that_the_umask_gives(tiny, umask, tmp_path):
    """safetensors' own writer lets nobody but the owner read."""
    dense = save_folder(tmp_path / "dense", *tiny, Provenance("base"))
    adapter = Adapter({}, {"audio_projector.linear_1.bias": torch.zeros(3)}, [], {"base_model_name_or_path": str(dense)})
    save_adapter_folder(tmp_path / "adapter", *tiny, Provenance("specialist", "audio"), adapter)
    for path in dense.rglob("*.safetensors"):
        path.chmod(0o600)  # as folders of earlier versions have it: a copy must not
    export_folder(dense, tmp_path / "exported")
    export_folder(dense, tmp_path / "stock", stock=True)
    record_golden(tmp_path / "adapter", *tiny)
    for name in ("adapter", "exported", "stock"):
        assert modes(tmp_path / name) == ({0o666 & ~umask}, {0o777 & ~umask}), name


def test_caches_of_frozen_outputs_have_it_too(umask, tmp_path):
    from lightning_conan.training.frozen_cache import FrozenOutputs

    FrozenOutputs(tmp_path / "cache", "maker", 0.001).close()
    assert modes(tmp_path / "cache") == ({0o666 & ~umask}, {0o777 & ~umask})


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ("/home/some-body/secret project/qwen", "qwen"),
        ("~/secret/qwen/", "qwen"),
        ("~some-body/qwen", "qwen"),
        (r"C:\Users\some-body\qwen", "qwen"),
        (r"\\share\some-body\qwen", "qwen"),
        ("file:///home/some-body/qwen", "qwen"),
        ("/", "local"),
        ("Fisher({'audio': PosixPath('/home/some body/a.bin')})", "Fisher({'audio': PosixPath('a.bin')})"),
        ("resumed from /home/some-body/last.ckpt, then on", "resumed from last.ckpt, then on"),
        ({"/home/some-body/a": ["/home/some-body/b", 3, None]}, {"a": ["b", 3, None]}),
        ("Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-2B-Instruct"),
        ("https://arxiv.org/abs/2606.09331", "https://arxiv.org/abs/2606.09331"),
        ("layers\\.(2[0-9]|3[0-5])", "layers\\.(2[0-9]|3[0-5])"),
        ("1/2 of 3 / 4 and/or 0.3", "1/2 of 3 / 4 and/or 0.3"),
        (0.3, 0.3),
    ],
    ids=str,
)  # fmt: skip
def test_absolute_paths_are_shortened_and_nothing_else(found, wanted):
    assert without_paths(found) == wanted


def test_only_a_hubs_repository_is_a_base_model():
    assert is_repository("Qwen/Qwen3-VL-2B-Instruct")
    assert not any(map(is_repository, ("/a/b", "./a/b", "a", "a/b/c", "~/a", "../a", "a/b c", "")))


@pytest.mark.parametrize("stock", [False, True])
def test_an_export_tells_nobody_where_it_was_made(tiny, tmp_path, stock):
    secret = str(tmp_path / "some-body" / "secret")
    notes = {"backbone": f"{secret}/qwen", "audio": "Qwen/Qwen3-Omni", "method": f"Fisher(PosixPath('{secret}/f.safetensors'))"}
    base = save_folder(tmp_path / "some-body" / "base", *tiny, Provenance("base", notes=notes))
    export_folder(base, tmp_path / "out", stock)
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or b"some-body" not in path.read_bytes(), path.name
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model:\n- Qwen/Qwen3-Omni\nbase_model_relation" in card
    assert "- backbone: qwen\n" in card
    assert read_provenance(base).notes["backbone"] == f"{secret}/qwen"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_exported(tiny, tmp_path, value):
    from lightning_conan.embedder import tiny_embedder

    model, processor = tiny_embedder(0)
    model.backbone.visual.merger.linear_fc1.bias.data[3] = value
    folder = save_folder(tmp_path / "base", model, processor, Provenance("base"))
    with pytest.raises(ValueError, match=r"'backbone\.visual\.merger\.linear_fc1\.bias' of .*base holds NaN or inf"):
        export_folder(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


KERNEL = "some-one/some-kernel"


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(attn_implementation=KERNEL),
        lambda config: config.update(_attn_implementation=KERNEL),
        lambda config: config.update(experts_implementation=KERNEL),
        lambda config: config["backbone_config"]["text_config"].update(attn_implementation=KERNEL),
        lambda config: config.update(attn_implementation="flash_attention_2"),  # of a hub where flash-attn is not installed
        lambda config: config.update(attn_implementation={"": "sdpa", "audio_config": KERNEL}),
        lambda config: config.update(attn_implementation={"backbone_config": {"text_config": KERNEL}}),
    ],
    ids=["attention", "private", "experts", "nested", "flash", "part", "part of a part"],
)
def test_a_config_that_names_a_kernel_of_a_hub_is_refused(folder, change):
    from lightning_conan.embedder.checkpoint import file_hash

    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    rewrite(folder, lambda record: record["files"].update({"config.json": file_hash(folder / "config.json")}))
    for read in (load_folder, lambda folder: export_folder(folder, folder.parent / "out")):
        with pytest.raises(
            ValueError, match=r"implementation in config\.json must be among .* got '(some-one/some-kernel|flash_attention_2)'"
        ):
            read(folder)
