"""`conan configs`: the YAML and .sbatch files that come with the package, and a copy of one to edit."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import lightning_conan

PREFIX = "conan:"
KINDS = (".yaml", ".sbatch")


def config_folder() -> Path:
    """Returns the folder of the packaged YAML files: installed beside the code, or ``configs/`` of a checkout."""
    package = Path(lightning_conan.__file__).parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def names() -> list[str]:
    """Returns the packaged YAML and .sbatch files, relative to their folder."""
    folder = config_folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.suffix in KINDS)


def find_config(name: str) -> Path:
    """Returns the path of a packaged YAML or .sbatch file.

    Args:
        name: Such as ``conan:tiny/base.yaml``; the prefix and YAML's suffix may be omitted.

    Raises:
        ValueError: There is no such file.
    """
    wanted = name.removeprefix(PREFIX)
    wanted = wanted if wanted.endswith(KINDS) else f"{wanted}.yaml"
    if wanted not in (found := names()):
        near = get_close_matches(wanted, found, 1) or found[:1]
        raise ValueError(f"A packaged config must be among those of `conan configs`, got {name!r}. Near it: {near}.")
    return config_folder() / wanted


def resolve(words: Sequence[str]) -> list[str]:
    """Returns a command's words with the path in the place of each ``--config conan:NAME``.

    Raises:
        ValueError: There is no such file.
    """
    found: list[str] = []
    for word in words:
        if found[-1:] == ["--config"] and word.startswith(PREFIX):
            word = str(find_config(word))
        elif word.startswith(f"--config={PREFIX}"):
            word = f"--config={find_config(word.removeprefix('--config='))}"
        found.append(word)
    return found


def configs(name: str | None = None, out: Path | None = None) -> None:
    """Lists the packaged configs, prints one, or copies one to edit. Every verb reads them as ``--config conan:NAME``.

    Args:
        name: The config to print or copy, such as tiny/base.yaml; all are listed by default.
        out: The file to write; it must not exist yet.
    """
    if name is None:
        if out is not None:
            raise ValueError(f"--out needs the name of a config to copy, got none beside {out}. `conan configs` lists them.")
        width = max(map(len, names()))
        for each in names():
            lines = find_config(each).read_text(encoding="utf-8").splitlines()
            said = lines[lines[0].startswith("#!")].removeprefix("# ")
            print(f"{PREFIX}{each:<{width}}  {said}")
        return
    text = find_config(name).read_text(encoding="utf-8")
    if out is None:
        print(text, end="")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ValueError(f"{out} exists already. Choose another file with --out, or remove it first.") from error


def run(args: Sequence[str]) -> None:
    """Parses the options and lists, prints or copies."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="conan configs", exit_on_error=False, description=configs.__doc__.splitlines()[0] if configs.__doc__ else ""
    )
    parser.add_argument("name", type=str | None, nargs="?", help="A config to print or copy; all are listed by default.")
    parser.add_argument("--out", type=Path | None, default=None, help="Copy it to this file, which must not exist yet.")
    found = parser.parse_args(list(args))
    configs(found.name, found.out)
