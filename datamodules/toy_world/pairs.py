"""The toy world's pairs: a caption and the scene, clip, page or sound that it describes."""

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from PIL import Image

from datamodules.toy_world.draw import COLOURS, SHAPES, SIDE, Thing, draw_page, draw_scene, to_frames
from datamodules.toy_world.sounds import EVENT, SOUNDS, sound
from lightning_conan.items import Item, Media, Medium, Modality, Pair
from lightning_conan.media import encode_audio, encode_video

WORDS = tuple(
    "lamp river stone bread cloud horse music paper glass wheel plant chair snow bridge candle forest mirror window "
    "garden silver button pocket rocket spider".split()
)
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
FRAMES, FPS = 8, 4


def picture(modality: Medium, image: Image.Image, name: str, format: str = "png") -> Media:
    """Encodes an image file.

    Args:
        modality: ``image`` or ``document``.
        image: Image to encode.
        name: Name of the file, without suffix.
        format: ``png`` or ``jpeg``.
    """
    buffer = io.BytesIO()
    image.save(buffer, format, **({"quality": 92} if format == "jpeg" else {}))
    return Media(modality, buffer.getvalue(), f"{name}.{'jpg' if format == 'jpeg' else format}")


def thing(rng: random.Random, x: float, y: float) -> Thing:
    """A random object near a place.

    Args:
        rng: Random numbers.
        x: Horizontal pixel of the place.
        y: Vertical pixel of the place, from the top.
    """
    jitter = [rng.uniform(-2, 2) for _ in range(2)]
    size = rng.choice(("small", "large"))
    return Thing(rng.choice(list(COLOURS)), rng.choice(SHAPES), size, x + jitter[0], y + jitter[1])


def draw_single(rng: random.Random, key: str) -> tuple[str, Media]:
    """One object somewhere, for the base model.

    Args:
        rng: Random numbers.
        key: The pair's key, which names its files.
    """
    column, row = rng.choice(("left", "center", "right")), rng.choice(("top", "middle", "bottom"))
    places = {"left": 12, "top": 12, "center": 24, "middle": 24, "right": 36, "bottom": 36}
    one = thing(rng, places[column], places[row])
    image = draw_scene([one], rng.randint(200, 255))
    return f"a {one.looks} at the {row} {column}", picture("image", image, key)


def draw_image(rng: random.Random, key: str) -> tuple[str, Media]:
    """Two objects and how they lie to each other.

    Args:
        rng: Random numbers.
        key: The pair's key, which names its files.
    """
    relation = rng.choice(list(RELATIONS))
    dx, dy = RELATIONS[relation]
    x, y = SIDE / 2 + rng.uniform(-5, 5) * (dx == 0), SIDE / 2 + rng.uniform(-5, 5) * (dy == 0)
    one, other = thing(rng, x + 11 * dx, y + 11 * dy), thing(rng, x - 11 * dx, y - 11 * dy)
    image = draw_scene([one, other], rng.randint(200, 255))
    return f"a {one.looks} {relation} a {other.looks}", picture("image", image, key, rng.choice(("png", "jpeg")))


def film(rng: random.Random, mover: Thing, path: Sequence[tuple[int, int]], rest: Sequence[Thing], key: str) -> Media:
    """An MP4 of one thing that moves past others at rest.

    Args:
        rng: Random numbers.
        mover: Thing that moves.
        path: Its offsets, frame by frame, in steps of five pixels.
        rest: Things at rest.
        key: The pair's key, which names its files.
    """
    x, y = SIDE / 2 + rng.uniform(-3, 3), SIDE / 2 + rng.uniform(-3, 3)
    shade, images = rng.randint(200, 255), []
    for dx, dy in path:
        images.append(draw_scene([*rest, replace(mover, x=x + 5 * dx, y=y + 5 * dy)], shade))
    return Media("video", encode_video(to_frames(images), FPS, "mpeg4"), f"{key}.mp4")


