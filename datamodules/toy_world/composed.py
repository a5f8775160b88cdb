"""Composed queries: a picture and what is to be changed in it, to the changed picture; with simple and captioned ones beside."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import ImageDraw

from datamodules.toy_world.draw import COLOURS, SHAPES, SIDE, Thing, draw_scene
from datamodules.toy_world.pairs import picture
from lightning_conan.items import Item, Pair

PLACES = ("top left", "top right", "bottom left", "bottom right")
MARK = (120, 120, 120)
"""Colour of the frame around a marked place; no thing has it."""
EDITS_OF_A_SCENE = 8
"""Pairs of training that share their source: each one's target is a near miss for the others."""
Scene = tuple[tuple[str, str], ...]
"""Colour and shape at each of ``PLACES``."""


@dataclass(frozen=True)
class Truth:
    """Answer of a perfect teacher about a pair.

    Args:
        kind: What the query asks for (``conan cot``).
        reasoning: What is seen, and what each step changes.
        answer: What is to be found.
    """

    kind: str
    reasoning: str
    answer: str


def describe(scene: Scene, places: Sequence[int] = range(len(PLACES))) -> str:
    """A scene, or some of its places, in words.

    Args:
        scene: Colour and shape at each place.
        places: Numbers of places.
    """
    return ", ".join(f"{PLACES[place]} {scene[place][0]} {scene[place][1]}" for place in places)


def differing(before: Scene, after: Scene) -> list[int]:
    """Places that differ.

    Args:
        before: Colour and shape at each place.
        after: Colour and shape at each place.
    """
    return [place for place in range(len(PLACES)) if before[place] != after[place]]


