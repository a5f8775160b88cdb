"""Grafting: a vision-language model with an audio encoder, a fresh projector and rows for new tokens (arXiv 2606.09331); or, of a
model that hears already, all of it.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from lightning_conan.embedder.audio import ENCODERS, audio_encoder_of
from lightning_conan.embedder.backbones import BackboneSpec
from lightning_conan.embedder.checkpoint.atomic import check_apart, whole_folder
from lightning_conan.embedder.checkpoint.folder import read_model, write_sidecars
from lightning_conan.embedder.checkpoint.foreign.report import ForeignReport
from lightning_conan.embedder.checkpoint.golden import write_golden
from lightning_conan.embedder.checkpoint.graft_backbone import Stacked, Turned, place_backbone, split_adapter, with_adapter
from lightning_conan.embedder.checkpoint.graft_inputs import add_own_tokens, backbone_part, check_inputs, family_of, fit_settings
from lightning_conan.embedder.checkpoint.provenance import Provenance
from lightning_conan.embedder.checkpoint.tensors import Spec, TensorFiles, Tensors, check_specs, tensor_paths
from lightning_conan.embedder.checkpoint.upstream import Upstream
from lightning_conan.embedder.checkpoint.write_tensors import finite, write_shards
from lightning_conan.embedder.config import OmniConfig
from lightning_conan.embedder.model import OmniEmbedder
from lightning_conan.embedder.processor import OWN_TOKENS, OmniProcessor, own_tokens
from lightning_conan.embedder.processor_config import ProcessorConfig
from lightning_conan.embedder.projector import Projector
from lightning_conan.terminal import Work

ROWS = ("backbone.language_model.embed_tokens.weight", "lm_head.weight")
AUDIO_SOURCES: dict[str, tuple[str, Callable[[PreTrainedConfig], PreTrainedConfig]]] = {
    "qwen3_omni_moe": ("thinker.audio_tower.", lambda config: config.thinker_config.audio_config),
    "whisper": ("model.encoder.", lambda config: config),
    "conan_omni": ("audio_encoder.", lambda config: config.audio_config),
}
"""Prefixes under which checkpoints of a ``model_type`` keep their audio encoder, and its config."""


@dataclass
class GraftReport:
    """Sources of a base folder's parts: its ``graft.json``.

    Args:
        backbone: Folder or hub name of the backbone.
        audio: Folder or hub name of the audio encoder's checkpoint.
        seed: Seed of the fresh parameters.
        parameters: Number of parameters by part.
        fresh: Tensors that started at random, and token rows.
        left_out: Skipped tensors of the backbone's checkpoint.
        nbytes: Bytes of tensors read, by source.
        adapter: What became of each key of the adapter that was merged into the backbone, if there was one.
        family: ``model_type`` of the backbone.
    """

    backbone: str
    audio: str
    seed: int
    parameters: dict[str, int] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    nbytes: dict[str, int] = field(default_factory=dict)
    adapter: ForeignReport | None = None
    family: str = ""


class Graft:
    """A base that is being assembled: each tensor comes from the backbone or the audio encoder, or is fresh.

    Args:
        backbone: Folder or hub name of a checkpoint of a known family; ``BACKBONE+ADAPTER`` merges a PEFT adapter into it.
        audio: Folder or hub name of a checkpoint that holds an audio encoder; None, or the backbone's, takes the encoder
            and projector that the backbone was trained with.
        settings: How inputs become tokens; sizes that the models fix are taken from them.
        hidden: Width of a fresh projector's hidden layer.
        seed: Of a fresh projector and the token rows.

    Raises:
        ValueError: Checkpoints of other kinds, or tensors that are not those of their configs.
    """

    def __init__(self, backbone: str, audio: str | None, settings: ProcessorConfig, hidden: int, seed: int) -> None:
        self.report = GraftReport(backbone, audio or backbone, seed)
        self.backbone, adapter = split_adapter(backbone)
        checkpoint = Upstream(self.backbone, ("",))
        backbone_config = backbone_part(checkpoint.config)
        family = family_of(backbone_config, backbone)
        self.report.family = family.name
        audio_encoder = None if is_own_audio(family, backbone_config, self.backbone, audio) else self.audio_source(str(audio))
        if audio_encoder is None:
            audio_config: Any = family.own_audio(backbone_config)
            hidden = audio_encoder_of(audio_config).bare_width(audio_config)
        else:
            audio_config = AUDIO_SOURCES[audio_encoder.config.model_type][1](audio_encoder.config)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
        check_inputs(checkpoint.folder, tokenizer, backbone_config, family)
        self.vocabulary = backbone_config.text_config.vocab_size
        vocabulary = dict(tokenizer.get_vocab())
        self.new_rows = add_own_tokens(tokenizer, backbone_config, own_tokens(family))
        self.grown = backbone_config.text_config.vocab_size - self.vocabulary
        self.processor = OmniProcessor(tokenizer, fit_settings(settings, backbone_config, audio_config))
        ids: dict[str, Any] = {
            f"{name}_token_id": self.processor.ids[name] for name in ("audio", "audio_start", "audio_end", "emb")
        }
        native = audio_encoder is None
        self.config = OmniConfig(backbone_config, audio_config, projector_hidden_size=hidden, native_projector=native, **ids)
        files = self.read_specs(family, audio_encoder)
        if adapter is not None:
            self.merge(adapter, files, vocabulary)
        self.draw(seed)

    def draw(self, seed: int) -> None:
        """Draws what no checkpoint has: token rows, and a projector between two that were not trained together.

        Args:
            seed: Of the numbers.
        """
        audio = self.config.audio_config
        self.fresh: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if not self.config.native_projector:
                width = audio_encoder_of(audio).width(audio)
                drawn = Projector(width, self.config.projector_hidden_size, self.config.dim).state_dict()
                self.fresh = {f"audio_projector.{name}": tensor.to(self.dtype) for name, tensor in drawn.items()}
            self.noise = torch.randn(2, len(OWN_TOKENS) + self.grown, self.config.dim)
        tokens = own_tokens(self.processor.family)
        self.report.fresh = [*self.fresh, *(f"row of {token}" for token in tokens)]

    def audio_source(self, audio: str) -> Upstream:
        """Opens the audio encoder's checkpoint, of which only the encoder is read.

        Raises:
            ValueError: A checkpoint without a known audio encoder.
        """
        kind = Upstream(audio, ()).config.model_type
        if kind not in AUDIO_SOURCES:
            raise ValueError(
                f"The audio encoder must come from a checkpoint of {sorted(AUDIO_SOURCES)}, {audio} is {kind!r}. "
                f"Encoders that fit: {sorted(ENCODERS)}."
            )
        return Upstream(audio, (AUDIO_SOURCES[kind][0],))

    def read_specs(self, family: BackboneSpec, audio_encoder: Upstream | None) -> Tensors:
        """Maps source tensors to the base's; each of the base's needs one, and each one is used.

        Args:
            family: The backbone's family.
            audio_encoder: Checkpoint of the audio encoder; None if it is the backbone's own.

        Returns:
            Tensors of the backbone.

        Raises:
            ValueError: Tensors that are not those of their configs.
        """
        deaf = family.audio_tower and audio_encoder is not None
        unheard = tuple(f"{lead}{family.audio_tower}" for lead in ("", "model.", "thinker.", "thinker.model.") if deaf)
        checkpoint = Upstream(self.backbone, ("",), (*family.skipped, *unheard))
        vision = Stacked(checkpoint.tensors())
        names, tied = place_backbone(vision, self.config)
        self.report.left_out = [*tied, *checkpoint.unwanted()]
        self.sources: dict[str, tuple[Tensors, str]] = {name: (vision, source) for name, source in names.items()}
        if audio_encoder is not None:
            heard, prefix = audio_encoder.tensors(), audio_encoder.prefixes[0]
            self.sources |= {f"audio_encoder.{name.removeprefix(prefix)}": (heard, name) for name in heard.specs}
        self.dtype = vision.specs[self.sources[ROWS[0]][1]].dtype if ROWS[0] in self.sources else torch.float32
        self.config.dtype = self.dtype
        with torch.device("meta"):
            shapes = {name: tuple(tensor.shape) for name, tensor in OmniEmbedder(self.config).state_dict().items()}
        for name, (tensors, source) in self.sources.items():
            if name.endswith(self.processor.family.turned) and tensors.specs[source].shape != shapes.get(name):
                self.sources[name] = Turned(tensors, source), source
        found = {name: tensors.specs[source] for name, (tensors, source) in self.sources.items()}
        old = {name: (self.vocabulary, *shape[1:]) if name in ROWS else shape for name, shape in shapes.items()}
        drawn = () if self.config.native_projector else ("audio_projector.",)
        wanted = {name: shape for name, shape in old.items() if not name.startswith(drawn)}
        check_specs(found, wanted, Path(f"{self.report.backbone} and {self.report.audio}"))
        # An audio encoder in another dtype takes the backbone's, as all that a stage writes does: what differs cannot be fused.
        kept = {name: spec.dtype for name, spec in found.items() if not name.startswith("audio_")}
        self.specs = {name: Spec(shape, kept.get(name, self.dtype)) for name, shape in shapes.items()}
        return vision

    def merge(self, adapter: str, files: Tensors, vocabulary: dict[str, int]) -> None:
        """Takes the backbone's tensors with an adapter merged into them.

        Args:
            adapter: The adapter's folder or hub name.
            files: Tensors of the backbone.
            vocabulary: Its token ids, without ours.
        """
        names = {name: source for name, (tensors, source) in self.sources.items() if tensors is files}
        merged, self.report.adapter = with_adapter(names, files, adapter, self.backbone, self.config, vocabulary)
        self.sources |= {name: (merged, name) for name in names}

    def __getitem__(self, name: str) -> Tensor:
        """One tensor of the base."""
        part = name.split(".")[0]
        self.report.parameters[part] = self.report.parameters.get(part, 0) + torch.Size(self.specs[name].shape).numel()
        if name in self.fresh:
            return self.fresh[name]
        tensors, source = self.sources[name]
        where = self.report.audio if part == "audio_encoder" else self.report.backbone
        self.report.nbytes[where] = self.report.nbytes.get(where, 0) + tensors.specs[source].nbytes
        tensor = finite(tensors[source], source, where).to(self.specs[name].dtype)
        return self.with_new_rows(tensor, self.noise[ROWS.index(name)]) if name in ROWS else tensor

    def with_new_rows(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Appends rows for new tokens, drawn like the others: around their mean, with their spread in each dimension.

        Args:
            rows: Rows of the known tokens.
            noise: Standard normal numbers, a row for each of ``OWN_TOKENS``, and for each row by which the vocabulary grew.
        """
        known = rows.float()
        drawn = (known.mean(dim=0) + noise * known.std(dim=0)).to(rows.dtype)
        result: Tensor = torch.cat([rows, drawn[len(OWN_TOKENS) :]])
        if self.new_rows:
            result[self.new_rows] = drawn[: len(self.new_rows)]
        return result


