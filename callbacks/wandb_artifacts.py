"""Checkpoint folders and data sets as artifacts of Weights & Biases, joined to a graph by their hashes."""

import json
from collections.abc import Mapping
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.loggers import WandbLogger
from typing_extensions import override

from callbacks.folder_checkpoint import FolderCheckpoint
from callbacks.projector_drift import ProjectorDrift
from callbacks.run_facts import checkpoint_folders
from callbacks.wandb_media import drift_media, folder_media, work_media
from lightning_conan.embedder import read_provenance
from lightning_conan.embedder.checkpoint import PROVENANCE
from lightning_conan.training.protocols import Contents, KnownData, callbacks_of, datamodule_of, is_dry_run
from lightning_conan.web import is_url

if TYPE_CHECKING:
    from wandb import Artifact
    from wandb.sdk.wandb_run import Run

DIGITS = 12
"""Of a hash in an artifact's name."""


class WandbArtifacts(Callback):
    """Joins runs to a graph: a run uses the checkpoint folders and data sets that it starts from, and logs what it writes.

    Artifacts are named by state and hash (``audio-specialist-0a1b2c3d4e5f``), so that whoever logs a folder, and from whichever
    place, means the same one. By default they hold references (``file://``) with the files' checksums, and no file is copied
    or sent. At the end of a fit the run also gets, as far as they exist, plots and tables of drift by layer, task vectors,
    coefficients, exposure and skipped samples. Only loggers of Weights & Biases are concerned.

    Args:
        upload: True to hold the files of the folder that is written instead of references. Data sets are always references.
    """

    def __init__(self, upload: bool = False) -> None:
        self.upload = upload

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not trainer.is_global_zero or is_dry_run(trainer):
            return
        data, stages = datamodule_of(trainer), ("fit", "validate") if stage == "fit" else (stage,)
        known = [pair for each in stages for pair in data.contents(each).items()] if isinstance(data, KnownData) else []
        sets = {contents.digest: (name, contents) for name, contents in known}
        folders = dict.fromkeys(folder for _, folder in checkpoint_folders(dict(pl_module.hparams)))
        for run in runs_of(trainer):
            for artifact in [*map(model_artifact, folders), *starmap(data_artifact, sets.values())]:
                use(run, artifact)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Runs after all folders are written, whatever the order of the callbacks."""
        if stage != "fit" or not trainer.is_global_zero or is_dry_run(trainer):
            return
        callbacks = callbacks_of(trainer)
        media = dict(work_media(Path(trainer.default_root_dir)))
        for callback in callbacks:
            if isinstance(callback, ProjectorDrift):
                media |= {f"{name}/{callback.modality}": found for name, found in drift_media(callback.history)}
        for run in runs_of(trainer):
            for callback in callbacks:
                if isinstance(callback, FolderCheckpoint) and (callback.out / PROVENANCE).is_file():
                    run.log_artifact(model_artifact(callback.out, self.upload))
                    media |= dict(folder_media(callback.out))
            if media:
                run.log({**media, "trainer/global_step": trainer.global_step})


def runs_of(trainer: Trainer) -> "list[Run]":
    """Runs of Weights & Biases that a trainer logs to, without disabled ones."""
    found: list[Any] = [logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    return [run for run in found if not run.disabled]


def use(run: "Run", artifact: "Artifact") -> None:
    """Notes that a run reads an artifact, which need not have been logged before.

    Args:
        run: The run.
        artifact: The artifact.
    """
    if run.offline:  # use_artifact refuses, since names would have to be looked up; this is what it does with a draft
        run._log_artifact(artifact, aliases=[], is_user_created=True, use_after_commit=True)
    else:
        run.use_artifact(artifact)


def model_artifact(folder: Path, upload: bool = False) -> "Artifact":
    """Makes the artifact of a checkpoint folder.

    Args:
        folder: The folder.
        upload: True for its files; False for references to them, with their checksums.
    """
    import wandb

    known = read_provenance(folder)
    facts = {"state": known.state, "modality": known.modality, "hash": known.fingerprint, "parents": dict(known.parents)}
    facts |= {"notes": plain_json(known.notes), "versions": dict(known.versions), "folder": str(folder)}
    artifact = wandb.Artifact(artifact_name(known.state, known.modality, known.fingerprint), type="model", metadata=facts)
    if upload:
        artifact.add_dir(str(folder), policy="immutable", skip_cache=True)
    else:
        artifact.add_reference(folder.resolve().as_uri())
    return artifact


def artifact_name(state: str, modality: str | None, fingerprint: str) -> str:
    """Returns the name of a checkpoint folder's artifact, the same wherever it lies.

    Args:
        state: State of the model.
        modality: A specialist's modality.
        fingerprint: Hash of the weights.
    """
    return "-".join(filter(None, (modality, state, fingerprint[:DIGITS])))


def data_artifact(name: str, contents: Contents) -> "Artifact":
    """Makes the artifact of a packed data set: references to local files, or the address of a remote set.

    Args:
        name: Name of the data set.
        contents: Its place and hash.
    """
    import wandb

    facts = {"name": name, "place": contents.place, "hash": contents.digest, "pairs": contents.pairs}
    artifact = wandb.Artifact(f"data-{contents.digest[:DIGITS]}", type="dataset", metadata=facts)
    if is_url(contents.place) or not Path(contents.place).exists():
        with artifact.new_file("place.json") as file:
            json.dump(facts, file)
    else:
        artifact.add_reference(Path(contents.place).resolve().as_uri(), checksum=False)  # the name has the hash of the content
    return artifact


def plain_json(found: Mapping[str, Any]) -> Any:
    """Returns notes as what JSON holds, since metadata must be that."""
    return json.loads(json.dumps(found, default=str))
