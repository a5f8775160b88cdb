"""A base with a foreign checkpoint merged into it tensor by tensor, or its task vectors."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor
from typing_extensions import override

from lightning_conan.embedder.checkpoint.foreign.part import Part
from lightning_conan.embedder.checkpoint.foreign.report import ForeignReport
from lightning_conan.embedder.checkpoint.task_vector import LowRank, TaskVector
from lightning_conan.embedder.checkpoint.tensors import Spec, Tensors


class ForeignTensors(Tensors):
    """The tensors of a base, in which those that a foreign checkpoint has a part of are merged, in float32 or its own dtype.

    Args:
        base: The base's tensors.
        parts: The trained part of each tensor that has one.
        report: What became of the checkpoint's keys.
    """

    def __init__(self, base: Tensors, parts: Mapping[str, Part], report: ForeignReport) -> None:
        self.base, self.parts, self.report = base, dict(parts), report
        changed: dict[str, Spec] = {name: replace(base.specs[name], dtype=part.dtype) for name, part in parts.items()}
        self.specs = {**base.specs, **changed}

    def __getitem__(self, name: str) -> Tensor:
        part = self.parts.get(name)
        dense: Tensor = self.base[name]
        return dense if part is None else part.merged(dense)

    @override
    def task_vector(self, name: str) -> TaskVector:
        """Returns a tensor's difference to the base's, of rank 0 where the checkpoint has no part of it."""
        if part := self.parts.get(name):
            return part.vector(partial(self.base.__getitem__, name))
        return LowRank.zero(self.specs[name].shape)
