import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lightning_conan.cli.main import VERBS, main
from lightning_conan.fusion import read_mergekit
from lightning_conan.strict_yaml import load_yaml, read_yaml

LEAF = st.integers(0, 9) | st.sampled_from(["a", "b c", "null"])
TREE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(st.sampled_from("abcd"), inner), max_size=3).map(tuple)
)


def text_of(tree) -> str:
    """Flow style, mappings as tuples of pairs: unlike a dict they can name a key twice. Keys are quoted or not."""
    if isinstance(tree, tuple):
        return (
            "{"
            + ", ".join(
                f"{'abcd'.index(key) % 2 * chr(34)}{key}{'abcd'.index(key) % 2 * chr(34)}: {text_of(value)}"
                for key, value in tree
            )
            + "}"
        )
    return f"[{', '.join(map(text_of, tree))}]" if isinstance(tree, list) else json.dumps(tree)


def twice(tree) -> bool:
    inner = [value for _, value in tree] if isinstance(tree, tuple) else tree if isinstance(tree, list) else []
    return (isinstance(tree, tuple) and len({key for key, _ in tree}) < len(tree)) or any(map(twice, inner))


@given(TREE)
def test_a_key_that_stands_twice_is_refused_and_nothing_else(tree):
    text = text_of(tree)
    if twice(tree):
        with pytest.raises(yaml.YAMLError, match="and again here; remove one"):
            load_yaml(text, yaml.safe_load)
    else:
        assert load_yaml(text, yaml.safe_load) == yaml.safe_load(text)


@pytest.mark.parametrize(
    "text", ["a: 1\n'a': 2", "x: [{b: 1, b: 2}]", "x: &x {a: 1}\ny: *x\nz: {c: 1, d: {e: 1, 'e': 1}}", "? a\n: 1\n? a\n: 2"]
)
def test_places_are_named(text):
    with pytest.raises(yaml.YAMLError, match=r"the key '[abe]' stands here(.|\n)*line \d+, column \d+"):
        load_yaml(text, yaml.safe_load)


@pytest.mark.parametrize("text", ["", "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}", "a: &a [1, *a]", "{a: 1}", "? [1, 2]\n: 3"])
def test_what_is_no_duplicate_is_read(text):
    """Merges with an override, aliases in a circle, nothing at all."""
    load_yaml(text, lambda same: same)


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "a.yaml"
    for data in (b"a: 1\na: 2\n", b"a: [", b"\xff\xfe\xff"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.yaml must be YAML, each key once"):
            read_yaml(path)
    path.write_text("merge_method: ties\nbase_model: x\nmodels: []\nmodels: []\n")
    with pytest.raises(ValueError, match="the key 'models' stands here"):
        read_mergekit(path)


@pytest.mark.parametrize("verb", ["fit", "test", *(verb for verb in VERBS if verb != "configs")])  # which reads none
def test_every_verb_refuses_a_config_with_a_key_twice(verb, tmp_path, capsys):
    """Whatever the key: the file is not looked into further."""
    config = tmp_path / "odd.yaml"
    config.write_text("outer:\n  inner: 1\n  other: 2\n  inner: 3\n")
    assert main([verb, "--config", str(config)]) == 2
    assert "the key 'inner' stands here" in " ".join(capsys.readouterr().err.split())


def test_an_option_in_json_refuses_it_too(tmp_path, capsys):
    words = ["graft", "--tiny", "true", "--out", str(tmp_path / "base"), "--processor", '{"max_pixels": 1, "max_pixels": 2}']
    assert main(words) == 2
    assert not (tmp_path / "base").exists()


def test_a_text_that_looks_like_a_mapping_stays_a_text(tmp_path, capsys):
    """Options that take text must not be read as YAML that is refused."""
    assert main(["search", "--folder", str(tmp_path), "--index", str(tmp_path), "--text", "{a: 1, a: 2}"]) == 1
    assert "holds no embeddings" in capsys.readouterr().err
