"""No code but a family's own file names it; one that is not known is refused."""

import ast
import re
from pathlib import Path

import pytest

from lightning_conan.embedder import tiny_embedder
from lightning_conan.embedder.backbones import backbone_of, known_backbones, register_backbone
from lightning_conan.embedder.backbones.registry import FAMILIES, unregister_backbone

ROOT = Path(__file__).parents[3]
FILES = [path for folder in ("lightning_conan", "datamodules", "callbacks") for path in (ROOT / folder).rglob("*.py")]
OWN = ROOT / "lightning_conan/embedder/backbones"


def words(path: Path) -> set[str]:
    """Names and texts of a file's code, without docstrings."""
    tree = ast.parse(path.read_text())
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in told:
                found.add(text)
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.ClassDef(name=name) | ast.alias(name=name):
                found.add(name)
            case ast.ImportFrom(module=str(name)):
                found.add(name)
    return found


def test_a_family_is_named_in_its_own_file_alone():
    """In code; helps and docstrings may give examples, configs and docs name what they are for."""
    plain = {re.sub(r"\W|_", "", family.title).lower() for family in known_backbones()}
    for path in FILES:
        if path.parent != OWN:
            for word in words(path):
                bare = re.sub(r"\W|_", "", word).lower()
                assert not any(name in bare for name in plain), f"{path.relative_to(ROOT)}: {word}"


def test_a_family_is_one_file_and_one_name():
    others = {"__init__.py", "registry.py", "spec.py"}
    assert {path.stem for path in OWN.glob("*.py") if path.name not in others} == set(FAMILIES)


def test_an_unknown_family_is_refused_with_those_known():
    with pytest.raises(ValueError, match=rf"one of .*'{FAMILIES[0]}'.*, got 'gpt_2': docs/backbones.md says how"):
        backbone_of("gpt_2")
    assert (ROOT / "docs/backbones.md").is_file()


def test_a_registered_family_is_known_until_it_is_removed():
    kind = type("Own", (type(backbone_of(FAMILIES[0])),), {"name": "own_family"})
    register_backbone(kind())
    try:
        assert backbone_of("own_family").name == "own_family"
        with pytest.raises(ValueError, match="is known already"):
            register_backbone(kind())
    finally:
        unregister_backbone("own_family")
    with pytest.raises(ValueError, match="Only registered families"):
        unregister_backbone(FAMILIES[0])


def test_folders_written_before_there_were_families_read_as_before():
    """And their indexes stay valid: fingerprints of the first family do not depend on the new field."""
    from lightning_conan.embedder import OmniProcessor, ProcessorConfig

    processor = tiny_embedder(0)[1]
    fields = processor.config.to_dict()
    old = {name: value for name, value in fields.items() if name != "family"}
    assert OmniProcessor(processor.tokenizer, ProcessorConfig.from_dict(old)).fingerprint == processor.fingerprint
