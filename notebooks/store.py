"""Runs the notebooks and stores them with their outputs, small and the same on every machine.

    python notebooks/store.py              # all of them, their small models trained anew
    python notebooks/store.py 01 05        # those whose names begin so
    python notebooks/store.py --check      # runs them, writes nothing, and fails where a stored output differs

Outputs lose what differs from run to run: times, warnings on the standard error, counts of earlier runs; images get a palette. A path of
this machine in an output is refused. Cells with the tag `varies` hold what depends on a machine's rounding (scores, the order of
hits): they are stored, and not compared.
"""

import argparse
import base64
import difflib
import io
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

HERE = Path(__file__).resolve().parent
COLOURS = 128
"""Colours of a stored figure."""
LIMIT = 900
"""Seconds that one cell may take."""
VARIES = "varies"
MEDIA = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=]+")
STYLE = re.compile(r"<style>.*?</style>\n?", re.DOTALL)
LOCAL = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|usr|private|Users|var|opt)/|\\Users\\|0x[0-9a-f]{6,}")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path) -> NotebookNode:
    """Runs a notebook from top to bottom, in its own folder.

    Args:
        path: The notebook.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=LIMIT, resources={"metadata": {"path": str(path.parent)}}).execute()
    return clean(notebook)


def clean(notebook: NotebookNode) -> NotebookNode:
    """Strips what differs from run to run; a second time changes nothing.

    Args:
        notebook: The notebook, which is changed.

    Raises:
        ValueError: An output names a path of this machine.
    """
    notebook.metadata = nbformat.from_dict(METADATA)
    run = 0
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            run += 1
            cell.execution_count = run
            cell.outputs = [*shown(cell.outputs, run)]
            if found := LOCAL.search(MEDIA.sub("", str([*words_of(cell.outputs)]))):
                raise ValueError(f"Outputs must name no place of this machine, cell {number} does: {found[0]!r}. Print less.")
    return notebook


def words_of(outputs: list[NotebookNode]) -> Iterator[str]:
    """Yields what outputs say: all but pictures, whose base64 may hold anything.

    Args:
        outputs: Outputs of a cell.
    """
    for output in outputs:
        yield output.get("text", "")
        yield from (str(value) for kind, value in output.get("data", {}).items() if not kind.startswith("image/p"))


def shown(outputs: list[NotebookNode], run: int) -> Iterator[NotebookNode]:
    """Yields the outputs that are stored: streams joined, without the standard error; images with a palette.

    Args:
        outputs: Outputs of a cell.
        run: Number of the cell among those with code.
    """
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    if text:
        yield nbformat.v4.new_output("stream", name="stdout", text=text)
    for output in outputs:
        if output.output_type != "stream":
            if "execution_count" in output:
                output.execution_count = run
            if "text/html" in output.get("data", {}):
                output.data["text/plain"] = "shown as HTML"
            if image := output.get("data", {}).get("image/png"):
                output.data["image/png"] = smaller(image)
            output.metadata = nbformat.from_dict({})
            yield output


def smaller(image: str) -> str:
    """Gives a PNG a palette; one that has it already is unchanged.

    Args:
        image: The PNG in base64.
    """
    picture = Image.open(io.BytesIO(base64.b64decode(image)))
    if picture.mode == "P":
        return image
    buffer = io.BytesIO()
    flat = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA")).convert("RGB")
    flat.quantize(COLOURS, Image.Quantize.FASTOCTREE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def comparable(notebook: NotebookNode) -> str:
    """The outputs that must be the same on every machine, as text: images and media by their kind alone, styles left out.

    Args:
        notebook: A notebook that is clean.
    """
    lines = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or VARIES in cell.metadata.get("tags", []):
            continue
        lines.append(f"# cell {number}")
        for output in cell.outputs:
            data = output.get("data", {"text/plain": output.get("text", "")})
            for kind in sorted(data):
                text = STYLE.sub("", MEDIA.sub("data:", data[kind]))
                lines.append(kind if kind.startswith("image/") else f"{kind}\n{text}")
    return "\n".join(lines)


def differences(stored: NotebookNode, fresh: NotebookNode) -> str:
    """Returns the lines in which stored outputs differ from fresh ones; nothing if they are the same.

    Args:
        stored: The notebook as it is stored.
        fresh: The notebook after a run.
    """
    before, after = (comparable(notebook).splitlines() for notebook in (stored, fresh))
    return "\n".join(difflib.unified_diff(before, after, "stored", "fresh", lineterm="", n=1))


def main(words: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        words: Its arguments; by default the process'.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names; all notebooks by default")
    parser.add_argument("--check", action="store_true", help="compare with what is stored, and write nothing")
    options = parser.parse_args(words)
    chosen = [path for path in sorted(HERE.glob("*.ipynb")) if not options.names or path.name.startswith(tuple(options.names))]
    if not chosen:
        parser.error(f"no notebook begins with {options.names}")
    if not options.names:
        shutil.rmtree(HERE.parent / "runs" / "notebooks", ignore_errors=True)  # what an earlier version trained
    failed = 0
    for path in chosen:
        fresh = execute(path)
        if not options.check:
            nbformat.write(fresh, path)
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)
        elif found := differences(nbformat.read(path, as_version=4), fresh):
            failed += 1
            print(f"{path.name} differs:\n{found}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