def is_own_audio(family: BackboneSpec, config: PreTrainedConfig, backbone: str, audio: str | None) -> bool:
    """True if the audio encoder is to be the backbone's own, with the projector that it was trained with.

    Args:
        family: The backbone's family.
        config: Config of the backbone.
        backbone: Its folder or hub name.
        audio: That of the audio encoder's checkpoint, if one is named.

    Raises:
        ValueError: None is named, and the backbone has none; or its projection is not a projector of ours.
    """
    own = family.own_audio(config)
    if audio is None and own is None:
        raise ValueError(
            f"graft needs both --backbone and --audio for {family.title}, which does not hear, got {backbone} alone. Name a "
            f"checkpoint of {sorted(AUDIO_SOURCES)}."
        )
    if own is None or (audio is not None and place_of(audio) != place_of(backbone)):
        return False
    audio_encoder_of(own).check_projection(own, config.text_config.hidden_size)
    return True


def place_of(source: str) -> str:
    """A local folder's absolute path: a relative one may look like a hub's OWNER/NAME."""
    return str(Path(source).resolve()) if Path(source).is_dir() else source


def graft_folder(
    backbone: str, audio: str | None, out: Path, settings: ProcessorConfig, hidden: int = 3072, seed: int = 0, golden: bool = True
) -> GraftReport:
    """Writes the base folder ``out``, whole or not at all, with ``graft.json`` beside its weights.

    Memory holds one tensor; the golden vectors need the whole model once.

    Args:
        backbone: Folder or hub name of a checkpoint of a known family, or ``BACKBONE+ADAPTER``.
        audio: Folder or hub name of a checkpoint that holds an audio encoder; None takes the backbone's own.
        out: The base folder to write.
        settings: Settings of the processor.
        hidden: Width of the projector's hidden layer.
        seed: Seed of the projector and the token rows.
        golden: False to write no golden vectors.
    """
    base, adapter = split_adapter(backbone)
    check_apart(out, base, *filter(None, [audio, adapter]))
    made = Graft(backbone, audio, settings, hidden, seed)
    with whole_folder(out, "base") as scratch:
        with Work("grafting", len(made.specs), "tensor") as work:

            def tensor_of(name: str) -> Tensor:
                work.advance()
                return made[name]

            write_shards(scratch, made.specs, tensor_of)
        made.config.architectures = [OmniEmbedder.__name__]
        made.config.save_pretrained(scratch)
        (scratch / "graft.json").write_text(json.dumps(asdict(made.report), indent=2) + "\n")
        if golden:
            tensors = TensorFiles(tensor_paths(scratch))
            model = read_model(OmniConfig.from_pretrained(scratch), tensors, scratch, made.dtype, torch.device("cpu"))
            write_golden(scratch, model, made.processor)
        parts = [place_of(part) for part in (base, adapter) if part]
        notes = {"backbone": "+".join(parts), "audio": place_of(audio or base), "seed": seed}
        write_sidecars(scratch, made.processor, Provenance("base", notes=notes))
    return made.report
