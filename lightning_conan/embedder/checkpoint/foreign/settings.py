"""PEFT's ``adapter_config.json``: the settings that say how an adapter is merged, and those that say it is no plain LoRA."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_conan.embedder.checkpoint.adapter import ADAPTER_CONFIG

REMEDY = "Merge it where it was trained (PEFT's merge_and_unload, then save_pretrained), and name the dense folder."
HARMLESS = frozenset(
    """task_type auto_mapping peft_version base_model_name_or_path revision inference_mode target_modules exclude_modules
    lora_dropout layers_to_transform layers_pattern megatron_core megatron_config modules_to_save ensure_weight_tying
    qalora_group_size runtime_config""".split()
)
"""Settings that do not change what merging means: the keys of the weights say the rest."""
USED = frozenset(
    """peft_type r lora_alpha rank_pattern alpha_pattern use_rslora use_dora bias lora_bias trainable_token_indices
    init_lora_weights""".split()
)
EMPTY: dict[str, str] = {
    "fan_in_fan_out": "its weights are transposed",
    "loftq_config": "its base was quantised",
    "eva_config": "its start depends on data",
    "corda_config": "its base was changed",
    "lora_ga_config": "its base was changed",
    "velora_config": "VeLoRA is no plain LoRA",
    "alora_invocation_tokens": "aLoRA acts on some tokens only, so no weights equal it",
    "layer_replication": "its model has more layers than the base",
    "use_qalora": "QA-LoRA pools the inputs of its factors",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "arrow_config": "Arrow chooses among adapters for each token, so no weights equal it",
    "kasa_config": "KaSA is no plain LoRA",
    "monteclora_config": "MonteCLoRA draws its weights",
    "target_parameters": "the keys of stacked experts do not name their parameter, and a dense model has none",
}
"""Settings that must be empty, each with the reason."""
STARTS = (True, False, None, "gaussian", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base as it is."""
LOOKALIKES = {"ADALORA": "AdaLoRA's lora_A and lora_B look like LoRA's, but lora_E scales each component"}


@dataclass(frozen=True)
class LoraSettings:
    """Settings of an adapter that merge as LoRA.

    Args:
        r: Rank of modules without a pattern.
        alpha: ``lora_alpha`` of modules without a pattern.
        rank_pattern: Other ranks, by patterns of module names.
        alpha_pattern: Other alphas, likewise.
        rslora: Scale by the root of the rank.
        dora: Rows have trained lengths.
        base: The base that the adapter names.
        token_indices: Rows of ``trainable_token_indices``, for all tables or by table.
        kind: The variants that it uses, for reports.
    """

    r: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    dora: bool
    base: str | None
    token_indices: Sequence[int] | Mapping[str, Sequence[int]] | None
    kind: str

    @classmethod
    def read(cls, folder: Path) -> "LoraSettings":
        """Reads an adapter folder's settings.

        Raises:
            ValueError: It is no LoRA that merges into weights by factors and whole tensors alone.
        """
        path = folder / ADAPTER_CONFIG
        try:
            config: dict[str, Any] = json.loads(path.read_text())
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} was cut or changed ({error}). Copy it again.") from error
        check_settings(path, config)
        variants = {"use_rslora": "rsLoRA", "use_dora": "DoRA", "lora_bias": "lora_bias", "modules_to_save": "modules_to_save"}
        found = [label for name, label in variants.items() if config.get(name)]
        found += [f"bias {config['bias']}"] * (config.get("bias", "none") != "none")
        found += ["trainable tokens"] * (config.get("trainable_token_indices") is not None)
        return cls(
            int(config["r"]),
            float(config["lora_alpha"]),
            config.get("rank_pattern") or {},
            config.get("alpha_pattern") or {},
            bool(config.get("use_rslora")),
            bool(config.get("use_dora")),
            config.get("base_model_name_or_path"),
            config.get("trainable_token_indices"),
            " + ".join(["LoRA", *found]),
        )

    def scale(self, module: str, rank: int) -> float:
        """Returns the factor on ``B A`` of a module, as PEFT computes it.

        Args:
            module: Name of the module in the model that was trained, without PEFT's prefix.
            rank: Rows of its ``lora_A``.

        Raises:
            ValueError: The settings say another rank.
        """
        from peft.utils.other import get_pattern_key

        wanted = self.rank_pattern.get(get_pattern_key(list(self.rank_pattern), module), self.r)
        if wanted != rank:
            raise ValueError(
                f"{module} must have the rank {wanted} of {ADAPTER_CONFIG}, its lora_A has {rank} rows. Copy it again."
            )
        alpha = self.alpha_pattern.get(get_pattern_key(list(self.alpha_pattern), module), self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def tokens_of(self, module: str) -> Sequence[int]:
        """Returns the rows of a table that ``trainable_token_indices`` names; none if it names another table."""
        if isinstance(self.token_indices, Mapping):
            return next((rows for name, rows in self.token_indices.items() if module.endswith(name)), ())
        return self.token_indices or ()


def check_settings(path: Path, config: Mapping[str, Any]) -> None:
    """Refuses an adapter that merges by another rule than LoRA's.

    Args:
        path: Its settings' file, for errors.
        config: Its settings.

    Raises:
        ValueError: Names the setting, the reason and the remedy.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        why = LOOKALIKES.get(str(kind), "other methods change weights by other rules")
        raise ValueError(f"peft_type in {path} must be 'LORA', got {kind!r}: {why}. {REMEDY}")
    if unknown := sorted(config.keys() - HARMLESS - USED - EMPTY.keys()):
        raise ValueError(
            f"{path} has the setting {unknown[0]!r} ({config[unknown[0]]!r}), which is not known here: a later PEFT's may change "
            f"how it is merged. {REMEDY}"
        )
    for name, why in EMPTY.items():
        if config.get(name):
            raise ValueError(f"{name} in {path} must be empty, got {config[name]!r}: {why}. {REMEDY}")
    start = config.get("init_lora_weights", True)
    if start not in STARTS:
        raise ValueError(
            f"init_lora_weights in {path} must be one of {STARTS}, got {start!r}: such a start (PiSSA, OLoRA, CorDA, LoftQ, EVA) "
            f"changes the base, or needs it as it was then. {REMEDY}"
        )
    if missing := [name for name in ("r", "lora_alpha") if not isinstance(config.get(name), int | float)]:
        raise ValueError(f"{path} must have the number {missing[0]}, got {config.get(missing[0])!r}. Copy the adapter again.")
