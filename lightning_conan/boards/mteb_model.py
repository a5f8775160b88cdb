"""Exported folders for mteb, which builds no model from a local folder by itself."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

from lightning_conan.boards.mteb_rows import KINDS, ordered
from lightning_conan.embedder.checkpoint import embeds_as, load_processor, read_config, read_provenance
from lightning_conan.embedder.checkpoint.export import MODALITY_CONFIG
from lightning_conan.embedder.checkpoint.folder import open_tensors


def model_meta(folder: Path, name: str | None = None) -> ModelMeta:
    """Describes a folder to mteb: its results stand under this name and revision.

    Args:
        folder: A checkpoint folder, or one that `conan export --to sentence-transformers` wrote, which mteb can then load.
        name: ``OWNER/NAME``; by default ``lightning-conan`` and the folder's name.

    Raises:
        ValueError: The folder holds no model.

    Example:
        >>> from lightning_conan.boards.mteb_model import model_meta
        >>> from lightning_conan.embedder import Provenance, save_folder, tiny_embedder
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as root:
        ...     meta = model_meta(save_folder(Path(root) / "tiny", *tiny_embedder(), Provenance("base")))
        >>> meta.name, meta.modalities
        ('lightning-conan/tiny', ['text', 'image', 'video', 'audio'])
    """
    folder = Path(folder)
    provenance, processor = read_provenance(folder), load_processor(folder)
    specs = open_tensors(folder).specs.values()
    config = folder / MODALITY_CONFIG
    kinds = json.loads(config.read_text())["modality_config"] if config.is_file() else KINDS
    described: dict[str, Any] = {
        "loader": partial(load, folder=folder) if (folder / "modules.json").is_file() else None,
        "name": name or f"lightning-conan/{folder.resolve().name}",
        "revision": embeds_as(provenance, processor).replace(":", "-"),
        "modalities": [kind for kind in KINDS if kind in kinds],
        "embed_dim": read_config(folder).dim,
        "n_parameters": sum(spec.nbytes // spec.dtype.itemsize for spec in specs),
        "framework": ["PyTorch", "Sentence Transformers"],
        "similarity_fn_name": ScoringFunction.COSINE,
        "use_instructions": True,
    }
    return ModelMeta.create_empty(described)


def mteb_model(folder: Path, device: str | None = None) -> SentenceTransformerEncoderWrapper:
    """Loads an exported folder for ``mteb.evaluate``.

    Args:
        folder: A folder that `conan export --to sentence-transformers` wrote.
        device: Device of the model; by default what there is.
    """
    whole = "lightning_conan" in (Path(folder) / "modules.json").read_text()
    kind = ExportedEncoder if whole else SentenceTransformerEncoderWrapper
    found = kind(SentenceTransformer(str(folder), trust_remote_code=True, device=device))
    found.mteb_model_meta = model_meta(folder)
    return found


def load(name: str, revision: str | None = None, device: str | None = None, *, folder: Path) -> Any:
    """Loads an exported folder for mteb's ``ModelMeta.load_model``.

    Args:
        name: The model's name in mteb.
        revision: Its revision there.
        device: Device of the model.
        folder: The exported folder.
    """
    return mteb_model(folder, device)


class ExportedEncoder(SentenceTransformerEncoderWrapper):
    """mteb's own wrapper, which leaves it to the model to sample frames and to resample sounds.

    mteb's collators drop a video's frame rate, and with it the times that the model was trained with. A model that reads queries
    and documents differently embeds the inputs of other tasks as documents.
    """

    def encode(self, inputs: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, **kwargs: Any) -> np.ndarray:
        """Embeds the inputs of a loader.

        Args:
            inputs: A ``DataLoader[BatchedInput]``.
            task_metadata: The task; its name and type choose the prompt.
            hf_split: Split of its data.
            hf_subset: Subset of its data.
            kwargs: mteb's ``prompt_type``, and options of ``SentenceTransformer.encode``.
        """
        side = kwargs.pop("prompt_type", None)
        name = self.get_prompt_name(task_metadata, side)
        prompt = (self.model_prompts or {}).get(name) if name else None
        encode = self.model.encode_query if side == PromptType.query else self.model.encode_document
        rows, found = list[Any](), list[np.ndarray]()
        for batch in inputs:
            names = ordered([*batch])
            rows += [dict(zip(names, values, strict=True)) for values in zip(*(batch[kind] for kind in names), strict=True)]
            if names != ["text"]:  # media are encoded batch by batch, texts together, sorted by length
                found.append(encode(rows, prompt=prompt, **{**kwargs, "show_progress_bar": False}))
                rows = []
        if rows:
            found.append(encode(rows, prompt=prompt, **kwargs))
        return np.concatenate(found)
