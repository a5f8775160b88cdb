"""`conan export`: a checkpoint folder for the libraries that users already have."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal


def run(args: Sequence[str]) -> None:
    """Parses the options and exports."""
    from jsonargparse import ArgumentParser

    from lightning_conan.cli.common.closing import close
    from lightning_conan.cli.common.logging import quiet_libraries
    from lightning_conan.embedder import export_folder
    from lightning_conan.terminal import waiting

    parser = ArgumentParser(
        prog="conan export",
        exit_on_error=False,
        description="Writes a folder that sentence-transformers loads, with the same vectors and a model card.",
    )
    parser.add_argument("--config", action="config", help="Read options from a YAML file.")
    parser.add_argument("folder", type=Path, help="The checkpoint folder, dense or an adapter.")
    parser.add_argument("out", type=Path, help="The folder to write.")
    parser.add_argument("--to", type=Literal["sentence-transformers"], default="sentence-transformers", help="The library.")
    parser.add_argument(
        "--stock",
        type=bool,
        default=False,
        help="Only the library's own modules: text, image and video, without audio; loading needs nothing of this package.",
    )
    parser.add_argument("--scores", type=Path | None, default=None, help="Scores that `conan test` wrote, for the model card.")
    options = parser.parse_args(list(args))
    quiet_libraries()
    scores = json.loads(options.scores.read_text()) if options.scores else None
    with waiting(f"exporting {options.folder}"):
        export_folder(options.folder, options.out, options.stock, scores)
    trust = "" if options.stock else ", trust_remote_code=True"
    print(f'{options.out}: SentenceTransformer("{options.out}"{trust}) gives the vectors of {options.folder}')
    close("export", [options.out], folder=options.folder)
