"""Notebooks run from top to bottom, and are stored with the outputs that a run gives."""

import importlib.util
import shutil
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ALL_TOGETHER = 1_500_000
"""Bytes of all stored notebooks."""


def load_store():
    spec = importlib.util.spec_from_file_location("store", FOLDER / "store.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


store = load_store()
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the folder, with no trained line beside it: the first notebook trains it, as in a clean clone."""
    return Path(shutil.copytree(FOLDER, tmp_path_factory.mktemp("clone") / "notebooks"))


@each
def test_outputs_are_those_of_a_run(path, copy):
    """Figures, and cells that a machine's rounding may change, apart."""
    assert not store.differences(nbformat.read(path, as_version=4), store.execute(copy / path.name))


@each
def test_stored_outputs_are_clean_and_shown_in_html(path):
    """Cleaning changes nothing more, every code cell was run, and the page holds each figure."""
    notebook = nbformat.read(path, as_version=4)
    again = store.clean(nbformat.read(path, as_version=4))
    assert again == notebook
    assert not [output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    page, _ = HTMLExporter().from_notebook_node(notebook)
    figures = [
        output.data["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert page.count("data:image/png;base64") >= len(figures)
    assert path.stem.startswith("04") or len(figures) >= 1 or "conan-grid" in page


def test_stored_notebooks_are_small():
    assert sum(path.stat().st_size for path in NOTEBOOKS) < ALL_TOGETHER


def notebook_of(source, *outputs, tags=()):
    cell = nbformat.v4.new_code_cell(
        source, outputs=list(outputs), execution_count=7, metadata={"tags": [*tags], "execution": {"at": "now"}}
    )
    return nbformat.v4.new_notebook(cells=[cell])


def printed(text, name="stdout"):
    return nbformat.v4.new_output("stream", name=name, text=text)


def test_what_differs_from_run_to_run_is_stripped():
    """Standard error and times go, counts begin at 1; parts of a stream are joined."""
    cell = store.clean(notebook_of("print(1)", printed("a\n"), printed("warned", "stderr"), printed("b\n"))).cells[0]
    assert [output.text for output in cell.outputs] == ["a\nb\n"]
    assert cell.execution_count == 1
    assert "execution" not in cell.metadata


@pytest.mark.parametrize("text", ["/tmp/abc/index", "saved in '/home/me/x'", "<object at 0x7f3a12345678>"])
def test_places_of_this_machine_are_refused(text):
    with pytest.raises(ValueError, match="name no place of this machine"):
        store.clean(notebook_of("print()", printed(text)))


def test_a_changed_output_is_noticed_and_a_changed_figure_is_not():
    def told(text, image="QUJD", tags=()):
        return notebook_of("x", printed(text), nbformat.v4.new_output("display_data", {"image/png": image}), tags=tags)

    assert not store.differences(told("1 of 2"), told("1 of 2", "REVG"))
    assert "+2 of 2" in store.differences(told("1 of 2"), told("2 of 2"))
    assert not store.differences(told("1 of 2", tags=[store.VARIES]), told("2 of 2", tags=[store.VARIES]))
    assert store.differences(told("1 of 2"), notebook_of("x", printed("1 of 2")))
    html = [
        nbformat.v4.new_output(
            "display_data", {"text/html": f"<style>\n{style}\n</style>\n<img src='data:image/png;base64,{data}'>{text}"}
        )
        for style, data, text in (("p {}", "QUJD", "a"), ("b {}", "REVG", "a"), ("p {}", "QUJD", "b"))
    ]
    first, other_image, other_text = (notebook_of("x", output) for output in html)
    assert not store.differences(first, other_image)
    assert store.differences(first, other_text)
