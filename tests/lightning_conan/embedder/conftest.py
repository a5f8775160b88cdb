import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from upstream import write_qwen3_omni, write_qwen3_vl

from lightning_conan.cli.main import main
from lightning_conan.embedder import ProcessorConfig, graft_folder, load_folder
from lightning_conan.embedder.checkpoint import file_hash
from lightning_conan.media.sampling import Sampling

LIMITS = ProcessorConfig(
    min_pixels=4096,
    max_pixels=64 * 1024,
    video_min_pixels=4096,
    video_max_pixels=96 * 1024,
    frame_max_tokens=None,
    sampling=Sampling(fps=2.0, min_frames=4, max_frames=16),
)
"""The limits of ``upstream_processor``."""


@pytest.fixture(scope="session")
def upstream(tmp_path_factory) -> Path:
    """``qwen3_vl`` and ``qwen3_omni``, as published."""
    root = tmp_path_factory.mktemp("upstream")
    write_qwen3_vl(root / "qwen3_vl")
    write_qwen3_omni(root / "qwen3_omni")
    return root


@pytest.fixture(scope="session")
def grafted(upstream, tmp_path_factory) -> Path:
    """A base folder made of both."""
    out = tmp_path_factory.mktemp("grafted") / "base"
    graft_folder(str(upstream / "qwen3_vl"), str(upstream / "qwen3_omni"), out, LIMITS, hidden=32)
    return out


@pytest.fixture(scope="session")
def wanted(grafted):
    """From items to their embeddings by the folder itself."""
    model, processor, _ = load_folder(grafted)

    def embed(*items):
        with torch.no_grad():
            return model.embed([processor(item) for item in items])

    return embed


@pytest.fixture(scope="session")
def exported(grafted, tmp_path_factory) -> Path:
    """``whole`` and ``stock``: the two exports for sentence-transformers."""
    root = tmp_path_factory.mktemp("exported")
    (root / "scores.json").write_text(
        json.dumps({"digits": {"recall@1": 95.0, "recall@10": 100.0, "ndcg@10": 98.0, "mrr": 97.0}})
    )
    for name, stock in {"whole": "false", "stock": "true"}.items():
        words = ["export", str(grafted), "--to", "sentence-transformers", str(root / name), "--stock", stock]
        assert main([*words, "--scores", str(root / "scores.json")]) == 0
    return root


@pytest.fixture(scope="session")
def whole(exported):
    return SentenceTransformer(str(exported / "whole"), trust_remote_code=True, device="cpu")


@pytest.fixture(scope="session")
def stock(exported):
    return SentenceTransformer(str(exported / "stock"), device="cpu")


class Hub(SimpleHTTPRequestHandler):
    """Serves folders as a hub does: a listing of a repository, and its files by name."""

    root: Path
    asked: list[str]

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            folder = self.root / parts[3]
            if not folder.is_dir():
                return self.missing("RepoNotFound")
            found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
            files = [
                {"rfilename": name, "type": "file", "path": name, "size": path.stat().st_size, "oid": "0"}
                for name, path in found.items()
            ]
            listing = files if "tree" in parts else {"id": "/".join(parts[2:4]), "sha": "a" * 40, "siblings": files}
            return self.send(json.dumps(listing).encode(), body)
        path = self.root / parts[1] / "/".join(parts[4:])  # OWNER/NAME/resolve/REVISION/...
        if not path.is_file():
            return self.missing("EntryNotFound")
        if body:
            self.asked.append(path.name)
        return self.send(path.read_bytes(), body, {"ETag": f'"{file_hash(path)}"', "X-Repo-Commit": "a" * 40})

    def missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.end_headers()

    def send(self, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(upstream, tmp_path, monkeypatch):
    """A stand-in for the hub, on this machine."""
    import huggingface_hub.constants as constants

    handler = type("TheHub", (Hub,), {"root": upstream, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield handler
    server.shutdown()
