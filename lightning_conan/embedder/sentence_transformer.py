"""A sentence-transformers module of the whole embedder; exported folders name it in ``modules.json``."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from sentence_transformers.base.modules import InputModule
from torch import Tensor
from torchaudio.functional import resample

from lightning_conan.embedder.checkpoint import load_folder, save_folder
from lightning_conan.embedder.checkpoint.provenance import Provenance
from lightning_conan.embedder.model import OmniEmbedder
from lightning_conan.embedder.packing import Encoded
from lightning_conan.embedder.processor import Decoded, OmniProcessor
from lightning_conan.items import MODALITIES, Media, Modality, Side, split_page
from lightning_conan.media import Clip
from lightning_conan.media.audio import SAMPLE_RATE
from lightning_conan.media.image import rgb_tensor


class OmniModule(InputModule):
    """Embeds text, images, videos, pages and sounds, one vector each.

    An input is a text; a PIL image; or a mapping from ``text``, ``image``, ``video``, ``document`` and ``audio`` to
    content, several of which make one mixed input in their order. Content is a path (``report.pdf#page=3``), a PIL image, a
    video's (frames, 3, height, width) uint8 array with its ``fps``, of which the folder's sampling takes some, or
    ``{"array": samples, "sampling_rate": rate}`` with floats between -1 and 1. A prompt is the system instruction.
    ``encode_query`` and ``encode_document`` say on which side an input is, where the model cares.
    """

    config_file_name = "omni_processor.json"
    save_in_root = True

    def __init__(self, model: OmniEmbedder, processor: OmniProcessor, provenance: Provenance) -> None:
        super().__init__()
        self.model, self.processor, self.provenance = model, processor, provenance
        self.tokenizer = processor.tokenizer

    @classmethod
    def load(cls, model_name_or_path: str, **kwargs: Any) -> "OmniModule":
        """Loads an exported folder, strictly."""
        options = kwargs.get("model_kwargs") or {}
        dtype = options.get("dtype", options.get("torch_dtype"))
        dtype = None if dtype == "auto" else dtype  # the folder's own
        wanted = {name: kwargs[name] for name in ("revision", "token", "local_files_only") if kwargs.get(name) is not None}
        folder = folder_of(model_name_or_path, cache_dir=kwargs.get("cache_folder"), **wanted)
        return cls(*load_folder(folder, dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype))

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Writes weights, processor and provenance into the library's folder, which holds other files too."""
        with TemporaryDirectory(dir=output_path) as scratch:
            written = save_folder(Path(scratch) / "model", self.model, self.processor, self.provenance)
            shutil.copytree(written, output_path, dirs_exist_ok=True)

    @property
    def modalities(self) -> list[Any]:
        """What it takes."""
        return [*MODALITIES, "message"]

    def get_embedding_dimension(self) -> int:
        """Length of an embedding."""
        return int(self.model.config.dim)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Encodes inputs; nothing is padded yet."""
        side = self.side(kwargs.get("task"))
        parts = (parts_of(value, self.processor) for value in inputs)
        return {"encoded": [self.processor.encode(own, prompt or None, side) for own in parts], "side": side}

    def side(self, task: str | None) -> Side:
        """The side that the library's ``task`` means.

        Raises:
            ValueError: None was named, and the model reads queries and candidates differently.
        """
        if task is None and self.processor.config.tells_sides:
            raise ValueError("This model tells queries from candidates: call encode_query or encode_document, not encode.")
        return "target" if task == "document" else "query"

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds ``sentence_embedding``."""
        return {**features, "sentence_embedding": self.embed(features["encoded"], features["side"])}

    def embed(self, encoded: list[Encoded], side: Side) -> Tensor:
        """Unit-norm embeddings."""
        found: Tensor = self.model.embed(encoded)
        return found


def folder_of(name: str, **options: Any) -> Path:
    """A local folder, or a repository's files downloaded from the hub, with the hub's options."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, **options))


def parts_of(value: Any, processor: OmniProcessor) -> list[str | Decoded]:
    """The parts of one input, decoded.

    Raises:
        ValueError: Something that is none of the documented inputs.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, Image.Image):
        return [upright(value)]
    if isinstance(value, Mapping) and value and set(value) <= set(MODALITIES):
        return [decoded(name, content, processor) for name, content in value.items()]
    raise ValueError(f"An input must be a text, a PIL image or a mapping from {list(MODALITIES)} to content, got {value!r:.80}.")


def decoded(modality: Modality, content: Any, processor: OmniProcessor) -> str | Decoded:
    """One part's content, decoded."""
    if modality == "text":
        return str(content)
    if isinstance(content, str | Path):
        name, page = split_page(str(content))
        return processor.decode(Media(modality, Path(name), name, page=page))
    if isinstance(content, Image.Image) and modality in ("image", "document"):
        return upright(content)
    if modality == "audio" and isinstance(content, Mapping) and {"array", "sampling_rate"} <= set(content):
        samples = np.asarray(content["array"])
        if not np.issubdtype(samples.dtype, np.floating):
            raise ValueError(f"Samples must be floats between -1 and 1, got {samples.dtype}. Divide them by what is loudest.")
        return waveform(torch.as_tensor(samples, dtype=torch.float32), int(content["sampling_rate"]))
    if modality == "video" and isinstance(content, Mapping) and {"frames", "fps"} <= set(content):
        frames, fps = np.asarray(content["frames"]), float(content["fps"])
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
            raise ValueError(f"Frames must be uint8 of shape (frames, 3, height, width), got {frames.dtype} of {frames.shape}.")
        wanted = processor.config.sampling.indices(len(frames), fps)
        return Clip(torch.as_tensor(frames[wanted]), [index / fps for index in wanted])
    raise ValueError(
        f"A {modality} must be a path, a PIL image, an array with its rate or frames with their fps, got {content!r:.80}."
    )


def upright(image: Image.Image) -> Tensor:
    """A PIL image's pixels, turned as its EXIF says, as a file's are."""
    return rgb_tensor(ImageOps.exif_transpose(image))


def waveform(samples: Tensor, rate: int) -> Tensor:
    """Mono at 16 kHz; channels stand first."""
    mono = samples.mean(dim=0) if samples.ndim == 2 else samples
    return mono if rate == SAMPLE_RATE else resample(mono, rate, SAMPLE_RATE)