def draw_places(scene: Scene, rng: random.Random, name: str, marked: int | None = None) -> Item:
    """Draws a scene, its things a little off their places.

    Args:
        scene: Colour and shape at each place.
        rng: Random numbers.
        name: The file's, without suffix.
        marked: Number of a place to draw a frame around.
    """
    quarter = SIDE // 4
    things = [
        Thing(colour, shape, "large", x * quarter + rng.uniform(-2, 2), y * quarter + rng.uniform(-2, 2))
        for (colour, shape), (x, y) in zip(scene, [(1, 1), (3, 1), (1, 3), (3, 3)], strict=True)
    ]
    image = draw_scene(things, rng.randint(225, 255))
    if marked is not None:
        left, top = marked % 2 * SIDE // 2, marked // 2 * SIDE // 2
        ImageDraw.Draw(image).rectangle((left, top, left + SIDE // 2 - 1, top + SIDE // 2 - 1), outline=MARK)
    return Item((picture("image", image, name),))


def random_scene(rng: random.Random) -> Scene:
    """Four things."""
    return tuple((rng.choice(list(COLOURS)), rng.choice(SHAPES)) for _ in PLACES)


def recolour(scene: Scene, rng: random.Random) -> tuple[str, Scene]:
    """One thing gets another colour.

    Args:
        scene: Colour and shape at each place.
        rng: Random numbers.
    """
    place = rng.randrange(len(PLACES))
    colour = rng.choice([colour for colour in COLOURS if colour != scene[place][0]])
    return f"make the {PLACES[place]} one {colour}", changed(scene, place, (colour, scene[place][1]))


def reshape(scene: Scene, rng: random.Random) -> tuple[str, Scene]:
    """One thing gets another shape.

    Args:
        scene: Colour and shape at each place.
        rng: Random numbers.
    """
    place = rng.randrange(len(PLACES))
    shape = rng.choice([shape for shape in SHAPES if shape != scene[place][1]])
    return f"make the {PLACES[place]} one a {shape}", changed(scene, place, (scene[place][0], shape))


def copy_colour(scene: Scene, rng: random.Random) -> tuple[str, Scene]:
    """One thing gets the colour of another: the words do not name it.

    Args:
        scene: Colour and shape at each place.
        rng: Random numbers.
    """
    place, other = rng.sample(range(len(PLACES)), 2)
    words = f"make the {PLACES[place]} one the color of the {PLACES[other]} one"
    return words, changed(scene, place, (scene[other][0], scene[place][1]))


def swap(scene: Scene, rng: random.Random) -> tuple[str, Scene]:
    """Two things change places.

    Args:
        scene: Colour and shape at each place.
        rng: Random numbers.
    """
    one, other = rng.sample(range(len(PLACES)), 2)
    return f"swap the {PLACES[one]} one and the {PLACES[other]} one", changed(
        changed(scene, one, scene[other]), other, scene[one]
    )


def changed(scene: Scene, place: int, thing: tuple[str, str]) -> Scene:
    """The scene with another thing at a place.

    Args:
        scene: Colour and shape at each place.
        place: Number of the place.
        thing: Colour and shape.
    """
    return (*scene[:place], thing, *scene[place + 1 :])


EDITS: tuple[Callable[[Scene, random.Random], tuple[str, Scene]], ...] = (recolour, reshape, copy_colour, swap)


def edit(scene: Scene, rng: random.Random, steps: int) -> tuple[str, list[Scene]]:
    """Changes a scene a few times, each time to a new one.

    Args:
        scene: Colour and shape at each place.
        rng: Random numbers.
        steps: Number of changes.
    """
    words: list[str] = []
    scenes = [scene]
    while len(words) < steps:
        said, after = rng.choice(EDITS)(scenes[-1], rng)
        if after not in scenes:
            words.append(said)
            scenes.append(after)
    return ", then ".join(words), scenes


def composed(rng: random.Random, key: str, source: Scene) -> tuple[Item, Item, Truth, Scene]:
    """A picture and one to three changes, to the changed picture.

    Args:
        rng: Random numbers.
        key: The pair's key, which names its files.
        source: Colour and shape at each place.
    """
    words, scenes = edit(source, rng, rng.choice((1, 2, 2, 3)))
    query = Item((*draw_places(source, rng, f"{key}-source").parts, words))
    steps = [describe(after, differing(before, after)) for before, after in pairwise(scenes)]
    truth = Truth("composed", "; ".join([describe(source), *steps]), describe(scenes[-1]))
    return query, draw_places(scenes[-1], rng, f"{key}-target"), truth, scenes[-1]


def simple(rng: random.Random, key: str, source: Scene) -> tuple[Item, Item, Truth, Scene]:
    """A description to its picture; near misses of it stand beside it.

    Args:
        rng: Random numbers.
        key: The pair's key, which names its files.
        source: Colour and shape at each place.
    """
    scene = edit(source, rng, 1)[1][-1]
    return (
        Item((describe(scene),)),
        draw_places(scene, rng, f"{key}-target"),
        Truth("simple", f"it shows {describe(scene)}", describe(scene)),
        scene,
    )


def caption(rng: random.Random, key: str, source: Scene) -> tuple[Item, Item, Truth, Scene]:
    """A picture to its description, which is also its reasoning.

    Args:
        rng: Random numbers.
        key: The pair's key, which names its files.
        source: Colour and shape at each place.
    """
    return (
        draw_places(source, rng, f"{key}-source"),
        Item((describe(source),)),
        Truth("visual", "it shows", describe(source)),
        source,
    )


COMPOSE: dict[str, Callable[[random.Random, str, Scene], tuple[Item, Item, Truth, Scene]]] = {
    "composed": composed,
    "simple": simple,
    "caption": caption,
}


def draw_composed(
    task: str, count: int, seed: int | str, avoid: frozenset[str] = frozenset(), edits: int = EDITS_OF_A_SCENE
) -> tuple[list[Pair], dict[str, Truth]]:
    """``count`` pairs of a task, and the truth about each; their targets all differ, and none is among those to ``avoid``.

    Args:
        task: One of ``COMPOSE``.
        count: Number of pairs.
        seed: Seed of the pairs; it is part of their keys.
        avoid: Descriptions of targets that must not occur.
        edits: Pairs that share their source; captions share none. A scene has some fifty targets at one change.
    """
    rng, name = random.Random(f"{task} {seed}"), str(seed).replace(" ", "-")
    pairs: dict[str, Pair] = {}
    truths: dict[str, Truth] = {}
    source = random_scene(rng)
    while len(pairs) < count:
        if task == "caption" or len(pairs) % edits == 0:
            source = random_scene(rng)
        key = f"{task}-{name}-{len(pairs):06d}"
        query, target, truth, scene = COMPOSE[task](rng, key, source)
        found = describe(scene)
        if found not in avoid and found not in pairs:
            pairs[found] = Pair(key, task, "image", query, target)
            truths[key] = truth
    return list(pairs.values()), truths


def described(truths: Sequence[Truth]) -> frozenset[str]:
    """Descriptions of the targets."""
    return frozenset(truth.answer for truth in truths)
