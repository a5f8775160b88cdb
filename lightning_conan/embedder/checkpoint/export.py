"""Export: folders that sentence-transformers and transformers load, with a model card."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_conan.embedder.backbones import BackboneSpec
from lightning_conan.embedder.checkpoint.atomic import check_apart, whole_folder
from lightning_conan.embedder.checkpoint.card import write_card
from lightning_conan.embedder.checkpoint.folder import check_folder, load_processor, open_tensors, write_sidecars
from lightning_conan.embedder.checkpoint.provenance import GOLDEN, Provenance
from lightning_conan.embedder.checkpoint.publish import publishable
from lightning_conan.embedder.checkpoint.tensors import Spec
from lightning_conan.embedder.checkpoint.upstream import write_json
from lightning_conan.embedder.checkpoint.write_tensors import finite, write_shards
from lightning_conan.embedder.config import OmniConfig
from lightning_conan.embedder.model import OmniEmbedder
from lightning_conan.embedder.processor import OmniProcessor, tokens_of
from lightning_conan.items import Modality, Side

LIBRARY = "sentence_transformers"
OUR_MODULE = "lightning_conan.embedder.sentence_transformer.OmniModule"
REASONING_MODULE = "lightning_conan.reasoning.sentence_transformer.ReasoningModule"
MODALITY_CONFIG = "sentence_bert_config.json"
POOLING = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def export_folder(folder: Path, out: Path, stock: bool = False, scores: Mapping[str, Any] | None = None) -> None:
    """Exports a checkpoint so that ``SentenceTransformer(out)`` gives its embeddings.

    Args:
        folder: A checkpoint folder, dense or an adapter.
        out: The folder to write.
        stock: Only stock modules, a plain backbone for text, image and video, which loads without this package; a grafted audio
            encoder is dropped, the backbone's own stays, and a reasoning model embeds every query at once.
        scores: Scores of `conan test`, for the model card.

    Raises:
        ValueError: A folder that is invalid, weights that are not finite, or scores of another form.
    """
    check_apart(out, folder)
    provenance = publishable(check_folder(folder))
    config, processor, tensors = OmniConfig.from_pretrained(folder), load_processor(folder), open_tensors(folder)
    if stock and processor.family.audio_tower and not config.native_projector:
        raise ValueError(
            f"A stock export of {processor.family.title} must have its own audio encoder, {folder} has another: the plain class "
            "would start one at random. Export without --stock, or graft the backbone without --audio."
        )
    names = {name: stock_name(name, processor.family) if stock else name for name in tensors.specs}
    sources = {target: name for name, target in names.items() if target is not None}
    specs: dict[str, Spec] = {target: tensors.specs[name] for target, name in sources.items()}

    def tensor_of(target: str) -> Tensor:
        return finite(tensors[sources[target]], sources[target], folder)

    with whole_folder(out, provenance.state, provenance.modality) as scratch:
        write_shards(scratch, specs, tensor_of)
        write_modules(scratch, config.dim, None if stock else REASONING_MODULE if processor.config.reasons else OUR_MODULE)
        write_prompts(scratch, processor, stock)
        if stock:
            write_stock(scratch, config, processor, provenance)
        else:
            config.architectures = [OmniEmbedder.__name__]
            add_matryoshka(config, provenance)
            config.save_pretrained(scratch)
            write_modalities(scratch, processor.modalities)
            if (folder / GOLDEN).is_dir():  # they hold here, too, and are what tells whether they do
                shutil.copytree(folder / GOLDEN, scratch / GOLDEN)
        size = sum(spec.nbytes // spec.dtype.itemsize for spec in specs.values())
        write_card(scratch, provenance, config, size, scores, stock, processor.config.tells_sides)
        notes = {**provenance.notes, "exported": "stock" if stock else "whole"}
        write_sidecars(scratch, processor, replace(provenance, notes=notes))


def stock_name(name: str, family: BackboneSpec) -> str | None:
    """Name of a tensor in a published checkpoint of a family; None if that has no such tensor.

    Args:
        name: Our name.
        family: The backbone's family.
    """
    for ours, theirs in family.disk.items():
        if name.startswith(ours):
            return f"{theirs}{name.removeprefix(ours)}"
    return name if name == "lm_head.weight" else None


def add_matryoshka(config: Any, provenance: Provenance) -> None:
    """Adds the dimensions that the model was trained for: servers shorten embeddings only to those in the config.

    Args:
        config: The config to change.
        provenance: Its notes name the dimensions, if there are any.
    """
    if dims := provenance.notes.get("matryoshka_dims"):
        config.is_matryoshka, config.matryoshka_dimensions = True, list(dims)


def write_modules(scratch: Path, dim: int, ours: str | None) -> None:
    """Writes ``modules.json`` and the settings of each module; pooling in the old schema and in the new one.

    Args:
        scratch: The folder to export.
        dim: Length of an embedding.
        ours: Class of our module; None for stock modules.
    """
    stock = [("", f"{LIBRARY}.models.Transformer"), ("1_Pooling", f"{LIBRARY}.models.Pooling")]
    first = [("", ours)] if ours else stock
    modules = [*first, (f"{len(first)}_Normalize", f"{LIBRARY}.models.Normalize")]
    listed = [{"idx": index, "name": str(index), "path": path, "type": kind} for index, (path, kind) in enumerate(modules)]
    write_json(scratch / "modules.json", listed)
    for path, _ in modules[1:]:
        (scratch / path).mkdir()
    if not ours:
        old = {f"pooling_mode_{name}": name == "lasttoken" for name in POOLING}
        new = {"embedding_dimension": dim, "pooling_mode": "lasttoken", "include_prompt": True}
        write_json(scratch / "1_Pooling" / "config.json", {"word_embedding_dimension": dim, **old, **new})


def write_modalities(folder: Path, modalities: Sequence[Modality]) -> None:
    """Writes ``sentence_bert_config.json``, from which mteb reads the modalities of a model.

    Args:
        folder: The folder of the library's modules.
        modalities: Names of the model's modalities.
    """
    modes = {"method": "forward", "method_output_name": "sentence_embedding"}
    config = {"modality_config": dict.fromkeys((*modalities, "message"), modes), "module_output_name": "sentence_embedding"}
    write_json(folder / MODALITY_CONFIG, config)


def write_prompts(scratch: Path, processor: OmniProcessor, stock: bool) -> None:
    """Writes ``config_sentence_transformers.json``: a prompt is the system instruction; our modules add the side's hint.

    Args:
        scratch: The folder to export.
        processor: Its instruction and hints.
        stock: True to add the hints to the prompts.
    """
    sides: dict[str, Side] = {"query": "query", "document": "target"}
    prompts = {
        name: processor.instruction_of(None, side) if stock else processor.config.instruction for name, side in sides.items()
    }
    write_json(
        scratch / "config_sentence_transformers.json",
        {"model_type": "SentenceTransformer", "prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def write_stock(scratch: Path, config: OmniConfig, processor: OmniProcessor, provenance: Provenance) -> None:
    """Writes config, processors and chat template of a plain backbone with the same results.

    Args:
        scratch: The folder to export.
        config: Config of the whole model.
        processor: Its settings; its tokenizer's template and padding side are changed.
        provenance: Its notes.
    """
    backbone, family = config.backbone_config, processor.family
    backbone.architectures, backbone.dtype = [family.head_class], config.dtype
    add_matryoshka(backbone, provenance)
    backbone.save_pretrained(scratch)
    template = chat_template(processor)
    family.write_processors(scratch, processor, template)
    processor.tokenizer.chat_template = template  # write_sidecars saves the tokenizer once more
    processor.tokenizer.padding_side = "left"
    modes = {"method": "forward", "method_output_name": "last_hidden_state"}
    modalities = ("text", "image", "video", *(["audio"] if config.native_projector else []))
    write_json(
        scratch / MODALITY_CONFIG,
        {
            "transformer_task": "feature-extraction",
            "modality_config": {**dict.fromkeys(modalities, modes), "message": {**modes, "format": "structured"}},
            "module_output_name": "token_embeddings",
            "processing_kwargs": {"chat_template": {"add_generation_prompt": True}, **family.call_settings(processor.config)},
        },
    )


def chat_template(processor: OmniProcessor) -> str:
    """Chat template of our processor, its end token included; without a system turn it adds the targets' instruction."""
    settings, instruction = processor.config, processor.instruction_of(None, "target")
    video = "<|vision_start|><|video_pad|><|vision_end|>" if settings.wrap_videos else "<|video_pad|>"
    system = f"<|im_start|>system\n{instruction}<|im_end|>\n" if instruction else ""
    end, tokens = "<|endoftext|>" if settings.ends else "", tokens_of(processor.family)
    sound = "".join(tokens[name] for name in ("audio_start", "audio", "audio_end"))
    hears = f"{{%- elif part.type == 'audio' %}}{{{{- '{sound}' }}}}" if processor.family.audio_tower else ""
    return (
        f"{{%- if messages[0].role != 'system' %}}{{{{- {json.dumps(system, ensure_ascii=False)} }}}}{{%- endif %}}"
        "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
        "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for part in message.content %}"
        "{%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
        f"{{%- elif part.type == 'video' %}}{{{{- '{video}' }}}}{hears}"
        "{%- elif 'text' in part %}{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
        f"{{%- if add_generation_prompt %}}{{{{- '<|im_start|>assistant\\n{end}' }}}}{{%- endif %}}"
    )
