"""README and docs/ are short, plain and true to the code: links, options, words, pictures."""

import ast
import importlib.util
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest

from lightning_conan.cli.main import LIGHTNING, VERBS, main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGES = ("lightning_conan", "datamodules", "callbacks")
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
GUIDES = [path for path in PAGES if path.name not in ("log.md", "mutations.md")]
"""Pages for users; the others are a diary, and a table that is made from the tests."""
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((DOCS / "decisions").glob("*.md"))]
name = {"ids": lambda path: str(path.relative_to(ROOT))}


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def spans(text: str) -> list[str]:
    """Texts in `code`, and the lines of blocks of commands."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [*re.findall(r"`([^`\n]+)`", rest), *"\n".join(blocks).splitlines()]


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 9_000


@pytest.mark.parametrize("page", LINKED, **name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            place = (page.parent / file).resolve() if file else page
            assert place.exists(), target
            assert not anchor or anchor in anchors(place), target


def test_the_index_lists_every_page():
    linked = set(re.findall(r"\]\(([^)]+)\)", (DOCS / "index.md").read_text()))
    assert {path.name for path in DOCS.glob("*.md")} - {"index.md"} <= linked


@pytest.mark.parametrize("page", [*GUIDES, ROOT / "CONTRIBUTING.md"], **name)
def test_files_and_targets_that_are_named_exist(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for span in spans(page.read_text()):
        for file in re.findall(
            r"(?<![\w./-])(?:configs|docs|tests|benchmarks|notebooks|lightning_conan|\.ci)/[\w./-]+\.\w+", span
        ):
            assert (ROOT / file).is_file(), file
        for file in re.findall(r"(?<!^)conan:([\w/]+\.yaml)", span):
            assert (ROOT / "configs" / file).is_file(), file
        if target := re.match(r"make (\S+)", span):
            assert target[1] in targets, span


@cache
def options(verb: str) -> frozenset[str]:
    """The options that `conan VERB --help` lists, in each of its forms."""
    told = StringIO()
    with redirect_stdout(told):
        for form in ([], FORMS[verb]) if verb in FORMS else ([],):
            assert main([verb, *form, "--help"]) == 0
    return frozenset(re.findall(r"--([\w.-]+)", told.getvalue()))


FORMS = {"pack": ["--check"], "fuse": ["--mergekit=merge.yml"], "evaluate": ["--table=table.yaml"]}
"""Options with which a verb takes others."""


@cache
def parameters() -> frozenset[str]:
    """The names of the parameters and fields of all classes, any of which may be set in a YAML or by `init_args`."""
    classes = [node for path in files() for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    lines = [line for found in classes for line in found.body]
    fields = {line.target.id for line in lines if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)}
    starts = [line.args for line in lines if isinstance(line, ast.FunctionDef) and line.name == "__init__"]
    return frozenset(fields | {each.arg for start in starts for each in (*start.args, *start.kwonlyargs)})


def files() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def known(option: str, verb: str) -> bool:
    """True if a verb's help lists an option, or it is a parameter of a class that the option names."""
    option = option.removesuffix(".help")
    if option.endswith("*"):
        return any(there.startswith(option[:-1]) for there in options(verb))
    group, *rest = option.split(".")
    if verb in LIGHTNING and group in ("model", "data", "trainer") and rest[:1] in (["init_args"], ["callbacks"]):
        return set(rest[1:]) <= parameters()
    if f"{group}.help" in options(verb):
        return set(rest) <= parameters()
    long = {option, f"query.{option}", f"approximate.{option}"}  # `conan search --text` is short for --query.text
    return not long.isdisjoint(options(verb))


def named(page: Path) -> Iterator[tuple[str, str]]:
    """The verbs that a page names, with each of their options; an empty verb for an option that stands alone."""
    for span in spans(page.read_text()):
        verb = re.match(r"(?:\w+=\S+ )?conan ([a-z]+)\b", span)
        if verb or span.startswith("--"):
            found = re.findall(r"(?:^|\s)--([a-z][\w.]*\*?)", re.sub(r"'[^']*'", "", span))
            yield from ((verb[1] if verb else "", option) for option in found or ["help"])


@pytest.mark.parametrize("page", GUIDES, **name)
def test_verbs_and_options_that_are_named_exist(page):
    found = list(named(page))
    assert {verb for verb, _ in found} <= {"", *LIGHTNING, *VERBS}
    wanted = [(verb, option) for verb, option in found if option != "help" and (verb or option not in PEERS)]
    odd = [use for use in wanted if not any(known(use[1], verb) for verb in ([use[0]] if use[0] else ("fit", *VERBS)))]
    assert not odd


