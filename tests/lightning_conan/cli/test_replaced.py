"""Outputs of an earlier run are replaced with a word, and nothing is resumed from a folder that is not there."""

import json
import re

from lightning_conan.cli.common.suggestions import help_of
from lightning_conan.cli.main import LIGHTNING, VERBS, main, module_of
from samples import CONFIGS


def test_a_fit_reports_what_it_replaces_and_where_it_looks(base, world, tmp_path, caplog):
    """A mistyped root would train from step 0, and over a finished folder."""
    words = ["fit", "--config", str(CONFIGS / "base.yaml"), "--config", str(CONFIGS / "tiny" / "specialist.yaml")]
    words += ["--trainer.callbacks.out", str(tmp_path / "out"), "--model.init_args.folder", str(base)]
    words += ["--data.init_args.train", str(world / "image"), "--data.init_args.batch_size", "4", "--trainer.max_steps", "1"]
    assert main([*words, "--trainer.default_root_dir", str(tmp_path / "work")]) == 0
    assert "replaced" not in caplog.text
    assert main([*words, "--trainer.default_root_dir", str(tmp_path / "wrok"), "--ckpt_path", "last"]) == 0
    assert f"There is no last.ckpt in {tmp_path / 'wrok' / 'checkpoints'}: the run starts at step 0" in caplog.text
    assert f"{tmp_path / 'out'} exists: it is replaced when this run ends" in caplog.text
    assert f"{tmp_path / 'out'} is replaced" in caplog.text


def test_verbs_report_what_they_replace(base, world, tmp_path, caplog):
    words = ["test", "--config", str(CONFIGS / "base.yaml"), "--config", str(CONFIGS / "tiny" / "test.yaml")]
    words += ["--trainer.default_root_dir", str(tmp_path), "--trainer.callbacks.path", str(tmp_path / "scores.json")]
    test = [*words, "--model.init_args.folder", str(base), "--data.init_args.test", json.dumps({"a": str(world / "image")})]
    export = ["export", str(base), str(tmp_path / "exported")]
    graft = ["graft", "--tiny", "true", "--out", str(tmp_path / "grafted")]
    for words, name in ((test, "scores.json"), (export, "exported"), (graft, "grafted")):
        assert main(words) == 0
        assert f"{tmp_path / name} is replaced" not in caplog.text
        assert main(words) == 0
        assert f"{tmp_path / name} is replaced" in caplog.text


def test_each_option_is_explained_with_a_noun():
    """Not by "Of the sampler" or "This": an option's own line must be enough."""
    odd = r"(--[\w.+]+) (?:\{[^}]*\}|\[[^\]]*\]|\S+) ((?:Of|Where|This\.|The \w+'s[;.,])\s.{0,60})"
    for verb in ("fit", *VERBS):
        text = " ".join(help_of(module_of(verb), [verb] if verb in LIGHTNING else []).split())
        assert "--" in text
        assert not re.findall(odd, text)
