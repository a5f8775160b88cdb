import json
import shutil

import av
import pytest

from lightning_conan.cli import doctor
from lightning_conan.cli.main import main
from lightning_conan.embedder import load_folder


def test_this_machine_works(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "everything needed is there" in printed
    for word in ("torchaudio", "h264", "opus", "memory", "free disk"):
        assert word in printed


def test_a_missing_decoder_fails_and_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"h264"})
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL video decoders" in printed
    assert "without h264 such files are quarantined" in printed


def test_a_package_out_of_range_fails(monkeypatch, capsys):
    real = doctor.metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.10.0" if name == "torchaudio" else real(name))
    assert main(["doctor"]) == 1
    assert "pip install 'torchaudio" in capsys.readouterr().out


@pytest.fixture
def copy(base, tmp_path):
    return shutil.copytree(base, tmp_path / "copy")


def test_a_sound_folder_passes(copy, capsys):
    assert main(["doctor", str(copy)]) == 0
    assert "ok   audio" in capsys.readouterr().out


def test_a_folder_that_reads_differently_fails_until_recorded_anew(copy, capsys):
    settings = json.loads((copy / "omni_processor.json").read_text())
    (copy / "omni_processor.json").write_text(json.dumps({**settings, "instruction": "Find it."}))
    record = json.loads((copy / "conan.json").read_text())
    del record["files"]["omni_processor.json"]
    (copy / "conan.json").write_text(json.dumps(record))
    assert main(["doctor", str(copy)]) == 1
    assert "FAIL text" in capsys.readouterr().out
    assert main(["doctor", str(copy), "--record", "true"]) == 0
    assert main(["doctor", str(copy)]) == 0
    load_folder(copy, verify=True)


def test_a_changed_file_is_one_error(copy, capsys):
    (copy / "tokenizer.json").write_text("{}")
    assert main(["doctor", str(copy)]) == 1
    assert "differs from its hash" in capsys.readouterr().err