PEERS = {"quick", "streaming", "only", "beside", "table"}
"""Options of benchmarks and of tests/mutations.py, which stand alone in some places."""


def avoided() -> list[str]:
    """The words that the glossary's last line lists."""
    return re.findall(r"`([^`]+)`", (DOCS / "glossary.md").read_text().strip().splitlines()[-1])


@pytest.mark.parametrize("page", GUIDES, **name)
def test_pages_use_one_word_for_a_thing(page):
    text = without_code(page.read_text())
    if page.name == "glossary.md":  # whose last column holds what is avoided
        text = re.sub(r"\|[^|\n]*\|$", "", text, flags=re.MULTILINE)
    found = [word for word in avoided() if re.search(rf"\b{word}\b", text, flags=re.IGNORECASE)]
    assert avoided()
    assert not found


def test_a_term_has_one_line():
    terms = re.findall(r"^\| ([^|]+) \|", (DOCS / "glossary.md").read_text(), flags=re.MULTILINE)
    terms = [term for term in terms if term not in ("term",) and "---" not in term]
    assert len(terms) == len(set(terms)) > 40


QUESTIONS = ("What", "Whether", "How", "Which", "Where")


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a file, those of constants and fields included."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", [])
        for line in body if isinstance(body, list) else []:
            if isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str):
                yield line.value.value


def test_docstrings_open_with_a_verb_or_a_noun():
    paths = [*files(), *(path for folder in ("benchmarks", "docs", "tests") for path in (ROOT / folder).rglob("*.py"))]
    odd = {path for path in paths for text in docstrings(path) if re.match(rf"\s*({'|'.join(QUESTIONS)})\b", text)}
    assert not odd


def public_functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions and methods that others may call, but for those that override one."""
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.ClassDef):
            yield from public_functions(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield from [] if "override" in map(ast.unparse, node.decorator_list) else [node]


def undescribed(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """The parameters of a function of two or more that its docstring's Args do not name."""
    args = function.args
    found = [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]
    names = {each.arg for each in found if each.arg not in ("self", "cls") and not each.arg.startswith("_")}
    _, _, section = (ast.get_docstring(function) or "").partition("Args:\n")
    return names - set(re.findall(r"^    (\w+):", section, flags=re.MULTILINE)) if len(names) > 1 else set()


def test_arguments_are_described():
    lacking = {
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}: {', '.join(sorted(missing))}"
        for path in files()
        for function in public_functions(ast.parse(path.read_text()))
        if (missing := undescribed(function))
    }
    assert not lacking


def script(name: str):
    """A script of docs/, as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def drawing():
    return script("draw_rooms")


def test_warnings_of_the_reference_are_found(tmp_path, monkeypatch):
    """An annotation that cannot be read, where it stands and not where it is inherited; one that can is no matter."""
    reference = script("reference")
    parent = '"""Pages."""\nclass Page:\n    """One."""\n    def turn(self, by: int, odd: "Nowhere"): "Turns."\n'
    (tmp_path / "conan_page.py").write_text(parent)
    (tmp_path / "conan_book.py").write_text('"""Books."""\nfrom conan_page import Page\nclass Book(Page):\n    """Many."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(reference, "PACKAGES", ("conan_page", "conan_book"))
    (found,) = reference.build(tmp_path / "out")
    assert "annotation Nowhere for conan_page.Page.turn" in found
    assert reference.inherited("Error parsing type annotation X | None for conan_book.Book.turn. Import of X failed")
    assert (tmp_path / "out" / "conan_book.html").is_file()


def test_the_picture_of_the_packages_is_that_of_the_code(drawing):
    assert drawing.draw(drawing.imports()) == (DOCS / "rooms.svg").read_text(), "run `python docs/draw_rooms.py`"


def test_a_package_stands_above_what_it_imports(drawing):
    assert drawing.levels({"cli": {"media", "items"}, "media": {"items"}, "items": set()}) == [["items"], ["media"], ["cli"]]
    with pytest.raises(ValueError, match=r"a circle among \['cli', 'media'\]"):
        drawing.levels({"cli": {"media"}, "media": {"cli"}, "items": set()})
    with pytest.raises(ValueError, match=r"none for \['attic'\]"):
        drawing.draw({"attic": set()})


@pytest.mark.parametrize("picture", sorted(DOCS.glob("*.svg")), **name)
def test_pictures_are_svg_and_read_on_light_and_dark(picture):
    """Dark text stands on boxes of its own; what stands on the page itself is of a middle gray or red."""
    root = ElementTree.parse(picture).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    for rect in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert min(int(rect.get("fill")[at : at + 2], 16) for at in (1, 3, 5)) > 0xD0
