"""A process that decodes media: it ends with its parent, its memory is limited, and it may be killed at any time."""

import os
import signal
import threading
from contextlib import suppress
from dataclasses import replace
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
import torch

from lightning_conan.embedder import Encoded, OmniProcessor, ProcessorConfig, load_processor
from lightning_conan.embedder.packed_tensors import PackedTensors
from lightning_conan.items import Item, Side
from lightning_conan.media import Limits

MEMORY = 4 * 2**30
"""Bytes that a decoding process may take besides what it has after its imports: a PDF of kilobytes may inflate to gigabytes."""
Packed = tuple[bytes, list[tuple[torch.dtype, torch.Size]], np.ndarray]
"""The fields of ``PackedTensors``, whose bytes cross by value: a file descriptor would outlive a process that is killed."""

here: OmniProcessor
"""The processor of a decoding process."""


def limited(processor: OmniProcessor, limits: Limits) -> OmniProcessor:
    """Returns a processor with other caps on media files.

    Args:
        processor: A folder's processor.
        limits: The caps.
    """
    config: ProcessorConfig = replace(processor.config, limits=limits)
    return OmniProcessor(processor.tokenizer, config)


def prepare(folder: Path, limits: Limits) -> None:
    """Makes this process one that decodes: it leaves signals to its parent, ends with it, and its memory is limited.

    Args:
        folder: The checkpoint folder.
        limits: Caps on media files.
    """
    global here
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    here = limited(load_processor(folder), limits)
    limit_memory()


def end_with_parent() -> None:
    """Ends this process as soon as its parent has ended, however that came."""
    parent = parent_process()
    assert parent is not None, "a decoding process has one"
    parent.join()
    os._exit(1)


def limit_memory() -> None:
    """Caps this process' memory, where the system can."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def encode(item: Item, side: Side) -> Packed:
    """Encodes an item in a decoding process.

    Args:
        item: The item, its media as bytes.
        side: Side of a search.
    """
    packed = PackedTensors.pack(here(item, side))
    return packed.rest, list(packed.kinds), packed.tensors.numpy()


def opened(packed: Packed) -> Encoded:
    """Restores what a decoding process encoded."""
    rest, kinds, data = packed
    return PackedTensors(rest, kinds, torch.from_numpy(data)).unpack()  # type: ignore[no-any-return]
