"""`conan graft`: a base folder."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lightning_conan.embedder.processor_config import ProcessorConfig


def graft(
    out: Path,
    backbone: str | None = None,
    audio: str | None = None,
    seed: int = 0,
    projector_hidden_size: int = 3072,
    golden: bool = True,
    tiny: bool = False,
    processor: ProcessorConfig = ProcessorConfig(),  # noqa: B008  # frozen
) -> None:
    """Makes a base folder: a vision-language model, an audio encoder, a fresh projector and rows for the audio tokens; or, of a
    model that hears, all that it has.

    Args:
        out: The folder to write.
        backbone: A checkpoint of a known family (docs/backbones.md): a folder, or its name on the hub such as
            Qwen/Qwen3-VL-2B-Instruct. BACKBONE+ADAPTER merges a PEFT adapter into it.
        audio: A checkpoint with an audio encoder, Qwen3-Omni's or Whisper's, likewise. Only the encoder is read. Leave it out,
            or name the backbone's, for a backbone that hears: its audio encoder and projector stay as they were trained.
        seed: Seed of the randomly initialised modules.
        projector_hidden_size: Width of a fresh projector's hidden layer.
        golden: Embed a few fixed items, so that `conan doctor` can tell later whether they still come out the same.
            Takes the memory of the whole model once.
        tiny: Instead of the two checkpoints, the tiny configuration: about a million randomly started parameters.
        processor: How inputs become tokens; patch and window sizes are taken from the models.
    """
    from lightning_conan.cli.common.closing import close
    from lightning_conan.cli.common.logging import quiet_libraries
    from lightning_conan.embedder import graft_folder
    from lightning_conan.terminal import printable

    quiet_libraries()
    if tiny == bool(backbone or audio) or (audio and not backbone):
        raise ValueError(f"graft needs both --backbone and --audio, or --tiny true, got {backbone}, {audio}, {tiny}.")
    if tiny and (processor != ProcessorConfig() or projector_hidden_size != 3072 or not golden):
        raise ValueError("--tiny true has a processor, a projector and golden vectors of its own: leave out what sets them.")
    if backbone is None:
        write_tiny(out, seed)
        close("graft", [out], family="tiny")
        return
    report = graft_folder(backbone, audio, out, processor, projector_hidden_size, seed, golden)
    drawn = any(name.startswith("audio_projector.") for name in report.fresh)
    sources = {"audio_encoder": report.audio, "audio_projector": f"fresh, seed {seed}" if drawn else report.audio}
    for part, count in report.parameters.items():
        source = sources.get(part, backbone)
        print(f"{part:<16}{count:>15,} parameters  from {source}")
    for part, count in Counter(name.split(".")[0] for name in report.left_out).items():
        print(f"{part:<16}{count:>15,} tensors left out, listed in {out / 'graft.json'}")
    if report.adapter is not None:
        for line in (report.adapter.lines()[0], *report.adapter.notes):
            print(printable(line))
    print(f"{out}: base, {sum(report.parameters.values()):,} parameters; see {out / 'graft.json'}")
    close("graft", [out], family=report.family)


def write_tiny(out: Path, seed: int) -> None:
    """Writes the tiny configuration's base folder.

    Args:
        out: The folder to write.
        seed: Fixes its parameters.
    """
    from lightning_conan.embedder import Provenance, save_folder, tiny_embedder

    model, processor = tiny_embedder(seed)
    save_folder(out, model, processor, Provenance("base", notes={"tiny": True, "seed": seed}))
    print(f"{out}: base, {sum(p.numel() for p in model.parameters()):,} parameters, seed {seed}")


def run(args: Sequence[str]) -> None:
    """Parses the options and grafts."""
    from jsonargparse import auto_cli

    auto_cli(graft, args=list(args), prog="conan graft", as_positional=False, exit_on_error=False)
