"""The package as pip installs it: all of it, with its configs, from an empty folder, under any range of its requirements."""

import ast
import configparser
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from lightning_conan.extras import EXTRAS, missing, require
from lightning_conan.retrieval.engines.place import ENGINES

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
PACKAGES = ("lightning_conan", "datamodules", "callbacks")


def load_lowest():
    spec = importlib.util.spec_from_file_location("lowest", ROOT / ".ci" / "lowest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def required(block: str) -> list[Requirement]:
    return [Requirement(line) for line in block.splitlines() if line.strip() and not line.startswith("#")]


NEEDED = required(SETUP["options"]["install_requires"])


def test_every_package_is_installed():
    """The list in setup.cfg stands for `find:`, which knows no configs/."""
    found = {".".join(path.parent.relative_to(ROOT).parts) for name in PACKAGES for path in (ROOT / name).rglob("__init__.py")}
    folders = {path.parent.relative_to(ROOT / "configs").parts for path in (ROOT / "configs").rglob("*.*")}
    found |= {".".join(("lightning_conan", "configs", *folder)) for folder in folders}
    assert set(SETUP["options"]["packages"].split()) == found


def test_what_the_core_imports_is_required():
    """An import at the top of a module needs a requirement; an optional one is imported where it is used, behind its extra."""
    names = {"PIL": "pillow", "yaml": "pyyaml", "lazy_loader": "lazy-loader", "typing_extensions": "typing-extensions"}
    needed = {need.name.replace("_", "-") for need in NEEDED} | {"lightning-conan", "lightning-conan.cli"}
    own, odd = {*PACKAGES, *sys.stdlib_module_names}, set()
    for path in (path for name in PACKAGES for path in (ROOT / name).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            tops = {name.split(".")[0] for name in found} - own
            odd |= {(path.name, top) for top in tops if names.get(top, top).replace("_", "-") not in needed}
    boards = {top for name, top in odd if name.startswith("mteb_")}
    assert boards == {"sentence_transformers", "mteb", "datasets", "huggingface_hub"}, "behind the extra boards"
    serve = {"starlette", "uvicorn", "prometheus_client", "httpcore"}  # httpcore is httpx' own
    others = {top for name, top in odd if not name.startswith("mteb_")}
    assert others == {"sentence_transformers", *serve}, "behind the extras export and serve"


def test_every_requirement_has_both_ends():
    for need in NEEDED:
        operators = {spec.operator for spec in need.specifier}
        assert operators >= {">="}, f"{need}: the lowest release is tested, so there must be one"
        assert "<" in operators or need.name in {"packaging", "typing_extensions"}, f"{need}: the next major may break"


def test_the_cards_packages_are_no_extras():
    fixed = {"lightning", "torch", "transformers", "peft", "torchmetrics", "webdataset", "wandb", "torchaudio"}
    assert fixed <= {need.name for need in NEEDED}


def test_constraints_hold_the_lowest_release_of_each(tmp_path):
    lowest = load_lowest()
    assert lowest.lowest("fsspec[http]>=2024.6,<2028") == "fsspec==2024.6"
    assert lowest.lowest("GradCache==0.0.1") == "GradCache==0.0.1"
    with pytest.raises(ValueError, match="lower bound"):
        lowest.lowest("torch<3")
    printed = subprocess.run([sys.executable, ROOT / ".ci" / "lowest.py"], capture_output=True, text=True, check=True).stdout
    found = dict(line.split("==") for line in printed.split())
    for need in NEEDED:
        assert need.specifier.contains(found[need.name]), f"{need} excludes its own lowest release"
        assert not any(need.specifier.contains(lower) for lower in ("0", "0.0.1") if Version(lower) < Version(found[need.name]))
    assert "lightning-conan" not in found


def test_messages_name_an_extra_that_exists(monkeypatch):
    extras = {name: {need.name for need in required(block)} for name, block in SETUP["options.extras_require"].items()}
    names = {"faiss": "faiss_cpu"}
    needs = {extra: {name.replace("-", "_") for name in found} for extra, found in extras.items()}
    assert all(names.get(module, module) in needs[extra] for module, extra in EXTRAS.items())
    assert required(SETUP["options.extras_require"]["all"])[0].extras == set(extras) - {"all", "dev", "bench", *ENGINES}
    assert missing("lmdb") == ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"Drawing needs matplotlib, .* pip install 'lightning-conan\[plots\]'"):
        require("matplotlib", "Drawing")


@pytest.mark.parametrize("name", PACKAGES)
def test_types_are_shipped(name):
    """And every public name of a package stands in its stub, where type checkers look."""
    assert (ROOT / name / "py.typed").is_file()
    for stub in (ROOT / name).rglob("__init__.pyi"):
        package = importlib.import_module(".".join(stub.parent.relative_to(ROOT).parts))
        listed = ast.literal_eval(re.search(r"__all__ = (\[.*?\])", stub.read_text(), flags=re.DOTALL).group(1))
        assert sorted(package.__all__) == sorted(listed)
        assert all(getattr(package, public) is not None for public in listed)
        hidden = {path.stem for path in stub.parent.iterdir()} & set(listed)
        assert not hidden, "importing the module would put it in the place of what a package imports lazily under its name"


SHIPPED = {*PACKAGES, "configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"}
FRESH = """
import sys
from pathlib import Path
from lightning_conan.cli.main import main
import lightning_conan, datamodules, callbacks
site = Path(sys.argv[1])
assert all(Path(package.__file__).is_relative_to(site) for package in (lightning_conan, datamodules, callbacks))
manifest = Path("pairs.jsonl")
manifest.write_text("".join(f'{{"key": "k{n}", "task": "t", "modality": "text", "query": {{"text": "a {n}"}}, '
                            f'"target": {{"text": "b {n}"}}}}\\n' for n in range(8)))
short = ["--trainer.max_steps", "1", "--data.init_args.batch_size", "4", "--trainer.default_root_dir", "work"]
for words in (
    ["configs"],
    ["configs", "tiny/base.yaml", "--out", "mine.yaml"],
    ["graft", "--tiny", "true", "--out", "base"],
    ["pack", "pairs.jsonl", "--out", "packed"],
    ["fit", "--config", "conan:base.yaml", "--config", "conan:tiny/base.yaml", "--config=mine.yaml",
     "--trainer.callbacks.out", "out", "--model.init_args.folder", "base",
     "--data.init_args.train", '{"text": "packed"}', *short],
    ["export", "out", "--to", "sentence-transformers", "exported"],
):
    assert main(words) == 0, words
from sentence_transformers import SentenceTransformer
print(SentenceTransformer("exported", trust_remote_code=True, device="cpu").encode(["a 1"]).shape)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the source distribution, which is built from what git knows or will know."""
    place = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    for name in filter(None, listed):
        if name.split("/")[0] in SHIPPED and (ROOT / name).is_file():
            (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "source" / name).write_bytes((ROOT / name).read_bytes())
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", place / "dist", place / "source"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (place / "dist").glob("*.whl")
    return built


def test_the_wheel_is_the_product(wheel, tmp_path):
    """In an empty folder, with no checkout on the path: configs, training, export (.ci/smoke runs the whole line so)."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile", "--target", site, wheel]
    subprocess.run(pip, check=True)
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-P", "-c", FRESH, str(site)]
    done = subprocess.run(words, cwd=empty, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "conan:tiny/recovery.yaml" in done.stdout
    assert done.stdout.endswith("(1, 128)\n")
    top = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {*PACKAGES, "bin"}, "nothing else lands in site-packages"


def test_the_wheels_metadata_is_whole(wheel, tmp_path):
    import zipfile

    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith("METADATA")]
    for field in ("License-Expression: Apache-2.0", "Keywords: ", "Classifier: Typing :: Typed", "License-File: LICENSE"):
        assert field in metadata
    assert not re.search(r"^Author", metadata, flags=re.MULTILINE)
    page = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lightning_conan" / "serving" / "page").glob("*.[!py]*")}
    assert page
    assert page <= set(names)
    shipped = {name.removeprefix("lightning_conan/") for name in names if name.startswith("lightning_conan/configs/")}
    assert shipped == {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.*")}


HIDING = """
import sys
from lightning_conan.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_users_folder_of_the_same_name_hides_nothing(base, world, tmp_path):
    """And its modules are found beside ours."""
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "__init__.py").write_text("raise SystemExit('a stranger was imported')")
    (tmp_path / "callbacks" / "mine.py").write_text(
        "import lightning\nclass Told(lightning.Callback):\n    def on_train_end(self, *_):\n        print('told at the end')\n"
    )
    words = ["fit", "--config", "conan:base.yaml", "--config", "conan:tiny/specialist.yaml"]
    words += [
        "--model.init_args.folder",
        str(base),
        "--data.init_args.train",
        str(world / "image"),
        "--data.init_args.batch_size",
        "4",
        "--trainer.max_steps",
        "1",
    ]
    words += ["--trainer.callbacks.out", "out", "--trainer.default_root_dir", "work"]
    words += ["--trainer.callbacks+", "callbacks.mine.Told"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", HIDING, *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "told at the end" in done.stdout
    assert f"{tmp_path / 'callbacks'} has the name of a package of lightning-conan's" in done.stderr
    assert (tmp_path / "out" / "conan.json").is_file()
