"""One tiny embedder and one tiny world a session; everything else is made from them."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, which inherits the above: more threads than cores spin
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"
# What other processes find: the server that ranks are forked from does not get this process' sys.path.
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (Path(__file__).parents[1], Path(__file__).parent)))

import pytest
import torch
from hypothesis import settings

from datamodules.shards.write import write_shards
from datamodules.toy_world import draw_pairs
from lightning_conan.cli.common.logging import quiet_libraries
from lightning_conan.embedder import Encoded, OmniEmbedder, OmniProcessor, Provenance, save_folder, tiny_embedder
from lightning_conan.items import Item, Media
from samples import flac, mp4, png

# The same examples in every run, however busy the machine; `pytest --hypothesis-profile default` explores others.
settings.register_profile("same", database=None, deadline=None, derandomize=True)
settings.load_profile("same")


def pytest_configure() -> None:
    quiet_libraries()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps tests that share a module's fixture in one of several processes: it would be made once in each."""
    for item in items:
        found = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
        if any(fixture.scope == "module" for fixtures in found.values() for fixture in fixtures):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))


LAUNCHER = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Removes a launcher's variables: Lightning sets them where it starts ranks, and starts none where it finds them."""
    for name in LAUNCHER:
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def tiny() -> tuple[OmniEmbedder, OmniProcessor]:
    """A model whose weights no test may change; ``fresh`` gives one of your own."""
    return tiny_embedder(0)


@pytest.fixture(scope="session")
def processor(tiny) -> OmniProcessor:
    return tiny[1]


@pytest.fixture
def fresh() -> OmniEmbedder:
    return tiny_embedder(0)[0]


@pytest.fixture(scope="session")
def items() -> dict[str, Item]:
    """One item of each kind, mixtures included."""
    image, other = Media("image", png(), "a.png"), Media("image", png(64, 40, 1), "b.png")
    video, sound = Media("video", mp4(), "a.mp4"), Media("audio", flac(), "a.flac")
    long = Media("audio", flac(2.3), "long.flac")
    return {
        "text": Item(("a small red circle",)),
        "instructed": Item(("a small red circle",), instruction="Find the picture."),
        "image": Item((image,)),
        "video": Item((video,)),
        "document": Item((Media("document", png(64, 48, 2), "page.png"),)),
        "audio": Item((sound,)),
        "long audio": Item((long,)),
        "image and text": Item((image, "make it blue")),
        "two images": Item((image, "then", other)),
        "video and sound": Item((video, sound)),
    }


@pytest.fixture(scope="session")
def encoded(items, processor) -> dict[str, Encoded]:
    return {name: processor(item) for name, item in items.items()}


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """Packed sets ``MODALITY`` of 20 pairs each."""
    root = tmp_path_factory.mktemp("world")
    for modality in ("image", "video", "document", "audio"):
        write_shards(draw_pairs(modality, 20, 0), root / modality, pairs_per_shard=8)
    return root


@pytest.fixture(scope="session")
def base(tiny, tmp_path_factory) -> Path:
    """A base folder."""
    model, processor = tiny
    return save_folder(tmp_path_factory.mktemp("folders") / "base", model, processor, Provenance("base"))


@pytest.fixture(scope="session")
def fused(tiny, tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp("states") / "fused", *tiny, Provenance("fused"))


@pytest.fixture(scope="session")
def recovered(tiny, tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp("states") / "recovered", *tiny, Provenance("recovered"))


@pytest.fixture
def one_thread():
    """Torch computes in one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
