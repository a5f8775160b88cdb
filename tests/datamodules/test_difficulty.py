"""The generator of graded queries: their difficulty is in the content of picture and words together, and nowhere else."""

import io
import json
from collections import Counter, defaultdict
from dataclasses import asdict

import pytest
from PIL import Image

from datamodules.toy_world.composed import MARK, PLACES
from datamodules.toy_world.difficulty import AMBIGUOUS, FORMS, draw_graded, draw_marked
from datamodules.toy_world.draw import COLOURS
from lightning_conan.demo.route_guess import GUESSES, NaiveBayes, guess_accuracy
from lightning_conan.items import Item

CENTRES, CORNERS = [(12, 12), (36, 12), (12, 36), (36, 36)], [(0, 0), (24, 0), (0, 24), (24, 24)]


@pytest.fixture(scope="module")
def graded():
    """Training and test pairs of each form, with their truths."""
    found = {}
    for form in FORMS:
        test = draw_graded(form, 266, "0 test")
        avoid = frozenset(truth.answer for truth in test[1].values())
        found[form] = {"test": test, "train": draw_graded(form, 1066, "0 train", avoid)}
    return found


def seen(medium):
    """Colours at the four places, read from pixels, and the places with a frame."""
    image = Image.open(io.BytesIO(medium.read())).convert("RGB")
    near = [
        min(COLOURS, key=lambda name: sum(abs(a - b) for a, b in zip(COLOURS[name], image.getpixel(at), strict=True)))
        for at in CENTRES
    ]
    return near, [place for place, at in enumerate(CORNERS) if image.getpixel(at) == MARK]


def asked(form, pair):
    """Colours of the source and the place that is asked for, from the query alone."""
    words = next((part for part in pair.query.parts if isinstance(part, str)), "")
    if form == "picture":
        assert not words
        colours, (place,) = seen(pair.query.media[0])
        return colours, place
    scene, _, said = words.rpartition(": ")
    place = next(number for number, name in enumerate(PLACES) if said == f"make them the color of the {name} one")
    if form == "words":
        return [part.split()[2] for part in scene.split(", ")], place
    colours, marks = seen(pair.query.media[0])
    assert not marks
    return colours, place


@pytest.mark.parametrize("form", FORMS)
def test_queries_ask_for_what_their_targets_show_and_their_truths_say(graded, form):
    pairs, truths = graded[form]["test"]
    for pair in pairs:
        colours, place = asked(form, pair)
        assert seen(pair.target.media[0]) == ([colours[place]] * 4, [])
        changes = sum(colour != colours[place] for colour in colours)
        truth = truths[pair.key]
        assert truth.difficulty == {1: "easy", 2: "ambiguous", 3: "hard"}[changes]
        assert [part.split()[2] for part in truth.answer.split(", ")] == [colours[place]] * 4


@pytest.mark.parametrize("form", FORMS)
def test_teachers_route_by_difficulty_and_toss_a_coin_for_ambiguous_ones(graded, form):
    _, truths = graded[form]["train"]
    kinds = defaultdict(Counter)
    for truth in truths.values():
        kinds[truth.difficulty][truth.kind] += 1
    assert kinds["easy"].keys() == {"simple"}
    assert kinds["hard"] == {FORMS[form]: kinds["easy"]["simple"]}
    assert kinds["ambiguous"].total() == pytest.approx(AMBIGUOUS * len(truths), abs=2)
    assert 0.3 < kinds["ambiguous"]["simple"] / kinds["ambiguous"].total() < 0.7


def labelled(graded, part, forms):
    """Queries with True for those to reason about: as the teacher says in training, the truth about the sure ones in test."""
    found = []
    for form in forms:
        pairs, truths = graded[form][part]
        for pair in pairs:
            truth = truths[pair.key]
            if part == "train" or truth.difficulty != "ambiguous":
                found.append((pair.query, truth.kind != "simple"))
    return found


@pytest.mark.parametrize("forms", [("both",), ("picture",), ("words",), tuple(FORMS)], ids="+".join)
@pytest.mark.parametrize("name", GUESSES)
def test_a_classifier_of_the_surface_is_at_chance(graded, name, forms):
    train, test = (labelled(graded, part, forms) for part in ("train", "test"))
    assert sum(label for _, label in test) * 2 == len(test)
    assert guess_accuracy(GUESSES[name], train, test) == pytest.approx(50, abs=5)


@pytest.mark.parametrize("form", ["both", "picture"])
def test_picture_and_place_tell_the_difficulty_together_and_neither_alone(graded, form):
    """Even a classifier that reads all colours without an error, or the place, guesses; one that reads both knows."""

    def features(which):
        return {
            part: [
                (which(*asked(form, pair)), truths[pair.key].kind != "simple")
                for pair in pairs
                if truths[pair.key].difficulty != "ambiguous"
            ]
            for part, (pairs, truths) in graded[form].items()
        }

    def accuracy(which):
        found = features(which)
        guess = NaiveBayes(*zip(*found["train"], strict=True))
        return 100 * sum(guess(seen) == label for seen, label in found["test"]) / len(found["test"])

    def odd(colours):
        return next(place for place, colour in enumerate(colours) if colours.count(colour) == 1)

    assert accuracy(lambda colours, place: [f"{at} {colour}" for at, colour in enumerate(colours)]) == pytest.approx(50, abs=5)
    assert accuracy(lambda colours, place: [f"odd {odd(colours)}"]) == pytest.approx(50, abs=5)
    assert accuracy(lambda colours, place: [f"asked {place}"]) == pytest.approx(50, abs=5)
    assert accuracy(lambda colours, place: [f"{odd(colours)} {place}"]) == 100


def test_a_surface_that_tells_is_noticed(graded):
    """The classifiers see it where a word, or a picture, gives the route away."""
    train = labelled(graded, "train", ["both"])
    words = [(Item((f"{'change' if label else 'make'} them",)), label) for _, label in train]
    media = [(query if label else Item(("make them",)), label) for query, label in train]
    assert guess_accuracy(GUESSES["its words"], words, words) == 100
    assert guess_accuracy(GUESSES["presence of an image"], media, media) == 100


@pytest.mark.parametrize("form", FORMS)
def test_targets_are_new_and_all_differ(graded, form):
    answers = {part: [truth.answer for truth in graded[form][part][1].values()] for part in ("train", "test")}
    assert all(len(set(found)) == len(found) for found in answers.values())
    assert not set(answers["train"]) & set(answers["test"])


def test_the_same_seed_draws_the_same_and_odd_counts_are_refused():
    one, other, third = (draw_graded("both", 8, seed) for seed in (3, 3, 4))
    assert [pair.query.content_hash() for pair in one[0]] == [pair.query.content_hash() for pair in other[0]]
    assert json.dumps([asdict(truth) for truth in one[1].values()]) != json.dumps([asdict(truth) for truth in third[1].values()])
    with pytest.raises(ValueError, match="count must be even"):
        draw_graded("both", 7, 0)


def test_marked_pictures_are_described_with_their_mark():
    pairs, truths = draw_marked(12, 0)
    for pair in pairs:
        colours, (place,) = seen(pair.query.media[0])
        *things, mark = str(pair.target.parts[0]).split(", ")
        assert [thing.split()[2] for thing in things] == colours
        assert mark == f"marked {PLACES[place]}"
        assert truths[pair.key].answer == pair.target.parts[0]
