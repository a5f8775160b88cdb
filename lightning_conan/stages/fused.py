"""Stage 2, fuse: the base plus the weighted task vectors, scored without writing it, its coefficients learned if asked."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from lightning_conan.embedder import STATES, Batch, ChunkOutput, State
from lightning_conan.embedder.checkpoint import check_apart
from lightning_conan.extras import require
from lightning_conan.fusion import Recipe, TaskArithmetic, fuse_folders, fused_model
from lightning_conan.fusion.coefficient_plots import plot_learning
from lightning_conan.fusion.geometry import group_of
from lightning_conan.fusion.tensorwise import Fusion
from lightning_conan.training.collectives import total
from lightning_conan.training.settings import Training
from lightning_conan.training.stage import Stage
from lightning_conan.training.weights import Form

WHOLE = "all"
"""Name of the only group, when coefficients are not learned by layer."""


class Fused(Stage):
    """Fuses a recipe in memory, to score its coefficients before `conan fuse` writes a folder, or to learn them.

    `conan test` scores it. `conan fit` learns only the coefficients, by the contrastive loss (AdaMerging,
    https://arxiv.org/abs/2310.02575, with pairs instead of entropy), starting from the recipe's. It writes the folder that
    `conan fuse` would write with the learned ones, and plots their course in ``alphas.png``. Learn on pairs that no
    specialist has seen: on their own training pairs all coefficients look too good.

    Args:
        recipe: Base, specialists and initial coefficients.
        training: Settings of training; a learning rate of 1e-3 to 1e-2 suits coefficients.
        by_layer: Learn a coefficient for each layer or module of each specialist, instead of one for each specialist.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lightning_conan.embedder import Provenance, save_folder, tiny_embedder
        >>> with TemporaryDirectory() as root:
        ...     base = save_folder(Path(root) / "base", *tiny_embedder(), Provenance("base"))
        ...     audio = save_folder(Path(root) / "audio", *tiny_embedder(), Provenance("specialist", "audio"))
        ...     stage = Fused(Recipe(base, {"audio": audio}), by_layer=True)
        >>> stage.names, stage.recipe.alphas
        (['audio'], {'audio': 0.5})
    """

    accepts: ClassVar[tuple[State, ...]] = STATES
    writes: ClassVar[State | None] = "fused"

    def __init__(self, recipe: Recipe, training: Training = Training(), by_layer: bool = False) -> None:  # noqa: B008  # frozen
        super().__init__(Path(recipe.home), training)
        self.recipe, self.by_layer = recipe, by_layer
        self.names = sorted(recipe.specialists)
        self.path: list[list[float]] = []
        self.losses: dict[str, list[tuple[int, float]]] = {}

    @override
    def load_model(self, fitting: bool) -> None:
        self.sources = {name: found.fingerprint for name, found in self.recipe.check().items()}
        self.embedder = fused_model(self.recipe)

    @override
    def prepare(self) -> None:
        require("matplotlib", "Drawing how coefficients were learned")
        if self.device_mesh is not None:
            raise ValueError("Coefficients are learned on whole weights, got strategy fsdp2. Use ddp or one device.")
        if not isinstance(self.recipe.method, TaskArithmetic):
            raise ValueError(f"Coefficients are learned for TaskArithmetic, got {self.recipe.method}. Leave recipe.method out.")
        if self.training_settings.learn_temperature:
            raise ValueError("Coefficients are all that is learned, got training.learn_temperature=true. Leave it out.")
        if self.objective_scalars is not None:
            raise ValueError(
                f"Coefficients are all that is learned, got an objective that learns {', '.join(self.objective_scalars)}. "
                "Choose another (learn_bias: false for PairwiseSigmoid)."
            )
        if self.training_settings.optimizer == "muon":
            raise ValueError(
                "Coefficients are no matrix that Muon could make orthogonal, got training.optimizer=muon. Use adamw."
            )
        self.set_up()
        self.fusion = Fusion(self.recipe)
        fused = sorted(name for name in self.fusion.specs if self.fusion.action(name) == "fused")
        self.groups = sorted({self.group(name) for name in fused})
        for group in self.groups:
            found = {tuple(sorted(self.recipe.alphas_of(name).items())) for name in fused if self.group(name) == group}
            if len(found) > 1:
                raise ValueError(
                    f"One coefficient a specialist is learned for {group} tensors, but recipe.alphas_by_module gives "
                    f"{len(found)} of them. Leave it out, or name whole groups with by_layer: true."
                )
        start = [[self.start(group, fused).get(name, 0.0) for name in self.names] for group in self.groups]
        self.alphas = nn.Parameter(torch.tensor(start))
        self.vectors = {name: self.fusion.vectors(name) for name in fused}
        self.embedder.requires_grad_(False)
        for name, parameter in self.embedder.named_parameters():
            parameter.requires_grad_(name in self.vectors)  # their gradients become the coefficients'
        self.trained_names = frozenset({"alphas"})

    def group(self, name: str) -> str:
        """Name of the group of coefficients that a tensor belongs to."""
        return group_of(name) if self.by_layer else WHOLE

    def start(self, group: str, names: list[str]) -> dict[str, float]:
        """Returns the recipe's coefficients of a group, by specialist.

        Args:
            group: Name of the group, from ``group``.
            names: Names of all fused tensors.
        """
        return self.recipe.alphas_of(next(name for name in names if self.group(name) == group))

    @override
    def gather_gradients(self) -> None:
        """Computes the coefficients' gradients: each weight's gradient times its task vector, summed over a group."""
        gradient = torch.zeros_like(self.alphas)
        parameters = dict(self.embedder.named_parameters())
        for name, (_, deltas) in self.vectors.items():
            if (found := parameters[name].grad) is not None:
                gradient[self.groups.index(self.group(name))] += deltas.flatten(1) @ found.float().flatten()
                parameters[name].grad = None
        self.alphas.grad = gradient

    @override
    def loss(self, batch: Batch, output: ChunkOutput) -> Float[Tensor, ""]:
        value = super().loss(batch, output)
        self.losses.setdefault(batch.modality, []).append((self.global_step + 1, float(total(value.detach()))))
        return value

    @override
    def after_step(self) -> None:
        self.path.append(self.alphas.detach().mean(dim=0).tolist())
        self.apply_alphas()
        self.log_alphas()

    def bring_vectors(self) -> None:
        """Moves the task vectors to the device; they are no parameters, so Lightning does not.

        Raises:
            ValueError: They do not fit into its memory.
        """
        device = self.alphas.device
        need = sum(anchor.nbytes + deltas.nbytes for anchor, deltas in self.vectors.values())
        if device.type == "cuda" and need > (free := torch.cuda.mem_get_info(device)[0]):
            raise ValueError(
                f"Coefficients are learned with all task vectors on the device, {need / 2**30:.0f} GiB, and {free / 2**30:.0f} "
                "are free. Search them with `conan alphas --device cuda` instead."
            )
        self.vectors = {name: (anchor.to(device), deltas.to(device)) for name, (anchor, deltas) in self.vectors.items()}

    def apply_alphas(self) -> None:
        """Sets the weights to the base plus the weighted task vectors."""
        parameters = dict(self.embedder.named_parameters())
        with torch.no_grad():
            for name, (anchor, deltas) in self.vectors.items():
                alphas = self.alphas[self.groups.index(self.group(name))]
                parameters[name].copy_(anchor + (alphas @ deltas.flatten(1)).view_as(anchor))

    def log_alphas(self) -> None:
        """Logs each specialist's coefficient, if each has one."""
        if self.groups == [WHOLE]:
            self.log_dict({f"train/alpha/{name}": value for name, value in zip(self.names, self.alphas[0].detach(), strict=True)})

    @override
    def on_train_start(self) -> None:
        self.bring_vectors()
        self.apply_alphas()  # a resumed run brings other coefficients than the recipe's
        self.log_alphas()

    @override
    def after_loading(self) -> None:
        self.apply_alphas()

    def learned(self) -> Recipe:
        """The recipe with the learned coefficients."""
        rows = [dict(zip(self.names, row, strict=True)) for row in self.alphas.detach().tolist()]
        if not self.by_layer:
            return replace(self.recipe, alphas=rows[0], alphas_by_module={})
        patterns = [rf"^{re.escape(group)}(\.|$)" for group in self.groups]
        return replace(self.recipe, alphas_by_module=dict(zip(patterns, rows, strict=True)))

    @override
    def check_form(self, form: Form) -> None:
        if form != "dense":
            raise ValueError(f"A fused folder is dense, got form={form!r}. Leave it out.")

    @override
    def check_out(self, out: Path, form: Form) -> None:
        super().check_out(out, form)
        check_apart(out, self.recipe.base, *self.recipe.specialists.values())

    @override
    def write_folder(self, out: Path, form: Form = "dense") -> None:
        self.check_trained(form)
        if self.global_rank:
            return
        history = {"names": self.names, "alphas": self.path, "losses": self.losses}
        beside = {
            "alphas.json": (json.dumps(history) + "\n").encode(),
            "alphas.png": plot_learning(self.names, self.path, self.losses),
        }
        fuse_folders(self.learned(), out, beside=beside)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["learning"] = {"path": self.path, "losses": self.losses, "sources": self.sources}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if checkpoint["learning"].get("sources") != self.sources:
            raise ValueError(f"This .ckpt resumes a run with another base or other specialists than {self.recipe.specialists}.")
        self.path, self.losses = checkpoint["learning"]["path"], checkpoint["learning"]["losses"]
