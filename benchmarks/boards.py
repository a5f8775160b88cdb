"""A retrieval task of texts and images of mixed lengths in mteb: our encoder against its own wrapper on the stock export.

The corpus is half texts, half images (two tasks, since mteb gives every entry of a corpus a text if any has one). A second task
shares half of it. One run of each, CPU time of the whole evaluation: mteb's own part is in both.
"""

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from common import parser, report, timed
from datasets import Dataset, disable_progress_bars
from datasets import Image as ImageColumn
from embed import LARGER
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from PIL import Image
from sentence_transformers import SentenceTransformer
from upstream import write_qwen3_omni, write_qwen3_vl

from lightning_conan.boards.mteb_encoder import MtebEncoder
from lightning_conan.boards.mteb_model import model_meta
from lightning_conan.cli.common.logging import quiet_libraries
from lightning_conan.embedder import ProcessorConfig, export_folder, graft_folder

QUERIES = 100
WORDS = "a small red circle on the left of big blue square".split()


def text(seed: int) -> dict[str, Any]:
    """A text of 2 to 300 words."""
    rng = np.random.default_rng(seed)
    return {"text": " ".join(rng.choice(WORDS, int(np.clip(rng.lognormal(3.2, 1.0), 2, 300))))}


def image(seed: int) -> dict[str, Any]:
    """A picture of 64 to 320 pixels a side, as PNG."""
    rng = np.random.default_rng(seed)
    buffer, (height, width) = io.BytesIO(), rng.integers(64, 320, 2)
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
    return {"image": {"bytes": buffer.getvalue()}}


def task_of(kind: str, first: int, count: int) -> AbsTaskRetrieval:
    """A task over entries of one kind.

    Args:
        kind: text or image.
        first: Seed of the first entry; those of equal seeds are equal.
        count: Entries of the corpus.
    """
    draw: Callable[[int], dict[str, Any]] = text if kind == "text" else image
    corpus = Dataset.from_list([{"id": f"d{seed}", **draw(seed)} for seed in range(first, first + count)])
    corpus = corpus.cast_column("image", ImageColumn()) if kind == "image" else corpus
    # A text is looked for by its own words and one more, so that the scores of texts are not at chance.
    sought = [text(first + n if kind == "text" else 10**6 + first + n)["text"] for n in range(QUERIES)]
    queries = Dataset.from_list([{"id": f"q{n}", "text": f"{words} small"} for n, words in enumerate(sought)])
    grades = {f"q{n}": {f"d{first + n}": 1} for n in range(QUERIES)}

    class Task(AbsTaskRetrieval):
        metadata = TaskMetadata(
            **dict.fromkeys(("reference", "date", "domains", "task_subtypes", "license", "annotations_creators")),
            **dict.fromkeys(("dialect", "sample_creation", "bibtex_citation")),
            name=f"{kind}{first}",
            description="texts and images of mixed lengths",
            dataset={"path": "local/drawn", "revision": "1"},
            type="Any2AnyRetrieval" if kind == "image" else "Retrieval",
            category=f"t2{kind[0]}",
            modalities=["text", "image"] if kind == "image" else ["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

    task = Task()
    split = RetrievalSplitData(queries=queries, corpus=corpus, relevant_docs=grades, top_ranked=None)
    task.dataset, task.data_loaded = {"default": {"test": split}}, True
    return task


def evaluated(model: Any, tasks: list[AbsTaskRetrieval]) -> list[float]:
    """Main scores of the tasks."""
    options = {"cache": None, "co2_tracker": False, "show_progress_bar": False}
    return [float(result.get_score()) for result in mteb.evaluate(model, tasks, **options).task_results]


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--items", type=int, default=20_000, help="entries of a corpus, half texts and half images")
    chosen = arguments.parse_args()
    quiet_libraries()
    disable_progress_bars()
    half = (400 if chosen.quick else chosen.items) // 2
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_qwen3_vl(root / "eyes", shard="1GB", **LARGER)
        write_qwen3_omni(root / "ears")
        graft_folder(str(root / "eyes"), str(root / "ears"), root / "base", ProcessorConfig(), hidden=64)
        export_folder(root / "base", root / "stock", stock=True)
        ours = MtebEncoder(root / "base", root / "cache")
        peer = SentenceTransformerEncoderWrapper(SentenceTransformer(str(root / "stock"), device="cpu"))
        peer.mteb_model_meta = model_meta(root / "stock")
        for model in (MtebEncoder(root / "base", root / "warm"), peer):
            evaluated(model, [task_of(kind, 10**7, QUERIES) for kind in ("text", "image")])
        first, second, same = ([task_of(kind, seed, half) for kind in ("text", "image")] for seed in (0, half // 2, 0))
        found, our_cpu, our_wall = timed(lambda: evaluated(ours, first))
        _, second_cpu, second_wall = timed(lambda: evaluated(ours, second))
        wanted, peer_cpu, peer_wall = timed(lambda: evaluated(peer, same))
    rows = [("", "CPU s", "wall s", "nDCG@10, texts and images")]
    rows += [("ours", f"{our_cpu:.2f}", f"{our_wall:.2f}", str(found))]
    rows += [("ours, a second task", f"{second_cpu:.2f}", f"{second_wall:.2f}", "")]
    rows += [("mteb's wrapper, stock export", f"{peer_cpu:.2f}", f"{peer_wall:.2f}", str(wanted))]
    print(f"{2 * half} entries and {2 * QUERIES} queries")
    off = max(abs(one - other) for one, other in zip(found, wanted, strict=True))
    report(rows, {"ratio_cpu": our_cpu / peer_cpu, "ratio_second": second_cpu / our_cpu, "difference": off})


if __name__ == "__main__":
    main()
