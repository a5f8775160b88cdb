"""A stage's weights: loading, choosing what trains, and writing."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from lightning_conan.embedder import (
    STATES,
    Provenance,
    State,
    load_folder,
    save_adapter_folder,
    save_folder,
)
from lightning_conan.embedder.checkpoint import check_apart, check_replaceable, open_tensors
from lightning_conan.reasoning import Decoding
from lightning_conan.training.adapters import Adapters
from lightning_conan.training.scoring import Scoring
from lightning_conan.training.settings import Lora, Training
from lightning_conan.training.sharding import is_sharded, shard, whole_on_first
from lightning_conan.training.trainer_checks import PRECISIONS

Form = Literal["dense", "float32", "adapter"]
ALARM = 0.05
"""Share of the update's norm that rounding may remove before a warning is logged."""
log = logging.getLogger(__name__)


class Weights(Scoring):
    """Loads the model of a checkpoint folder, chooses what trains, and writes the trained model as another folder."""

    accepts: ClassVar[tuple[State, ...]] = STATES
    """States that a folder may have for this stage to train it; scoring takes any."""
    writes: ClassVar[State | None] = None

    def __init__(self, folder: Path, training: Training, decoding: Decoding) -> None:
        super().__init__(folder, training, decoding)
        self.adapters: Adapters | None = None
        self.trained_names: frozenset[str] = frozenset()
        self.has_trained = False

    # Hooks of subclasses

    @property
    def lora(self) -> Lora | None:
        """Adapters, if any."""
        return None

    @property
    def lora_prefixes(self) -> tuple[str, ...]:
        """Name prefixes of modules whose linear layers get adapters."""
        return ()

    @property
    def trainable_prefixes(self) -> tuple[str, ...]:
        """Name prefixes of parameters that train fully."""
        return ()

    def metadata(self) -> dict[str, Any]:
        """Facts about the training that the checkpoint folder records."""
        return {}

    # Loading

    @override
    def configure_model(self) -> None:
        fitting = self.trainer.training or self.trainer.state.fn == "fit"
        if not hasattr(self, "embedder") or fitting:
            if self.has_trained:  # its adapters may be merged by now, its constants closed
                raise ValueError(
                    "A stage trains once, and this one has. Make a new one, of the folder that it began with or wrote; "
                    "fit(ckpt_path=...) resumes a run, load_from_checkpoint only embeds, scores and writes."
                )
            self.load_model(fitting)  # anew, too, after it was scored
            if fitting:
                self.prepare()
        if not is_sharded(self.embedder):
            self.share_out()

    @override
    def load_model(self, fitting: bool) -> None:
        """Reads the folder's model.

        Raises:
            ValueError: The stage fits, and does not accept the folder's state.
        """
        self.embedder, _, self.provenance = load_folder(self.folder, self.accepts if fitting else STATES)
        self.stored = self.embedder.dtype

    def share_out(self) -> None:
        """Under FSDP2, leaves each rank its share of the weights."""
        if self.device_mesh is not None:
            shard(self.embedder, self.device_mesh["data_parallel"])

    def prepare(self) -> None:
        """Adds adapters and freezes what does not train.

        Raises:
            ValueError: Nothing would train, or not all that is asked for.
        """
        if self.writes is None:
            raise ValueError(f"{type(self).__name__} trains nothing: it can only be tested. Fit one of the other stages.")
        self.set_up()
        names = [name for name, _ in self.embedder.named_parameters()]
        if odd := [prefix for prefix in self.trainable_prefixes if not any(name.startswith(prefix) for name in names)]:
            raise ValueError(
                f"What trains fully must be beginnings of parameters' names, got {odd[0]!r}. They look like {names[0]!r}."
            )
        for name, parameter in self.embedder.named_parameters():
            parameter.requires_grad_(name.startswith(self.trainable_prefixes))
        if self.lora is not None:
            self.adapters = Adapters(self.embedder, self.lora, self.lora_prefixes, self.trainable_prefixes)
        self.trained_names = frozenset(name for name, parameter in self.named_parameters() if parameter.requires_grad)
        self.check_precision()
        for tensor in self.trained().values():  # steps are too small for bfloat16, whatever the frozen weights are
            tensor.data = tensor.data.float()
        if not any(name.startswith("embedder.") for name in self.trained_names):
            raise ValueError(
                f"{type(self).__name__} would train nothing: lora is off and no parameter starts with {self.trainable_prefixes}."
            )

    def check_precision(self) -> None:
        """Refuses full precision where a backbone of another dtype would get float32 parameters.

        Raises:
            ValueError: It would.
        """
        if self._trainer is None:  # loaded from a .ckpt, to embed or to write
            return
        mixed = any(name.startswith("embedder.backbone.") and "lora_" not in name for name in self.trained_names)
        if mixed and self.stored != torch.float32 and self.trainer.precision == PRECISIONS[0]:
            raise ValueError(
                f"What trains fully within a {self.stored} backbone is float32: set trainer.precision to {PRECISIONS[1]}."
            )

    def set_up(self) -> None:
        """Applies the settings of attention, compilation and activation checkpointing to the model.

        Raises:
            ValueError: ``matryoshka_dims`` are more than the embedding has.
        """
        settings, width = self.training_settings, self.embedder.config.dim
        if settings.matryoshka_dims and max(settings.matryoshka_dims) > width:
            raise ValueError(
                f"training.matryoshka_dims must be at most the embedding's {width} dimensions, got {settings.matryoshka_dims}."
            )
        self.embedder.train()
        self.embedder.switch(settings.attention, settings.compile)
        if settings.checkpoint_activations:
            self.embedder.gradient_checkpointing_enable({"use_reentrant": False})

    def trained(self) -> dict[str, Tensor]:
        """The parameters that train, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if name in self.trained_names}

    # Writing

    def check_out(self, out: Path, form: Form) -> None:
        """Refuses, before anything is trained, what could not be written in the end.

        Args:
            out: The checkpoint folder that will be written.
            form: See ``write_folder``.

        Raises:
            ValueError: ``out`` is the folder to start from, or holds something else than this stage would write there; or an
                adapter is asked for and there is none.
        """
        check_apart(out, self.folder)
        if self.writes is not None:  # prepare() refuses such a stage
            check_replaceable(out, self.writes, self.modality)
        self.check_form(form)

    def check_form(self, form: Form) -> None:
        """Refuses a form that this stage cannot be written in.

        Raises:
            ValueError: An adapter is asked for and there is none.
        """
        if form == "adapter" and (self.lora is None or self.writes != "specialist"):
            raise ValueError(f"Only a specialist with LoRA can be written as an adapter, got {type(self).__name__}.")

    def check_trained(self, form: Form) -> None:
        """Refuses to write a model that is not trained, or adapters that are no more.

        Raises:
            ValueError: It was neither fitted nor made of a .ckpt; it has no adapters, or they were merged before.
        """
        if self.writes is None:
            raise ValueError(f"{type(self).__name__} trains nothing, so it writes no folder. Use {self.folder}, which it scores.")
        if not self.trained_names:
            raise ValueError(
                f"write_folder writes what was trained, and this {type(self).__name__} was not fitted. Call trainer.fit, or make "
                f"it of a .ckpt: {type(self).__name__}.load_from_checkpoint(path)."
            )
        self.check_form(form)
        if form == "adapter" and self.adapters is None:
            raise ValueError("Adapters are written before they are merged, and write_folder has merged them. Write them first.")

    def write_folder(self, out: Path, form: Form = "dense") -> None:
        """Writes the trained model as a checkpoint folder. Every rank has to call; the first one writes.

        Args:
            out: The checkpoint folder to write.
            form: ``dense`` merges adapters into weights of the dtype that the stage started with, ``float32`` into float32 ones;
                ``adapter`` writes the adapters alone.

        Raises:
            ValueError: The stage was not fitted, or ``adapter`` is asked for and there is none.
        """
        self.check_trained(form)
        with self.whole_model():
            if self.global_rank == 0:
                self.write_whole(out, form)

    def write_whole(self, out: Path, form: Form) -> None:
        """Writes a model whose weights are not sharded; called on the first rank.

        Args:
            out: The checkpoint folder.
            form: See ``write_folder``.
        """
        assert self.writes is not None, "prepare() refused such a stage"
        self.embedder.switch("sdpa", None)  # golden vectors are made on the CPU, as whoever loads the folder may make them
        parents = dict(self.provenance.parents) if self.writes != "specialist" else {}
        source = self.provenance
        parents[str(source.modality) if source.state == "specialist" else source.state] = source.fingerprint
        provenance = Provenance(self.writes, self.modality, parents, self.metadata())
        if form == "adapter":
            assert self.adapters is not None, "check_out refused such a stage"
            adapter = self.adapters.export(self.embedder, self.folder, self.trainable_prefixes)
            save_adapter_folder(out, self.embedder, self.processor, provenance, adapter)
            return
        if form == "float32":
            self.stored = torch.float32
            self.embedder.float()
        lost, changed = self.rounding()
        if self.adapters is not None:
            more, adapted = self.adapters.merge(self.stored)
            lost, changed, self.adapters = lost + more, changed + adapted, None
        if lost > ALARM**2 * changed:
            share = 100 * (lost / changed) ** 0.5
            log.warning("Rounding to %s took %.0f %% of what training changed. Write form: float32.", self.stored, share)
        if self.embedder.emb_rows is not None:
            self.embedder.settle_emb_rows()
        for parameter in self.embedder.parameters():  # not buffers: rounded frequencies would give other golden vectors
            parameter.data = parameter.data.to(self.stored)
        save_folder(out, self.embedder, self.processor, provenance)

    def rounding(self) -> tuple[float, float]:
        """Squared norms, over the fully trained parameters, of the rounding error and of the whole update."""
        lost = changed = 0.0
        if self.stored == torch.float32:
            return lost, changed
        before = open_tensors(self.folder)
        for name, tensor in self.trained().items():
            if (own := name.removeprefix("embedder.")) in before.specs:  # adapters are not
                exact = tensor.detach().float().cpu()
                lost += float((exact - exact.to(self.stored).float()).square().sum())
                changed += float((exact - before[own].float()).square().sum())
        return lost, changed

    @contextmanager
    def whole_model(self) -> Iterator[None]:
        """Within the block the first rank has a whole model: a sharded one is reloaded, and the trained parameters copied in."""
        if not is_sharded(self.embedder):
            yield
            return
        found = whole_on_first(self.trained())
        sharded, adapters = self.embedder, self.adapters
        try:
            if self.global_rank == 0:
                self.embedder, _, _ = load_folder(self.folder, self.accepts)
                self.prepare()
                for name, tensor in self.trained().items():
                    tensor.data.copy_(found[name])
            yield
        finally:
            self.embedder, self.adapters = sharded, adapters
