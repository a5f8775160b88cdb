"""A sentence-transformers module of the whole embedder; exported folders name it in ``modules.json``."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sentence_transformers.base.modules import InputModule
from torch import Tensor

from lightning_conan.embedder.checkpoint import load_folder, save_folder
from lightning_conan.embedder.checkpoint.export import write_modalities
from lightning_conan.embedder.checkpoint.provenance import Provenance
from lightning_conan.embedder.model import OmniEmbedder
from lightning_conan.embedder.packing import Encoded
from lightning_conan.embedder.processor import OmniProcessor
from lightning_conan.embedder.sentence_inputs import InputReader
from lightning_conan.items import Side


class OmniModule(InputModule):
    """Embeds text, images, videos, document pages and audio clips, one vector each.

    An input is of any form of the library's (``sentence_transformers.base.modality_types``): a text; a local path of a
    medium; a PIL image; an array or tensor (1 or 2 axes are audio, 3 an image, 4 a video); a dictionary from ``text``,
    ``image``, ``video``, ``document`` and ``audio`` to content, several of which make one mixed input in their order; a
    pair; a chat message or a list of them. URLs are not fetched. Content is

    - a path (``report.pdf#page=3``), ``{"path": ..., "start": seconds, "end": seconds}``, or a ``data:`` URI in base64;
    - a PIL image, or uint8 pixels, RGB or gray, channels first or last; of a video the frames, in an array or in a list of
      images, which may be paths;
    - ``{"array": frames, "video_metadata": {"fps": ...}}`` or ``{"frames": ..., "fps": ...}``, of which the folder's
      sampling takes some (without metadata of 24 a second, as transformers does); with
      ``processing_kwargs={"video": {"do_sample_frames": False}}`` all;
    - ``{"array": samples, "sampling_rate": rate}`` or samples at 16 kHz, floats between -1 and 1;
    - torchcodec's ``VideoDecoder`` or ``AudioDecoder``; or a list of any of these.

    A prompt is the system instruction. ``encode_query`` and ``encode_document`` say on which side an input is, where the
    model cares.
    """

    config_file_name = "omni_processor.json"
    save_in_root = True

    def __init__(self, model: OmniEmbedder, processor: OmniProcessor, provenance: Provenance) -> None:
        super().__init__()
        self.model, self.processor, self.provenance = model, processor, provenance
        self.tokenizer = processor.tokenizer

    @classmethod
    def load(cls, model_name_or_path: str, **kwargs: Any) -> "OmniModule":
        """Loads an exported folder strictly.

        Args:
            model_name_or_path: An exported folder, or a repository on the hub.
            kwargs: Of the library's options ``model_kwargs`` (its dtype), ``cache_folder``, ``revision``, ``token`` and
                ``local_files_only``.
        """
        options = kwargs.get("model_kwargs") or {}
        dtype = options.get("dtype", options.get("torch_dtype"))
        dtype = None if dtype == "auto" else dtype  # the folder's own
        wanted = {name: kwargs[name] for name in ("revision", "token", "local_files_only") if kwargs.get(name) is not None}
        folder = folder_of(model_name_or_path, cache_dir=kwargs.get("cache_folder"), **wanted)
        return cls(*load_folder(folder, dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype))

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Writes weights, processor and provenance into the library's folder, which holds other files too.

        Args:
            output_path: An existing folder of the library.
            args: Unused.
            kwargs: Unused.
        """
        with TemporaryDirectory(dir=output_path) as scratch:
            written = save_folder(Path(scratch) / "model", self.model, self.processor, self.provenance)
            shutil.copytree(written, output_path, dirs_exist_ok=True)
        write_modalities(Path(output_path), self.processor.modalities)

    @property
    def modalities(self) -> list[Any]:
        """Supported modalities."""
        return [*self.processor.modalities, "message"]

    def get_embedding_dimension(self) -> int:
        """Length of an embedding."""
        return int(self.model.config.dim)

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        processing_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Encodes inputs; nothing is padded yet.

        Args:
            inputs: Inputs in any of the library's forms.
            prompt: The system instruction.
            processing_kwargs: Of the library's only ``{"video": {"do_sample_frames": ...}}``.
            kwargs: The library's ``task`` tells queries from candidates.

        Raises:
            ValueError: An input of another form, or other settings of the processor: the folder has its own.
        """
        side = self.side(kwargs.get("task"))
        reader = InputReader(self.processor, samples_frames(processing_kwargs or {}))
        return {"encoded": [reader.encode(value, prompt, side) for value in inputs], "side": side}

    def side(self, task: str | None) -> Side:
        """Side of a search that the library's ``task`` names.

        Raises:
            ValueError: None was named, and the model reads queries and candidates differently.
        """
        if task is None and self.processor.config.tells_sides:
            raise ValueError("This model tells queries from candidates: call encode_query or encode_document, not encode.")
        return "target" if task == "document" else "query"

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds ``sentence_embedding``.

        Args:
            features: Result of ``preprocess``.
            kwargs: Unused.
        """
        return {**features, "sentence_embedding": self.embed(features["encoded"], features["side"])}

    def embed(self, encoded: list[Encoded], side: Side) -> Tensor:
        """Unit-norm embeddings, which subclasses may compute in another way for queries.

        Args:
            encoded: Encoded items.
            side: Side of a search.
        """
        found: Tensor = self.model.embed(encoded)
        return found


def folder_of(name: str, **options: Any) -> Path:
    """Returns a local folder, or downloads a repository's files from the hub.

    Args:
        name: A folder, or the repository's OWNER/NAME.
        options: Options of ``snapshot_download``.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, **options))


def samples_frames(settings: Mapping[str, Any]) -> bool:
    """True unless the library's ``processing_kwargs`` ask for all frames of a video.

    Raises:
        ValueError: Other settings.
    """
    video = dict(settings.get("video") or {})
    sample = video.pop("do_sample_frames", True)
    if set(settings) - {"video"} or video or not isinstance(sample, bool):
        raise ValueError(
            f'processing_kwargs may be {{"video": {{"do_sample_frames": false}}}}, got {dict(settings)}. All else is read from '
            "the folder's omni_processor.json."
        )
    return sample
