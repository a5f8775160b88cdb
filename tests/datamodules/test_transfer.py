"""The generator of the study of transfer: each kind of query holds what its name says, and training none of it."""

import json

import pytest

from datamodules.sources.manifest import read_manifest
from datamodules.toy_world.composed import PLACES
from datamodules.toy_world.pairs import WORDS
from datamodules.toy_world.sounds import SOUNDS
from datamodules.toy_world.transfer import (
    DOMAINS,
    HELD_COLOURS,
    HELD_SHAPES,
    ORDER,
    PARTS,
    draw_described,
    draw_edited,
    draw_sequences,
)
from datamodules.toy_world.write_transfer import write_transfer


def parsed(text):
    """A scene in words, as a dictionary by place."""
    places = {}
    for part in text.split(", "):
        place = next(name for name in PLACES if part.startswith(name))
        places[place] = part.removeprefix(f"{place} ").split()
    return places


def followed(scene, words):
    """All scenes on the way, by following the words."""
    scenes = [scene]
    for step in words.split(", then "):
        scene = {place: list(thing) for place, thing in scene.items()}
        named = sorted((name for name in PLACES if name in step), key=step.index)
        if step.startswith("swap"):
            scene[named[0]], scene[named[1]] = scene[named[1]], scene[named[0]]
        elif "the color of" in step:
            scene[named[0]][0] = scene[named[1]][0]
        else:
            scene[named[0]][" one a " in step] = step.split()[-1]
        scenes.append(scene)
    return scenes


@pytest.mark.parametrize("part", PARTS)
def test_truths_follow_from_the_words_and_hold_out_what_the_name_says(part):
    pairs, truths = draw_edited(part, 24, 0)
    for pair in pairs:
        words = str(pair.query.parts[1])
        truth = truths[pair.key]
        scenes = followed(parsed(truth.reasoning.split(";")[0]), words)
        assert scenes[-1] == parsed(truth.answer)
        seen = {name for scene in scenes for thing in scene.values() for name in thing}
        steps = words.count(", then ") + 1
        assert bool(seen & HELD_COLOURS) == (part == "colours")
        assert bool(seen & HELD_SHAPES) == (part == "shapes")
        assert ("swap" in words) == (part == "operation")
        assert steps == int(part[-1]) if part.startswith("chain") else steps <= 2


def test_simple_queries_of_training_hold_nothing_that_is_held_out():
    pairs, _ = draw_described(24, 0)
    assert not {word for pair in pairs for word in str(pair.query.parts[0]).split()} & (HELD_COLOURS | HELD_SHAPES)


def test_pages_and_sounds_change_as_the_words_say(monkeypatch):
    """The files are made of the names before and after the change."""
    monkeypatch.setattr(
        "datamodules.toy_world.transfer.DOMAINS",
        {
            name: (modality, known, lambda rng, names, key, render=render: remember(render(rng, names, key), names))
            for name, (modality, known, render) in DOMAINS.items()
        },
    )
    made = {}

    def remember(media, names):
        made[media.name] = tuple(names)
        return media

    for domain, known in (("pages", WORDS), ("sounds", SOUNDS)):
        pairs = draw_sequences(domain, 12, 0)
        assert len({made[pair.target.media[0].name] for pair in pairs}) == 12
        for pair in pairs:
            names = list(made[pair.query.media[0].name])
            for step in str(pair.query.parts[1]).split(", then "):
                place, said = step.removeprefix("make the ").split(" one ", 1)
                copied = [number for number, name in enumerate(ORDER) if said == f"the {name} one"]
                names[ORDER.index(place)] = names[copied[0]] if copied else said
            assert tuple(names) == made[pair.target.media[0].name]
            assert set(names) <= set(known)


def test_no_target_of_test_stands_in_training(tmp_path):
    write_transfer(tmp_path / "world", 8, 0)
    found = {path.name: list(read_manifest(path)) for path in (tmp_path / "world").glob("*.jsonl") if "truth" not in path.name}
    assert found.keys() == {
        *(f"{name}.test.jsonl" for name in (*PARTS, *DOMAINS)),
        *(f"{name}.train.jsonl" for name in ("composed", "simple", "caption", "document", "audio")),
    }
    assert len(found["composed.train.jsonl"]) == 16
    lines = (tmp_path / "world" / "composed.train.truth.jsonl").read_text().splitlines()
    trained = {json.loads(line)["answer"] for line in lines}
    for name in PARTS:
        assert not trained & {truth.answer for truth in draw_edited(name, 8, "0 test")[1].values()}
    keys = [pair.key for pairs in found.values() for pair in pairs]
    assert len(set(keys)) == len(keys)
