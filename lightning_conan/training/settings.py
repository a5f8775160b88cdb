"""Settings that every stage takes."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Literal

from torch import Tensor, nn

from lightning_conan.items import Modality, check_modality
from lightning_conan.objectives import Contrast, Objective, SymmetricInfoNCE

LEAST_TEMPERATURE = 0.01
"""Below it a learned temperature runs away (CLIP, https://arxiv.org/abs/2103.00020, clips there too)."""
USED_AS = {
    "temperature": ("temperature", "temperatures", "learn_temperature"),
    "margin": ("false_negative_margin",),
    "same_side": ("same_side_negatives",),
    "dims": ("matryoshka_dims",),
}
"""The settings of ``Training`` behind each field of ``Contrast``."""


@dataclass(frozen=True)
class DynamicNegatives:
    """Replacement of a hard negative by the query's next one, once the model scores it low (Conan-embedding v2).

    Args:
        keep: Negatives of a query that are used at once, of those that its sample holds.
        floor: A negative that scores below this when first seen is replaced as too easy.
        decay: A negative is replaced when its score, times this, is below its first score ...
        ceiling: ... and below this, too.
    """

    keep: int = 1
    floor: float = 0.4
    decay: float = 1.2
    ceiling: float = 0.7

    def __post_init__(self) -> None:
        if self.keep < 1 or self.decay < 1:
            raise ValueError(f"dynamic_negatives.keep and decay must be at least 1, got {self.keep} and {self.decay}.")


@dataclass(frozen=True)
class Training:
    """Settings of training, the same in every stage.

    Args:
        lr: Peak learning rate.
        optimizer: adamw, or muon for matrices with adamw for the rest: projectors recover in a third of the steps with it.
        betas: AdamW's moment decays.
        weight_decay: On matrices only.
        warmup_steps: Steps of linear warm-up; a cosine to zero follows.
        clip_norm: Gradients are scaled down to this norm.
        objective: The contrastive loss, by class path: ``SymmetricInfoNCE``, ``PairwiseSigmoid`` (SigLIP), ``CoSENT``, all in
            ``lightning_conan.objectives``, or a class of your own. The next six settings are given to it, and refused if it does
            not use them.
        temperature: Divides the scores.
        temperatures: Temperatures of single modalities, in place of ``temperature``.
        learn_temperature: Learn each modality's temperature, starting there; it stays at 0.01 or above.
        false_negative_margin: Targets that score higher than the positive by more than this do not count as negatives
            (Qwen3-VL-Embedding: 0.1); by default all count.
        same_side_negatives: Adds the other queries to a query's negatives, and the other targets to a target's.
        matryoshka_dims: Leading dimensions of the embedding that are trained to serve alone; the last should be all.
        dynamic_negatives: Replace hard negatives once they score low; by default all that a sample holds are used.
        token_budget: Padded tokens of one chunk: memory grows with it, not with the batch. ``auto`` measures once, at the first
            batch of a modality, what fits into the device.
        checkpoint_activations: Keep only each layer's input and compute the rest again in the backward pass: a third more
            time for a tenth of the memory.
        attention: Attention of the language model: sdpa, eager, or flash_attention_2 (NVIDIA, bf16, `pip install flash-attn`).
        compile: A torch.compile backend, such as inductor, for the layers of all towers; none by default.
        max_skipped_steps: Number of steps that may be skipped because their gradient is not finite (logged as
            ``train/skipped_steps``); the next one ends the run. A loss that is not finite always does.
        seed: Seed of the dropout; each step's random numbers depend on seed, step and rank alone, so that resuming repeats them.

    Example:
        >>> settings = Training(lr=3e-4, warmup_steps=2, temperatures={"audio": 0.05})
        >>> settings.temperature_of("audio"), settings.temperature_of("image")
        (0.05, 0.02)
        >>> [round(settings.scale(step, total=6), 2) for step in range(6)]
        [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """

    lr: float = 1e-4
    optimizer: Literal["adamw", "muon"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    warmup_steps: int = 100
    clip_norm: float = 1.0
    objective: Objective = SymmetricInfoNCE()  # noqa: RUF009  # frozen
    temperature: float = 0.02
    temperatures: dict[Modality, float] = field(default_factory=dict)
    learn_temperature: bool = False
    false_negative_margin: float | None = None
    same_side_negatives: bool = False
    matryoshka_dims: tuple[int, ...] = ()
    dynamic_negatives: DynamicNegatives | None = None
    token_budget: int | Literal["auto"] = 16_384
    checkpoint_activations: bool = False
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    compile: str | None = None
    max_skipped_steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for modality in self.temperatures:
            check_modality(modality, "training.temperatures")
        positive = {name: getattr(self, name) for name in ("lr", "temperature", "clip_norm")}
        positive |= {f"temperatures.{name}": value for name, value in self.temperatures.items()}
        positive["token_budget"] = 1 if self.token_budget == "auto" else self.token_budget
        for name, value in positive.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"training.{name} must be positive and finite, got {value}.")
        if self.learn_temperature:
            for name in [name for name in positive if name.startswith("temperature") and positive[name] < LEAST_TEMPERATURE]:
                raise ValueError(
                    f"training.{name} must start at {LEAST_TEMPERATURE} or above to be learned, got {positive[name]}. "
                    "Raise it, or leave learn_temperature out."
                )
        if any(dim < 1 for dim in self.matryoshka_dims) or len(set(self.matryoshka_dims)) != len(self.matryoshka_dims):
            raise ValueError(f"training.matryoshka_dims must be positive and different, got {self.matryoshka_dims}.")
        if self.false_negative_margin is not None and not 0 <= self.false_negative_margin < math.inf:
            raise ValueError(
                f"training.false_negative_margin must be null, or 0 or more, got {self.false_negative_margin}: one below 0 would "
                "leave the positive itself out."
            )
        for name in ("warmup_steps", "weight_decay", "max_skipped_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"training.{name} must not be negative, got {getattr(self, name)}.")
        self.check_objective()

    def check_objective(self) -> None:
        """Refuses settings that the objective does not use.

        Raises:
            ValueError: One of them is set to something else than its default, or the objective is none.
        """
        if not isinstance(self.objective, Objective):
            raise ValueError(
                f"training.objective must be an instance of lightning_conan.objectives.Objective, got {self.objective!r}. Name a "
                "class path in a YAML; in Python call the class, such as CoSENT()."
            )
        if odd := [name for name in self.objective.learned() if not name.isidentifier() or hasattr(nn.ParameterDict, name)]:
            raise ValueError(f"The names of an objective's learned() must be those of variables, got {odd[0]!r}. Choose another.")
        unused = {name for use, names in USED_AS.items() if use not in self.objective.uses for name in names}
        for setting in fields(self):
            default = setting.default if setting.default is not MISSING else {}  # of temperatures
            if setting.name in unused and (value := getattr(self, setting.name)) != default:
                raise ValueError(
                    f"training.{setting.name} must be {'null' if default is None else default} "
                    f"with {type(self.objective).__name__}, which does not "
                    f"use it, got {value}. Set it to that (another YAML may have set it), or choose another training.objective."
                )

    def temperature_of(self, modality: Modality) -> float:
        """A modality's temperature, the initial one if it is learned."""
        return self.temperatures.get(modality, self.temperature)

    def contrast(self, temperature: float | Tensor, learned: Mapping[str, Tensor]) -> Contrast:
        """Returns the settings that the objective is called with.

        Args:
            temperature: Current temperature of the batch's modality.
            learned: Current values of the scalars that the objective learns, by name.
        """
        margin, same_side = self.false_negative_margin, self.same_side_negatives
        return Contrast(temperature, margin, same_side, dims=self.matryoshka_dims, learned=learned)

    @property
    def inference_budget(self) -> int:
        """Padded tokens of a chunk without gradients."""
        return 16_384 if self.token_budget == "auto" else self.token_budget

    def scale(self, step: int, total: int) -> float:
        """Returns the factor of ``lr`` at a step: linear warm-up, then a cosine to 0.

        Args:
            step: Number of steps so far, from 0.
            total: Steps of the whole run.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on all linear layers that a stage names (arXiv 2606.09331).

    Args:
        rank: Inner size.
        alpha: Scale, relative to ``rank``.
        dropout: On the adapters' inputs.

    Example:
        >>> lora = Lora(rank=16, alpha=32)
        >>> lora.alpha / lora.rank  # factor of the adapters' product
        2.0
    """

    rank: int = 32
    alpha: int = 32
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"lora.rank and lora.alpha must be positive and dropout in [0, 1), got {self.rank}, {self.alpha}, {self.dropout}."
            )