def walk(moves: Sequence[str]) -> list[tuple[int, int]]:
    """Places of something that makes moves of equal length, one after the other."""
    steps = [MOTIONS[moves[step * len(moves) // FRAMES]] for step in range(FRAMES)]
    return [(sum(dx for dx, _ in steps[:end]), sum(dy for _, dy in steps[:end])) for end in range(1, FRAMES + 1)]


def draw_motion(rng: random.Random, key: str) -> tuple[str, Media]:
    """One object that moves one way, for the base model.

    Args:
        rng: Random numbers.
        key: The pair's key, which names its files.
    """
    move, mover = rng.choice(list(MOTIONS)), thing(rng, 0, 0)
    path = [((step - 4) * dx // 2, (step - 4) * dy // 2) for step, (dx, dy) in enumerate([MOTIONS[move]] * FRAMES)]
    return f"a {mover.looks} moves {move}", film(rng, mover, path, [], key)


def draw_video(rng: random.Random, key: str) -> tuple[str, Media]:
    """An object that moves one way and then another, past one that rests.

    Args:
        rng: Random numbers.
        key: The pair's key, which names its files.
    """
    moves = rng.sample(list(MOTIONS), 2)
    mover, rest = thing(rng, 0, 0), thing(rng, *rng.choice([(9, 9), (39, 9), (9, 39), (39, 39)]))
    caption = f"a {mover.looks} moves {moves[0]} then {moves[1]}, past a {rest.looks}"
    return caption, film(rng, mover, walk(moves), [rest], key)


def page_of(rng: random.Random, words: Sequence[str], key: str) -> Media:
    """A page with some words, as a PNG.

    Args:
        rng: Random numbers.
        words: One a line.
        key: The pair's key, which names its files.
    """
    return picture("document", draw_page(words, rng.randint(220, 255), rng.randint(1, 6)), key)


def draw_title(rng: random.Random, key: str) -> tuple[str, Media]:
    """A page with one or two words on any of its lines, for the base model.

    Args:
        rng: Random numbers.
        key: The pair's key, which names its files.
    """
    words = [rng.choice(WORDS) for _ in range(rng.randint(1, 2))]
    lines = [*words, *[""] * (3 - len(words))]
    rng.shuffle(lines)
    return f"a page that says {' '.join(word for word in lines if word)}", page_of(rng, lines, key)


def draw_document(rng: random.Random, key: str) -> tuple[str, Media]:
    """A page of three words.

    Args:
        rng: Random numbers.
        key: The pair's key, which names its files.
    """
    words = [rng.choice(WORDS) for _ in range(3)]
    return f"a page that says {words[0]} {words[1]} {words[2]}", page_of(rng, words, key)


def draw_audio(rng: random.Random, key: str) -> tuple[str, Media]:
    """Three sounds, one after the other, out of tune, uneven in loudness and time, in a noisy room.

    Args:
        rng: Random numbers.
        key: The pair's key, which names its files.
    """
    names = [rng.choice(SOUNDS) for _ in range(3)]
    return f"a {names[0]}, then a {names[1]}, then a {names[2]}", play(rng, names, key)


def play(rng: random.Random, names: Sequence[str], key: str) -> Media:
    """Three sounds, one after the other, as a FLAC file.

    Args:
        rng: Random numbers.
        names: Three of ``SOUNDS``.
        key: The pair's key, which names its file.
    """
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    hiss = torch.rand(3, EVENT, generator=generator) * 2 - 1
    parts = [
        sound(name, rng.uniform(0.95, 1.05), noise) * rng.uniform(0.45, 1.0) for name, noise in zip(names, hiss, strict=True)
    ]
    wave = torch.cat(parts).roll(rng.randint(-EVENT // 11, EVENT // 11))
    room = torch.rand(3 * EVENT, generator=generator) * 2 - 1
    wave = wave + rng.uniform(0.0, 0.02) * room
    return Media("audio", encode_audio(wave), f"{key}.flac")


DRAW: dict[str, tuple[Modality, Callable[[random.Random, str], tuple[str, Media]]]] = {
    "image": ("image", draw_image),
    "video": ("video", draw_video),
    "document": ("document", draw_document),
    "audio": ("audio", draw_audio),
}
"""Each task: the modality that owns it, and the function that draws one caption and its file."""


def draw_pairs(task: str, count: int, seed: int | str, avoid: frozenset[str] = frozenset()) -> list[Pair]:
    """``count`` pairs of a task from a seed, their captions all different and none among those to ``avoid``.

    The medium is the query and the caption the target; training and scoring go both ways.

    Args:
        task: One of ``DRAW``.
        count: Number of pairs.
        seed: Seed of the pairs; it is part of their keys.
        avoid: Captions that must not occur.

    Raises:
        ValueError: The task has too few different captions.
    """
    modality, draw = DRAW[task]
    rng = random.Random(f"{task} {seed}")
    name, pairs = str(seed).replace(" ", "-"), dict[str, Pair]()
    for _ in range(30 * count + 1000):
        if len(pairs) == count:
            break
        key = f"{task}-{name}-{len(pairs):06d}"
        caption, media = draw(rng, key)
        if caption not in avoid and caption not in pairs:
            pairs[caption] = Pair(key, task, modality, Item((media,)), Item((caption,)))
    if len(pairs) < count:
        raise ValueError(f"{task} has too few different captions: {len(pairs)} found, {count} asked for. Ask for fewer.")
    return list(pairs.values())
