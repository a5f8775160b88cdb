"""The line in small that the notebooks share: a world that a tiny model learns in a minute, and the checkpoint folders of each stage.

The first notebook that runs trains it into runs/notebooks/line, beside the notebooks' folder; the others take it from there.
"""

import logging
import random
import shutil
from pathlib import Path

from filelock import FileLock
from lightning import LightningDataModule, Trainer, seed_everything

from datamodules import RehearsalData, SpecialistData
from datamodules.shards.write import write_shards
from datamodules.toy_world.draw import SIDE, Thing, draw_scene
from datamodules.toy_world.pairs import FRAMES, MOTIONS, film, page_of, picture
from datamodules.toy_world.sounds import EVENT, sound
from lightning_conan.embedder import Provenance, save_folder, tiny_embedder
from lightning_conan.fusion import Recipe, fuse_folders
from lightning_conan.items import Item, Media, Medium, Pair
from lightning_conan.media import encode_audio
from lightning_conan.stages import Pretraining, ProjectorRecovery, Rehearsal, Specialist
from lightning_conan.training import Lora, Stage, Training

ROOT = Path(__file__).resolve().parents[1] / "runs" / "notebooks"
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle", "star")
LOOKS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
MEDIA: tuple[Medium, ...] = ("image", "video", "document", "audio")
KINDS_OF_SOUND = ("high beep", "low buzz", "rising chirp", "falling chirp", "loud noise", "click", "high bell", "low hum")
TRAINING_PAIRS = 480


def draw(kind: Medium, count: int, seed: str) -> list[Pair]:
    """Draws media with their captions: a coloured shape, one that moves, a page that names it, a sound.

    Args:
        kind: image, video, document or audio.
        count: Number of pairs.
        seed: Another seed, other files.
    """
    rng = random.Random(f"{kind} {seed}")
    return [draw_pair(kind, number, f"{kind}-{seed}-{number:03d}", rng) for number in range(count)]


def draw_pair(kind: Medium, number: int, key: str, rng: random.Random) -> Pair:
    """Draws one pair.

    Args:
        kind: image, video, document or audio.
        number: Its number, which picks the colour and shape, or the sound.
        key: Its key, which names its file.
        rng: Random numbers, for all else.
    """
    colour, shape = LOOKS[number % len(LOOKS)]
    thing = Thing(colour, shape, "large", SIDE / 2 + rng.uniform(-3, 3), SIDE / 2 + rng.uniform(-3, 3))
    if kind == "image":
        media, caption = picture("image", draw_scene([thing], rng.randint(200, 255)), key), f"a {colour} {shape}"
    elif kind == "video":
        move = rng.choice(list(MOTIONS))
        path = [((step - FRAMES // 2) * MOTIONS[move][0], (step - FRAMES // 2) * MOTIONS[move][1]) for step in range(FRAMES)]
        media, caption = film(rng, thing, path, [], key), f"a {colour} {shape} moves {move}"
    elif kind == "document":
        media, caption = page_of(rng, [colour, shape], key), f"a page that says {colour} {shape}"
    else:
        media, caption = (
            draw_sound(KINDS_OF_SOUND[number % len(KINDS_OF_SOUND)], key, rng),
            f"a {KINDS_OF_SOUND[number % len(KINDS_OF_SOUND)]}",
        )
    return Pair(key, kind, kind, Item((media,)), Item((caption,)))


def draw_sound(name: str, key: str, rng: random.Random) -> Media:
    """Draws a sound, a little out of tune, as a FLAC file.

    Args:
        name: One of ``KINDS_OF_SOUND``.
        key: Name of the file, without suffix.
        rng: Random numbers.
    """
    import torch

    noise = torch.rand(EVENT, generator=torch.Generator().manual_seed(rng.getrandbits(62))) * 2 - 1
    return Media("audio", encode_audio(sound(name, rng.uniform(0.95, 1.05), noise) * rng.uniform(0.5, 1.0)), f"{key}.flac")


def quiet() -> None:
    """Keeps logs and warnings of libraries out of the notebooks: they differ by machine."""
    import warnings

    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_conan", "datamodules"):
        logging.getLogger(name).setLevel(logging.ERROR)


def trainer(root: Path, steps: int = -1, **options: object) -> Trainer:
    """Makes a Trainer on one CPU that prints nothing.

    Args:
        root: Folder for what it may write.
        steps: Number of steps.
        options: Further options.
    """
    silent = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
    found = {"accelerator": "cpu", "devices": 1, "max_steps": steps, "max_epochs": -1, "default_root_dir": root} | silent
    return Trainer(**(found | options))


def fit(stage: Stage, data: LightningDataModule, steps: int, out: Path) -> Path:
    """Trains a stage and writes its checkpoint folder.

    Args:
        stage: The stage.
        data: Its data.
        steps: Number of steps.
        out: The folder to write.
    """
    seed_everything(0, verbose=False)
    trainer(out.parent / "work", steps).fit(stage, data)
    stage.write_folder(out)
    return out


def line() -> Path:
    """Returns the folder that holds packed/ and the checkpoint folders base, image, video, document, audio, fused, recovered and final."""
    quiet()
    place = ROOT / "line"
    ROOT.mkdir(parents=True, exist_ok=True)
    with FileLock(ROOT / "line.lock"):
        if not place.is_dir():
            beside = ROOT / "line.unfinished"
            shutil.rmtree(beside, ignore_errors=True)
            train(beside)
            beside.rename(place)
    return place


def train(root: Path) -> None:
    """Trains every stage.

    Args:
        root: Folder to write.
    """
    for kind in MEDIA:
        write_shards(draw(kind, TRAINING_PAIRS, "train"), root / "packed" / kind)
    packed = {kind: root / "packed" / kind for kind in MEDIA}
    visual = {kind: packed[kind] for kind in ("image", "video", "document")}
    few = {"num_workers": 0, "cache_gb": 1, "batch_size": 24}
    start = save_folder(root / "start", *tiny_embedder(0), Provenance("base"))
    base = fit(Pretraining(start, settings(1e-3)), RehearsalData(visual, **few), STEPS["base"], root / "base")
    for kind in MEDIA:
        own = (
            {"train_fully": ("audio_encoder.", "audio_projector."), "alone_steps": STEPS["audio"] // 2} if kind == "audio" else {}
        )
        stage = Specialist(base, kind, settings(1e-3), Lora(rank=16, alpha=16), **own)
        fit(stage, SpecialistData(packed[kind], **few), STEPS[kind], root / kind)
    fuse_folders(Recipe(base, {kind: root / kind for kind in MEDIA}), root / "fused")
    recovery = ProjectorRecovery(root / "fused", settings(2e-3))
    fit(recovery, SpecialistData(packed["audio"], **few), STEPS["recovered"], root / "recovered")
    rehearsal = Rehearsal(root / "recovered", settings(1.5e-3), Lora(rank=16, alpha=16))
    fit(rehearsal, RehearsalData(packed, **few), STEPS["final"], root / "final")


STEPS = {"base": 130, "image": 50, "video": 30, "document": 40, "audio": 140, "recovered": 40, "final": 80}


def settings(lr: float) -> Training:
    """Returns the settings that all stages share.

    Args:
        lr: Learning rate.
    """
    return Training(lr=lr, warmup_steps=10, temperature=0.05)
