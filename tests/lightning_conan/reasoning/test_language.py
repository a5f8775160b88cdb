"""Texts in another language than English are told by a detector, names and short texts are left alone."""

import importlib.util

import pytest

from lightning_conan.cli.main import main
from lightning_conan.reasoning.language import LEAST_BYTES, is_foreign, read_detector
from lightning_conan.reasoning.rules import Rules, Thought, check_usable, is_english

ENGLISH = (
    "The source shows a red dress with long sleeves; the change asks for a blue one.",
    "It is a Bichon Frise; the breed comes from the Mediterranean and is known for its white coat.",
    "top left red circle, top right blue square, bottom left green cross, bottom right red square",
    "Château de Chambord was built by Francis I of France in the valley of the Loire.",
)
FOREIGN = (
    "Das Kleid ist zuerst rot und hat lange Ärmel; danach soll es blau werden.",
    "La robe est d'abord rouge avec de longues manches, puis elle devient bleue.",
    "El vestido primero es rojo y tiene mangas largas, y luego se vuelve azul.",
    "Klänningen är först röd med långa ärmar och ska sedan bli blå.",
    "Sukienka jest najpierw czerwona z długimi rękawami, a potem ma być niebieska.",
    "Gaun itu awalnya berwarna merah dengan lengan panjang, lalu menjadi biru.",
)


@pytest.mark.parametrize("text", ENGLISH)
def test_english_stays(text):
    assert not is_foreign(text, 0.5)


@pytest.mark.parametrize("text", FOREIGN)
def test_languages_of_latin_letters_are_told(text):
    assert is_foreign(text, 0.5)
    assert not is_english(Thought(text, text), Rules())
    assert not is_english(Thought(ENGLISH[0], text), Rules()), "an English reasoning hides no answer"
    assert not is_english(Thought(text, ENGLISH[2]), Rules())


def test_letters_alone_tell_no_german():
    assert is_english(Thought(FOREIGN[0], FOREIGN[0]), Rules(foreign=1.0))


@pytest.mark.parametrize("name", ["Ristorante Da Vinci pizza margherita", "Schloss Neuschwanstein", "Palácio da Pena, Sintra"])
def test_names_are_no_evidence(name):
    assert len(name.encode()) < LEAST_BYTES
    assert is_english(Thought(ENGLISH[1], name), Rules())


def test_the_confidence_is_the_detectors():
    text = FOREIGN[0]
    _, found = read_detector().classify(text)
    assert is_foreign(text, found - 1e-6)
    assert not is_foreign(text, found)
    assert not is_foreign(text, 1.0)


def test_without_the_detector_nothing_is_asked(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "py3langid" else find(name, *rest))
    read_detector.cache_clear()
    (tmp_path / "pairs.jsonl").write_text('{"key": "a", "task": "cirr", "modality": "image", "query": "a", "target": "b"}\n')
    assert main(["cot", "--source", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "out"), "--teacher", "toy"]) == 1
    said = capsys.readouterr().err
    assert "plan.rules.foreign" in said
    assert "pip install 'lightning-conan[cot]'" in said
    check_usable(Rules(foreign=1.0))
