"""TRACE: reason about the hard queries, then compress into one token (arXiv 2603.02929)."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_conan.embedder import Batch, Chunk, ChunkOutput, Encoded, OmniProcessor, State
from lightning_conan.embedder.modalities import spec_of
from lightning_conan.objectives import Contrast, generation_loss
from lightning_conan.reasoning import Decoding, hints
from lightning_conan.training.collectives import most, total
from lightning_conan.training.settings import Lora, Training
from lightning_conan.training.stage import Stage

MERGERS = spec_of("image").projector


class Trace(Stage):
    """Teaches an embedder to reason about hard queries before it embeds them: lambda_gen * L_gen + lambda_ret * L_ret.

    A query is followed by its generation target (``Pair.reasoning``, empty for an easy query) and ``<|emb|>``; L_gen is the
    cross-entropy of both. The query's embedding is the hidden state that predicts ``<|emb|>``, and L_ret is
    ``training.objective`` from it to the targets, which never reason. The data module is ``datamodules.TraceData``.

    Args:
        folder: An embedder's folder, of any state but a specialist's.
        training: Settings of training.
        lora: Adapters on the language model; null for none.
        train_fully: Name prefixes of parameters that train without adapters, besides the rows of ``<|emb|>``: the
            vision tower's mergers by default, as many as its family has.
        lambda_gen: Weight of L_gen; 0 trains a plain embedder, on data without reasoning (``teach: false``).
        lambda_ret: Weight of L_ret; 0 trains generation only.
        lambda_route: Weight, within L_gen, of the first token alone, which decides the route; the others' mean is added. By
            default the first is one of a sample's tokens: it weighs 1 for an easy query and 1/n for a hard one, so that the
            more a hard one writes, the later its route is learned.
        lambda_prompt: Weight, within L_ret, of the same objective by the prompt's last hidden state, before the reasoning; with
            a positive one the embedding of a query that was reasoned about is made of both states, so that a slip in the
            reasoning does not send it away (docs/decisions/064-two-states.md). 0 is the paper's.
        prompt_weight: Weight of the prompt's direction in such an embedding, beside 1 for the state that predicts ``<|emb|>``.
        back: Adds the loss of finding each target's query, if the objective has two directions.
        query_hint: Ends the instruction of queries; by default that of ``reasoning/prompts/trace.yaml``, or the folder's if it
            reasons already.
        target_hint: Ends the instruction of targets, likewise.
        decoding: Settings of generation, when the stage is scored.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lightning_conan.embedder import Provenance, save_folder, tiny_embedder
        >>> with TemporaryDirectory() as root:
        ...     folder = save_folder(Path(root) / "base", *tiny_embedder(), Provenance("base"))
        ...     stage = Trace(folder, lora=Lora(rank=8), query_hint="Think first.")
        >>> stage.processor.config.reasons, stage.processor.config.query_hint
        (True, 'Think first.')
    """

    accepts: ClassVar[tuple[State, ...]] = ("base", "fused", "recovered", "rehearsed", "joint", "reasoning")
    writes: ClassVar[State | None] = "reasoning"

    def __init__(
        self,
        folder: Path,
        training: Training = Training(),  # noqa: B008  # frozen
        lora: Lora | None = Lora(rank=128, alpha=256),  # noqa: B008  # frozen; null must mean none
        train_fully: tuple[str, ...] | None = None,
        lambda_gen: float = 1.0,
        lambda_ret: float = 1.0,
        lambda_route: float | None = None,
        lambda_prompt: float = 0.0,
        prompt_weight: float = 2.0,
        back: bool = False,
        query_hint: str | None = None,
        target_hint: str | None = None,
        decoding: Decoding = Decoding(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__(folder, training, decoding)
        check_weights(lambda_gen, lambda_ret, lambda_route, lambda_prompt)
        if not prompt_weight > 0:
            raise ValueError(
                f"prompt_weight must be positive, got {prompt_weight}. lambda_prompt 0 leaves the prompt's state out."
            )
        if not lambda_ret and training.dynamic_negatives is not None:
            raise ValueError("training.dynamic_negatives must be null where lambda_ret is 0: nothing is told apart.")
        if back and "back" not in training.objective.uses:
            name = type(training.objective).__name__
            raise ValueError(f"back must be false, since {name} has no second direction, got true. Leave it out.")
        self.lora_settings, self.train_fully, self.back = lora, train_fully, back
        self.lambda_gen, self.lambda_ret = lambda_gen, lambda_ret
        self.lambda_route, self.lambda_prompt = lambda_route, lambda_prompt
        self.prompt_weight = prompt_weight if lambda_prompt else 0.0
        config = self.processor.config
        default = hints() if config.ends else (config.query_hint, config.target_hint)
        given = [known if hint is None else hint for hint, known in zip((query_hint, target_hint), default, strict=True)]
        settings = replace(config, ends=False, reasons=lambda_gen > 0, query_hint=given[0], target_hint=given[1])
        self.processor = OmniProcessor(self.processor.tokenizer, settings)

    @property
    @override
    def lora(self) -> Lora | None:
        return self.lora_settings

    @property
    @override
    def lora_prefixes(self) -> tuple[str, ...]:
        return ("backbone.language_model.",)

    @property
    @override
    def trainable_prefixes(self) -> tuple[str, ...]:
        return (*(MERGERS if self.train_fully is None else self.train_fully), "emb_rows")

    @override
    def prepare(self) -> None:
        self.embedder.config.prompt_weight = self.prompt_weight
        self.embedder.free_emb_rows()
        if self.train_fully is None:
            names = [name for name, _ in self.embedder.named_parameters()]
            self.train_fully = tuple(prefix for prefix in MERGERS if any(name.startswith(prefix) for name in names))
        super().prepare()

    @override
    def split_cached(self, batch: Batch) -> tuple[list[Encoded], dict[int, Float[Tensor, " dim"]]]:
        taught = any(query.labels is not None for query in batch.queries)
        if batch.queries and taught != bool(self.lambda_gen):
            raise ValueError(
                f"Queries must carry their reasoning exactly if lambda_gen is positive, got lambda_gen={self.lambda_gen} and "
                f"queries with{'' if taught else 'out'} it. Set data.init_args.teach of datamodules.TraceData, or add or "
                "remove the column 'reasoning' of plain batches."
            )
        return super().split_cached(batch)

    @override
    def has_contrast(self, batch: Batch) -> bool:
        return bool(most(len(batch), self.device)) if self.lambda_gen else super().has_contrast(batch)

    @override
    def embed_chunk(self, chunk: Chunk) -> ChunkOutput:
        found: ChunkOutput = self.embedder(chunk, writing=partial(generation_loss, route=self.lambda_route))
        return found

    @override
    def loss(self, batch: Batch, output: ChunkOutput) -> Float[Tensor, ""]:
        """This rank's share of both losses; L_gen is the mean over all ranks' queries."""
        assert output.generation_losses is not None, "embed_chunk computes them"
        count = total(torch.tensor(float(len(batch)), device=output.embeddings.device))
        generation = output.generation_losses[: len(batch)].sum() / count
        retrieval = output.embeddings.new_zeros(())
        if self.lambda_ret:
            retrieval = super().loss(batch, output)
            if output.prompts is not None:
                retrieval = retrieval + self.lambda_prompt * self.contrasted(batch, output.prompts.float())[0]
        else:
            self.seen[f"{batch.modality}/{batch.task}"] += int(count)
        self.figures.add("train/generation_loss", total(generation))
        self.figures.add("train/retrieval_loss", total(retrieval))
        return self.lambda_gen * generation + self.lambda_ret * retrieval

    @override
    def contrast(self, batch: Batch) -> Contrast:
        return replace(super().contrast(batch), back=self.back)


def check_weights(gen: float, ret: float, route: float | None, prompt: float) -> None:
    """Refuses weights of losses that do not go together.

    Args:
        gen: ``lambda_gen``.
        ret: ``lambda_ret``.
        route: ``lambda_route``.
        prompt: ``lambda_prompt``.

    Raises:
        ValueError: A negative weight, or a part whose whole has none.
    """
    if gen < 0 or ret < 0 or not gen + ret > 0:
        raise ValueError(f"lambda_gen and lambda_ret must not be negative, nor both 0, got {gen} and {ret}.")
    if route is not None and not (route > 0 and gen > 0):
        raise ValueError(
            f"lambda_route must be positive, and lambda_gen with it, got {route} and {gen}. Leave it out for the mean over all "
            "tokens of a sample."
        )
    if prompt < 0 or (prompt and not (gen and ret)):
        raise ValueError(
            f"lambda_prompt must not be negative, and lambda_gen and lambda_ret must be positive with it, got {prompt}, {gen} "
            f"and {ret}. Leave it out."
        )
