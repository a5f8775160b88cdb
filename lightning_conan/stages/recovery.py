"""Stage 3a, recover: the projectors alone (arXiv 2606.09331)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_conan.drift.hold import HeldDirections, Hold
from lightning_conan.embedder import Batch, Chunk, ChunkOutput, Encoded, State
from lightning_conan.embedder.checkpoint import embeds_as
from lightning_conan.embedder.modalities import spec_of
from lightning_conan.embedder.modalities.registry import known_specs
from lightning_conan.embedder.placing import placeholders
from lightning_conan.items import Item, Modality, Side
from lightning_conan.objectives import PairEmbeddings
from lightning_conan.retrieval.metric import hash_ids
from lightning_conan.terminal import track
from lightning_conan.training.bank import Bank
from lightning_conan.training.collectives import most, total, world_size
from lightning_conan.training.frozen_cache import FrozenOutputs
from lightning_conan.training.protocols import text_data
from lightning_conan.training.settings import Lora, Training
from lightning_conan.training.stage import Stage

AUDIO_PROJECTOR = spec_of("audio").projector
"""The default: what the paper recovers."""
BANK_BLOCK = 1024
"""Texts that are embedded and cached at once."""


class ProjectorRecovery(Stage):
    """Trains projectors for the fused backbone, and nothing else unless adapters are asked for.

    ``callbacks.FrozenBackbone`` proves that the rest did not move.

    Args:
        folder: The fused folder.
        training: Settings of training.
        projectors: Parameter name prefixes of the projectors; ``backbone.visual.merger.`` is that of vision. Several
            need data of all their modalities (``datamodules.RehearsalData``).
        lora: Adapters on the language backbone besides: the paper's other variant, which moves every other modality too.
        constants: A folder that caches embeddings of texts and the audio encoder's frames, by content and weights. With
            all but the audio projector frozen they never change: from the second epoch on only projector and backbone run,
            on audio alone. So it is with the projectors of other encoders of their own.
        constants_gb: The folder's largest size in GiB.
        bank: Makes every text of the training data a negative at every step, except those that the data names as right for one
            of the batch's audio clips; needs ``constants``.
        hold: Keeps the tokens' directions near the specialist's, by a penalty, a low-rank change, or both.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lightning_conan.embedder import Provenance, save_folder, tiny_embedder
        >>> with TemporaryDirectory() as root:
        ...     folder = save_folder(Path(root) / "fused", *tiny_embedder(), Provenance("fused"))
        ...     stage = ProjectorRecovery(folder, Training(lr=1e-3, optimizer="muon"))
        >>> stage.trainable_prefixes, stage.lora
        (('audio_projector.',), None)
    """

    accepts: ClassVar[tuple[State, ...]] = ("fused",)
    writes: ClassVar[State | None] = "recovered"

    def __init__(
        self,
        folder: Path,
        training: Training = Training(),  # noqa: B008  # frozen
        projectors: tuple[str, ...] = AUDIO_PROJECTOR,
        lora: Lora | None = None,
        constants: Path | None = None,
        constants_gb: float = 16.0,
        bank: bool = False,
        hold: Hold | None = None,
    ) -> None:
        super().__init__(folder, training)
        self.projectors, self.lora_settings = tuple(projectors), lora
        own = [spec for spec in known_specs() if spec.owned and {*spec.projector} <= {*self.projectors}]
        alone = {*self.projectors} == {prefix for spec in own for prefix in spec.projector}
        self.modality: Modality | None = own[0].name if alone and len(own) == 1 else None
        self.encoded = frozenset(spec.tower.name for spec in own if spec.tower)
        if constants is not None and (lora is not None or not alone):
            raise ValueError(
                f"constants hold only while the audio projector trains alone, or others behind encoders of their own, got "
                f"projectors={self.projectors} and lora={lora}. Leave one of them out."
            )
        if bank and constants is None:
            raise ValueError("bank needs the embeddings of all texts, which constants keeps, got constants=null. Name a folder.")
        rank = hold.rank if hold else None
        if rank is not None and lora is not None:
            raise ValueError(f"hold.rank and lora must not both be given, got {rank} and {lora}. Leave one of them out.")
        if hold is not None and hold.weight and not alone:
            raise ValueError(
                f"hold.weight needs projectors behind encoders of their own, such as the audio projector, got {self.projectors}."
            )
        self.hold = hold
        self.held: HeldDirections | None = None
        self.low_rank = Lora(rank, rank) if rank is not None else None
        self.with_bank = bank
        self.banks: dict[Side, Bank] = {}
        self.constants_folder, self.constants_gb = constants, constants_gb
        self.constants: FrozenOutputs | None = None

    @property
    @override
    def lora(self) -> Lora | None:
        return self.low_rank or self.lora_settings

    @property
    @override
    def lora_prefixes(self) -> tuple[str, ...]:
        return self.projectors if self.low_rank else ("backbone.language_model.",)

    @property
    @override
    def trainable_prefixes(self) -> tuple[str, ...]:
        return () if self.low_rank else self.projectors

    @override
    def prepare(self) -> None:
        super().prepare()
        if self.constants_folder is not None and self.device_mesh is not None:
            raise ValueError("constants are made by each rank at its own time, got strategy fsdp2. Use ddp, or leave them out.")
        if self.hold is not None and self.hold.weight and self.device_mesh is not None:
            raise ValueError("hold.weight needs whole layers on each rank, got strategy fsdp2. Use ddp, or leave it out.")

    @override
    def on_fit_start(self) -> None:
        if self.hold is not None and self.hold.weight:
            self.held = HeldDirections(self.hold, self.encoded, self.embedder)
        if self.constants_folder is not None:
            made_by = embeds_as(self.provenance, self.processor)
            arithmetic = (
                self.embedder.dtype,
                self.embedder.implementation,
                self.trainer.precision,
                self.trainer.strategy.root_device.type,
            )
            maker = ":".join([made_by, *map(str, arithmetic)])
            self.constants = FrozenOutputs(self.constants_folder, maker, self.constants_gb)

    @override
    def on_train_start(self) -> None:
        if not self.with_bank:
            return
        texts: dict[Side, dict[str, Item]] = {"query": {}, "target": {}}
        right: dict[Side, list[tuple[str, str]]] = {"query": [], "target": []}
        for side, text, other in text_data(self.trainer).texts():
            digest = text.content_hash()
            texts[side][digest] = text
            if other is not None:
                right[side].append((other, digest))
        with self.trainer.precision_plugin.forward_context():  # as in a step, which shares these constants
            self.banks = {side: self.make_bank(side, texts[side], right[side]) for side in texts if texts[side]}

    def make_bank(self, side: Side, texts: dict[str, Item], right: list[tuple[str, str]]) -> Bank:
        """Embeds the training data's texts of a side; ranks share the work of those that are not cached yet.

        Args:
            side: Side of the pairs on which the texts stand.
            texts: The texts by content hash.
            right: Positives, as content hashes: the other side, then the text.
        """
        assert self.constants is not None, "__init__ refused such a stage"
        digests = sorted(texts)
        own = digests[self.global_rank :: world_size()]
        self.embedder.eval()
        blocks = [own[start : start + BANK_BLOCK] for start in range(0, len(own), BANK_BLOCK)]
        for block in track(blocks, "embedding all texts", len(blocks), "block"):
            self.fetch_texts(side, block, lambda digest: self.processor(texts[digest], side))
        most(0, self.device)  # every rank has kept its share
        found = self.fetch_texts(side, digests, lambda digest: self.processor(texts[digest], side))
        known = torch.stack([hash_ids([one[end] for one in right]) for end in (0, 1)], dim=1)
        return Bank(torch.stack([row.to(self.device) for row in found]), hash_ids(digests).to(self.device), known.to(self.device))

    def fetch_texts(self, side: Side, digests: list[str], encode: Callable[[str], Encoded]) -> list[Tensor]:
        """Returns unit-norm embeddings of texts, from the cache or computed and cached.

        Args:
            side: Side of the pairs on which the texts stand; each has its own instruction.
            digests: Content hashes of the texts.
            encode: From a content hash to the encoded text; called for texts that are not cached.
        """
        assert self.constants is not None, "without them texts are embedded like everything else"
        budget = self.training_settings.inference_budget

        def make(rows: list[int]) -> Sequence[Tensor]:
            return self.embedder.embed([encode(digests[row]) for row in rows], budget).unbind()

        return self.constants.fetch(f"embedding.{side}", digests, make)

    @override
    def add_negatives(self, pairs: PairEmbeddings, batch: Batch) -> PairEmbeddings:
        if not self.banks:
            return pairs
        flipped = bool(batch.targets) and all(self.encoded & item.towers for item in batch.targets)
        if flipped:  # negatives stand among the targets, so texts must be those
            if len(pairs.negative):
                raise ValueError(
                    f"bank must find texts among the targets, or no hard negatives, got {len(pairs.negative)} of them in task "
                    f"{batch.task!r}, from texts to sounds. Leave the bank or the negatives out, or swap query and target."
                )
            pairs = replace(pairs, query=pairs.target, target=pairs.query, query_ids=pairs.target_ids, target_ids=pairs.query_ids)
        bank = self.banks.get("query" if flipped else "target")
        if bank is None:
            return pairs
        texts, ids = bank.others(pairs)
        negative, negative_ids = torch.cat([pairs.negative, texts]), torch.cat([pairs.negative_ids, ids])
        return replace(pairs, negative=negative, negative_ids=negative_ids)

    @override
    def has_contrast(self, batch: Batch) -> bool:
        return bool(most(len(batch), self.device)) if self.banks else super().has_contrast(batch)

    @override
    def embed_chunk(self, chunk: Chunk) -> ChunkOutput:
        return super().embed_chunk(chunk) if self.held is None else self.held(self.embedder, chunk)

    @override
    def loss(self, batch: Batch, output: ChunkOutput) -> Float[Tensor, ""]:
        value = super().loss(batch, output)
        if self.hold is None or output.turned is None:
            return value
        items = float(sum(bool(self.encoded & item.towers) for item in batch.items()))
        turned = output.turned.sum() / total(torch.tensor(items, device=value.device)).clamp(min=1)
        self.figures.add("train/turned", total(turned))
        return value + self.hold.weight * turned

    @override
    def teardown(self, stage: str) -> None:
        super().teardown(stage)
        self.held = None
        if self.constants is not None:
            self.constants.close()
            self.constants = None

    @override
    def split_cached(self, batch: Batch) -> tuple[list[Encoded], dict[int, Float[Tensor, " dim"]]]:
        items, digests = list(batch.items()), batch.hashes()
        with_media = [row for row, item in enumerate(items) if self.encoded & item.towers]
        if self.constants is None or not with_media:
            return items, {}
        self.embedder.eval()  # constants are what scoring would see; a projector has nothing that drops out
        self.embedder.keep_checkpointing()
        read = [row for row, item in enumerate(items) if not self.encoded & item.towers]
        texts: dict[int, Tensor] = {}
        sides: dict[Side, list[int]] = {
            "query": [row for row in read if row < len(batch)],
            "target": [row for row in read if row >= len(batch)],
        }
        for side, rows in sides.items():
            by_digest = {digests[row]: items[row] for row in rows}
            found = self.fetch_texts(side, [digests[row] for row in rows], by_digest.__getitem__)
            texts |= dict(zip(rows, found, strict=True))
        for tower in sorted(self.encoded):
            rows = [row for row in with_media if tower in items[row].media]
            make = partial(self.frames_of, tower, [items[row] for row in rows])
            frames = self.constants.fetch(f"frames.{tower}", [digests[row] for row in rows], make)
            for row, made in zip(rows, frames, strict=True):
                items[row] = items[row].with_frames(tower, made)
        return items, texts

    def frames_of(self, tower: str, items: list[Encoded], rows: list[int]) -> Sequence[Tensor]:
        """Encodes inputs of a tower, as many items at once as the budget holds, and returns each item's rows.

        Args:
            tower: Name of the tower.
            items: Items with inputs of it.
            rows: Positions of those that are wanted.
        """
        groups: list[list[Encoded]] = [[]]
        for item in [items[row] for row in rows]:
            if groups[-1] and sum(other.cost for other in groups[-1]) + item.cost > self.training_settings.inference_budget:
                groups.append([])
            groups[-1].append(item)
        frames: list[Tensor] = []
        for group in groups:
            inputs = [each.to(self.device) for item in group for each in item.media[tower]]
            counts = [int(placeholders(self.embedder, tower, item.input_ids).sum()) for item in group]
            frames += torch.split(self.embedder.encode_frames(tower, inputs), counts)
        return frames
