"""Drift of all modalities at once: verdicts, and directions layer by layer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lightning_conan.drift.layers import holding, layer_cosines, token_states
from lightning_conan.drift.verdict import Verdict, examine
from lightning_conan.embedder import load_folder
from lightning_conan.items import Modality
from lightning_conan.retrieval import PairSet
from lightning_conan.terminal import track

WATCHED = 64
"""Inputs whose tokens are followed through the layers."""


@dataclass
class DriftReport:
    """Drift at fusion, and after it.

    Args:
        verdicts: One for each modality.
        layers: For each modality and later state the cosine of its tokens to the specialist's: what enters the language
            model, then what each layer gives.
    """

    verdicts: dict[Modality, Verdict] = field(default_factory=dict)
    layers: dict[Modality, dict[str, list[float]]] = field(default_factory=dict)

    def to_json(self) -> str:
        """All of the report, each verdict with its sentence."""
        verdicts = {name: verdict.to_dict() for name, verdict in self.verdicts.items()}
        return json.dumps({"verdicts": verdicts, "layers": self.layers}, indent=2) + "\n"


def measure_drift(
    specialists: Mapping[Modality, Path], states: Mapping[str, Path], sets: Mapping[Modality, PairSet], device: str = "cpu"
) -> DriftReport:
    """Compares later states with the specialists.

    Args:
        specialists: Checkpoint folders by modality.
        states: Folders of later states by name: ``fused`` at least; the one named ``recovered`` goes into the verdicts, others
            into the cosines alone.
        sets: For each modality, pairs that no specialist has seen.
        device: Device that computes.

    Raises:
        ValueError: No fused folder, no specialist, one without pairs, or one of another modality.
    """
    if "fused" not in states or not specialists or set(sets) != set(specialists):
        raise ValueError(
            f"Drift needs a fused folder and pairs of {sorted(specialists)}, got {sorted(states)} and {sorted(sets)}."
        )
    models = {name: load_folder(folder, device=device)[0] for name, folder in states.items()}
    report = DriftReport()
    for modality, folder in track(specialists.items(), "measuring drift", len(specialists), "specialist"):
        specialist, _, provenance = load_folder(folder, ("specialist",), device=device)
        if provenance.modality != modality:
            raise ValueError(f"{folder} must be the {modality} specialist, but it is that of {provenance.modality}.")
        pairs = sets[modality]
        report.verdicts[modality] = examine(modality, specialist, models["fused"], pairs, models.get("recovered"))
        items = holding(specialist, [*pairs.queries, *pairs.targets], modality)[:WATCHED]
        reference = token_states(specialist, items, modality)
        report.layers[modality] = {
            name: [round(float(value), 5) for value in layer_cosines(reference, token_states(model, items, modality))]
            for name, model in models.items()
        }
    return report
