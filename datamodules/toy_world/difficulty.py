"""Queries of one template whose difficulty only their content tells: one thing changes, or three do, or, ambiguous, two."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from datamodules.toy_world.composed import PLACES, Scene, Truth, describe, differing, draw_places, random_scene
from datamodules.toy_world.draw import COLOURS, SHAPES
from lightning_conan.items import Item, Pair
from lightning_conan.reasoning.journal import Kind

Difficulty = Literal["easy", "ambiguous", "hard"]
DIFFICULTIES: tuple[Difficulty, ...] = get_args(Difficulty)
CHANGES: dict[int, Difficulty] = {1: "easy", 2: "ambiguous", 3: "hard"}
"""Difficulty by the number of things that change."""
FORMS: dict[str, Kind] = {"both": "composed", "picture": "visual", "words": "logical"}
"""Forms of a query (picture and words, a picture with a mark in it, words alone), and the kind of reasoning of its hard ones."""
AMBIGUOUS = 0.1
"""Share of the pairs of which a teacher says simple or not by the toss of a coin."""
TWINS_OF_A_FAMILY = 4
"""Twins with nearly the same shapes: their targets are near misses for each other."""


@dataclass(frozen=True)
class GradedTruth(Truth):
    """Answer of a perfect teacher, whose ``kind`` is ``simple`` for easy queries.

    Args:
        difficulty: True difficulty of the query.
    """

    difficulty: Difficulty


@dataclass(frozen=True)
class Question:
    """A scene, and the place whose colour all things get.

    Args:
        scene: Colour and shape at each place.
        place: Number of the place.
    """

    scene: Scene
    place: int

    @property
    def answer(self) -> Scene:
        """The scene afterwards."""
        colour = self.scene[self.place][0]
        return tuple((colour, shape) for _, shape in self.scene)

    @property
    def difficulty(self) -> Difficulty:
        """Difficulty by the number of things that change."""
        return CHANGES[len(differing(self.scene, self.answer))]


def rule(place: int) -> str:
    """The words of a query; those of all queries differ in the place alone."""
    return f"make them the color of the {PLACES[place]} one"


def two_colours(rng: random.Random, shapes: Sequence[str], places: Sequence[int]) -> Scene:
    """A scene of two colours.

    Args:
        rng: Random numbers.
        shapes: Shape at each place.
        places: Those of the second colour.
    """
    one, other = rng.sample(list(COLOURS), 2)
    return tuple((other if place in places else one, shape) for place, shape in enumerate(shapes))


def place_pairs(rng: random.Random) -> Iterator[tuple[int, int]]:
    """Yields two different places again and again: each ordered pair equally often, in random order."""
    while True:
        pairs = [(one, other) for one in range(len(PLACES)) for other in range(len(PLACES)) if one != other]
        rng.shuffle(pairs)
        yield from pairs


def draw_twins(rng: random.Random, shapes: Sequence[str], places: tuple[int, int], ambiguous: bool) -> tuple[Question, Question]:
    """Two queries about one scene, of two colours; neither the scene nor the place alone tells their difficulty.

    Args:
        rng: Random numbers.
        shapes: Shape at each place.
        places: Place of each query's rule. The first has a colour of its own.
        ambiguous: True for scenes of two and two colours; else there are three of one and one of the other, and the first
            query is hard and the second easy.

    Returns:
        The queries, whose answers differ in their colour alone.
    """
    odd = [places[0]]
    if ambiguous:
        odd.append(rng.choice([place for place in range(len(PLACES)) if place not in places]))
    scene = two_colours(rng, shapes, odd)
    return Question(scene, places[0]), Question(scene, places[1])


def reason(form: str, question: Question) -> str:
    """Returns the reasoning of a perfect teacher, before its answer.

    Args:
        form: One of ``FORMS``.
        question: The query.
    """
    named = describe(question.scene, [question.place])
    seen = {
        "both": describe(question.scene),
        "picture": f"{describe(question.scene)}, marked {PLACES[question.place]}",
        "words": named,
    }[form]
    return f"{seen}; {describe(question.answer, differing(question.scene, question.answer))}"


def query_of(form: str, question: Question, rng: random.Random, key: str) -> Item:
    """The query as an item.

    Args:
        form: One of ``FORMS``.
        question: The query.
        rng: Random numbers, for the drawing.
        key: The pair's key, which names its file.
    """
    if form == "words":
        return Item((f"{describe(question.scene)}: {rule(question.place)}",))
    if form == "picture":
        return draw_places(question.scene, rng, f"{key}-source", question.place)
    return Item((*draw_places(question.scene, rng, f"{key}-source").parts, rule(question.place)))


def draw_graded(
    form: str, count: int, seed: int | str, avoid: frozenset[str] = frozenset(), ambiguous: float = AMBIGUOUS
) -> tuple[list[Pair], dict[str, GradedTruth]]:
    """Draws pairs of a form, as many easy as hard ones, and the truth about each; all targets differ.

    Args:
        form: One of ``FORMS``; also the task of the pairs.
        count: Number of pairs, which come in twins: even.
        seed: Seed of the pairs; it is part of their keys.
        avoid: Descriptions of targets that must not occur.
        ambiguous: Share of ambiguous pairs, which a teacher calls simple by the toss of a coin.

    Raises:
        ValueError: The count is odd.
    """
    if count % 2:
        raise ValueError(f"count must be even, since graded queries come in twins, got {count}.")
    rng, drawing = random.Random(f"{form} graded {seed}"), random.Random(f"{form} drawing {seed}")
    pairs, truths, seen = list[Pair](), dict[str, GradedTruth](), set(avoid)
    for number, twins in enumerate(draw_questions(rng, count // 2, seen, ambiguous)):
        for half, question in enumerate(twins):
            key = f"{form}-{str(seed).replace(' ', '-')}-{2 * number + half:06d}"
            target = draw_places(question.answer, drawing, f"{key}-target")
            pairs.append(Pair(key, form, "image", query_of(form, question, drawing, key), target))
            simple = rng.random() < 0.5 if question.difficulty == "ambiguous" else question.difficulty == "easy"
            kind: Kind = "simple" if simple else FORMS[form]
            truths[key] = GradedTruth(kind, reason(form, question), describe(question.answer), question.difficulty)
    return pairs, truths


def draw_questions(rng: random.Random, count: int, seen: set[str], ambiguous: float) -> Iterator[tuple[Question, Question]]:
    """Yields twins; some in a row have nearly the same shapes.

    Args:
        rng: Random numbers.
        count: Number of twins.
        seen: Descriptions of answers that must not occur; those that are yielded are added.
        ambiguous: Share of ambiguous twins.
    """
    orders, shapes = {doubt: place_pairs(rng) for doubt in (False, True)}, list[str]()
    doubtful = set(rng.sample(range(count), round(ambiguous * count)))
    for number in range(count):
        if number % TWINS_OF_A_FAMILY == 0:
            shapes = rng.choices(SHAPES, k=len(PLACES))
        places = next(orders[number in doubtful])
        while True:
            near = list(shapes)
            near[rng.randrange(len(PLACES))] = rng.choice(SHAPES)
            twins = draw_twins(rng, near, places, number in doubtful)
            found = {describe(question.answer) for question in twins}
            if not found & seen:
                break
        seen |= found
        yield twins


def draw_marked(count: int, seed: int | str) -> tuple[list[Pair], dict[str, Truth]]:
    """Draws pictures with one thing marked, to their descriptions: a model learns to say what it sees.

    Args:
        count: Number of pairs.
        seed: Seed of the pairs; it is part of their keys.
    """
    rng, pairs, truths = random.Random(f"marked {seed}"), dict[str, Pair](), dict[str, Truth]()
    while len(pairs) < count:
        key = f"marked-{str(seed).replace(' ', '-')}-{len(pairs):06d}"
        scene = random_scene(rng)
        place = rng.randrange(len(PLACES))
        words = f"{describe(scene)}, marked {PLACES[place]}"
        if words not in pairs:
            pairs[words] = Pair(key, "marked", "image", draw_places(scene, rng, f"{key}-source", place), Item((words,)))
            truths[key] = Truth("visual", "it shows", words)
    return list(pairs.values()), truths
