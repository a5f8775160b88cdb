"""Composed queries of a kind that training leaves out: other colours, shapes, operations, longer chains, pages and sounds."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from datamodules.toy_world.composed import EDITS_OF_A_SCENE, Scene, Truth, describe, differing, draw_places, edit, random_scene
from datamodules.toy_world.pairs import WORDS, page_of, play
from datamodules.toy_world.sounds import SOUNDS
from lightning_conan.items import Item, Media, Modality, Pair

HELD_COLOURS, HELD_SHAPES, HELD_OPERATION = frozenset({"orange", "cyan"}), frozenset({"diamond"}), "swap"
ORDER = ("first", "second", "third")


@dataclass(frozen=True)
class Part:
    """A kind of composed queries.

    Args:
        colours: True if one of ``HELD_COLOURS`` occurs in each, false if in none.
        shapes: The same of ``HELD_SHAPES``.
        operation: The same of ``HELD_OPERATION``.
        steps: Numbers of changes.
    """

    colours: bool = False
    shapes: bool = False
    operation: bool = False
    steps: tuple[int, ...] = (1, 2, 2)

    def allows(self, words: str, scenes: Sequence[Scene]) -> bool:
        """True if a query belongs to this kind.

        Args:
            words: Changes to make.
            scenes: Scenes before, between and after the changes.
        """
        colours, shapes = ({thing[side] for scene in scenes for thing in scene} for side in (0, 1))
        held = bool(colours & HELD_COLOURS), bool(shapes & HELD_SHAPES), HELD_OPERATION in words.split()
        return held == (self.colours, self.shapes, self.operation)


PARTS = {
    "seen": Part(),
    "colours": Part(colours=True),
    "shapes": Part(shapes=True),
    "operation": Part(operation=True),
    "chain3": Part(steps=(3,)),
    "chain4": Part(steps=(4,)),
}
"""Kinds of pictures with words, by name; the first is trained on."""


def draw_edited(
    part: str, count: int, seed: int | str, avoid: frozenset[str] = frozenset()
) -> tuple[list[Pair], dict[str, Truth]]:
    """Draws pairs of a picture with changes to make, and the changed picture, with the truth about each; all targets differ.

    Args:
        part: One of ``PARTS``.
        count: Number of pairs.
        seed: Seed of the pairs; it is part of their keys.
        avoid: Descriptions of targets that must not occur.
    """
    rng, kind = random.Random(f"{part} edited {seed}"), PARTS[part]
    pairs, truths = dict[str, Pair](), dict[str, Truth]()
    while len(pairs) < count:
        source = random_scene(rng)
        for _ in range(4 * EDITS_OF_A_SCENE):
            words, scenes = edit(source, rng, rng.choice(kind.steps))
            answer = describe(scenes[-1])
            if len(pairs) == count or not kind.allows(words, scenes) or answer in avoid or answer in pairs:
                continue
            key = f"composed-{part}-{str(seed).replace(' ', '-')}-{len(pairs):06d}"
            query = Item((*draw_places(source, rng, f"{key}-source").parts, words))
            pairs[answer] = Pair(key, "composed", "image", query, draw_places(scenes[-1], rng, f"{key}-target"))
            changes = [describe(after, differing(before, after)) for before, after in pairwise(scenes)]
            truths[key] = Truth("composed", "; ".join([describe(source), *changes]), answer)
    return list(pairs.values()), truths


def draw_described(count: int, seed: int | str, avoid: frozenset[str] = frozenset()) -> tuple[list[Pair], dict[str, Truth]]:
    """Draws pairs of a description and its picture, with no colour or shape that training leaves out.

    Args:
        count: Number of pairs.
        seed: Seed of the pairs; it is part of their keys.
        avoid: Descriptions that must not occur.
    """
    rng, pairs, truths = random.Random(f"described {seed}"), dict[str, Pair](), dict[str, Truth]()
    while len(pairs) < count:
        scene = random_scene(rng)
        words = describe(scene)
        if PARTS["seen"].allows("", [scene]) and words not in pairs and words not in avoid:
            key = f"simple-{str(seed).replace(' ', '-')}-{len(pairs):06d}"
            pairs[words] = Pair(key, "simple", "image", Item((words,)), draw_places(scene, rng, f"{key}-target"))
            truths[key] = Truth("simple", f"it shows {words}", words)
    return list(pairs.values()), truths


def change_sequence(names: Sequence[str], known: Sequence[str], rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """Replaces one of a sequence, or copies another onto it: the operations that training has.

    Args:
        names: The sequence.
        known: Names to choose from.
        rng: Random numbers.

    Returns:
        The words that ask for it, and the changed sequence.
    """
    place, other = rng.sample(range(len(names)), 2)
    name, said = (names[other], f"the {ORDER[other]} one") if rng.random() < 0.5 else (rng.choice(known), "")
    return f"make the {ORDER[place]} one {said or name}", (*names[:place], name, *names[place + 1 :])


DOMAINS: dict[str, tuple[Modality, Sequence[str], Callable[[random.Random, Sequence[str], str], Media]]] = {
    "pages": ("document", WORDS, page_of),
    "sounds": ("audio", SOUNDS, play),
}
"""Domains beside pictures: their modality, the names of what stands in a row, and the function that makes the file."""


def draw_sequences(domain: str, count: int, seed: int | str) -> list[Pair]:
    """Draws pairs of a page or sound with one or two changes to make, and the changed one; all targets differ.

    Args:
        domain: One of ``DOMAINS``.
        count: Number of pairs.
        seed: Seed of the pairs; it is part of their keys.
    """
    modality, known, render = DOMAINS[domain]
    rng, pairs = random.Random(f"{domain} edited {seed}"), dict[tuple[str, ...], Pair]()
    while len(pairs) < count:
        names = tuple(rng.choice(known) for _ in ORDER)
        words, states, steps = list[str](), [names], rng.choice(PARTS["seen"].steps)
        while len(words) < steps:
            said, after = change_sequence(states[-1], known, rng)
            if after not in states:
                words.append(said)
                states.append(after)
        if states[-1] not in pairs:
            key = f"{domain}-{str(seed).replace(' ', '-')}-{len(pairs):06d}"
            query = Item((render(rng, names, f"{key}-source"), ", then ".join(words)))
            pairs[states[-1]] = Pair(key, domain, modality, query, Item((render(rng, states[-1], f"{key}-target"),)))
    return list(pairs.values())
