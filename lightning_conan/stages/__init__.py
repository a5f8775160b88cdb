"""The LightningModules: one a stage."""

from lightning_conan.stages.fused import Fused
from lightning_conan.stages.pretraining import Pretraining
from lightning_conan.stages.recovery import ProjectorRecovery
from lightning_conan.stages.rehearsal import Rehearsal
from lightning_conan.stages.settings import DynamicNegatives, Lora, Training
from lightning_conan.stages.specialist import Specialist
from lightning_conan.stages.stage import Stage
from lightning_conan.stages.trace import Trace

__all__ = [
    "DynamicNegatives",
    "Fused",
    "Lora",
    "Pretraining",
    "ProjectorRecovery",
    "Rehearsal",
    "Specialist",
    "Stage",
    "Trace",
    "Training",
]
