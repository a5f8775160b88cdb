"""Two choices of TRACE (arXiv 2603.02929) taken the other way: which state is the embedding, and whether candidates reason.

Pooling: from one start, in as many steps on the same batches, one model embeds by the state that predicts <|emb|> (ours) and one
by the state of <|emb|> itself, which it reads behind the reasoning, and alone behind a target. The paper: recall@5 57.0 and 52.3.

Candidates: a model that was trained as ever embeds the targets at once (ours), after reasoning where it chooses to (they are
given the queries' prompt, which allows it), and always after reasoning. The paper: 57.0 and 18.9. Queries are embedded once,
as the model decides. Seconds are of the CPU with one thread: the machine may have other work.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import bare_trainer, report, timed
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from datamodules import TraceData
from lightning_conan.cli.common.logging import quiet_libraries
from lightning_conan.cli.common.pair_sets import read_pairs
from lightning_conan.embedder import IGNORED, Encoded, OmniProcessor, load_folder
from lightning_conan.items import Item, Pair, Side
from lightning_conan.reasoning import Decoding, ReasonedEmbeddings, encode_queries
from lightning_conan.retrieval.ranking import pair_scores
from lightning_conan.stages import Trace
from lightning_conan.stages.trace import MERGERS
from lightning_conan.training import Training
from lightning_conan.training.scoring import Effort

SETTINGS = Training(lr=1e-3, warmup_steps=20, temperature=0.05)
"""Those that the tables of docs/studies.md were measured with."""
BATCH, MOST, TASK = 32, 120, "composed"
SHOWN = ("recall@1", "recall@5", "reasoned", "tokens")


class OwnStateProcessor(OmniProcessor):
    """Targets and taught queries end with ``<|emb|>``, so that their last state is its own."""

    @override
    def __call__(self, item: Item, side: Side = "query") -> Encoded:
        encoded = super().__call__(item, side)
        return encoded if side == "query" else self.close(encoded)

    @override
    def teach(self, encoded: Encoded, reasoning: str) -> Encoded:
        return self.close(super().teach(encoded, reasoning))

    def close(self, encoded: Encoded, written: Sequence[int] = ()) -> Encoded:
        """The item with what was written about it and ``<|emb|>``, after which nothing is asked."""
        words = torch.tensor([*written, self.ids["emb"]])
        after = encoded.positions[:, -1:] + 1 + torch.arange(len(words))
        labels = encoded.labels if encoded.labels is None else torch.cat([encoded.labels, torch.full_like(words, IGNORED)])
        ids, positions = torch.cat([encoded.input_ids, words]), torch.cat([encoded.positions, after], dim=1)
        return replace(encoded, input_ids=ids, positions=positions, labels=labels)


class OwnState(Trace):
    """TRACE whose embedding is the state of ``<|emb|>`` itself."""

    processor: OwnStateProcessor

    @override
    def setup(self, stage: str) -> None:
        self.processor = OwnStateProcessor(self.processor.tokenizer, self.processor.config)

    @override
    def embed_queries(self, items: list[Encoded], effort: Effort | None = None) -> Float[Tensor, "items dim"]:
        self.embedder.eval()
        written, cpu, _ = timed(lambda: encode_queries(self.embedder, items, self.decoding))
        if effort is not None:
            effort.add(written, cpu)
        return self.embed([self.processor.close(item, words) for item, words in zip(items, written.tokens, strict=True)])


@dataclass
class Options:
    """The command's.

    Args:
        folder: A folder that ``Trace`` wrote.
        start: The folder that it was trained from.
        train: Packed pairs with their reasoning.
        test: Packed pairs to score.
        steps: Of each training.
        seed: Of the batches' order.
        quick: Whether the run is to be short.
    """

    folder: Path
    start: Path
    train: Path
    test: Path
    steps: int
    seed: int
    quick: bool


def parse() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="a folder that Trace wrote")
    parser.add_argument("--start", type=Path, required=True, help="the folder that it was trained from")
    parser.add_argument("--train", type=Path, required=True, help="packed pairs with their reasoning")
    parser.add_argument("--test", type=Path, required=True, help="packed pairs to score")
    parser.add_argument("--steps", type=int, default=600, help="of each training")
    parser.add_argument("--seed", type=int, default=0, help="of the batches' order")
    parser.add_argument("--quick", action="store_true", help="four steps and few pairs, under a minute: figures mean nothing")
    found = Options(**vars(parser.parse_args()))
    return replace(found, steps=4) if found.quick else found


def trained(stage: type[Trace], options: Options) -> dict[str, float]:
    """Scores of a model that was trained from the start."""
    torch.manual_seed(options.seed)
    train_fully = ("backbone.language_model.", *MERGERS)
    decoding = Decoding(max_new_tokens=16 if options.quick else MOST)
    module = stage(options.start, SETTINGS, None, train_fully, decoding=decoding)
    train = TraceData({TASK: options.train}, batch_size=BATCH, num_workers=0, seed=options.seed, cache_gb=1)
    test = TraceData(test={TASK: options.test}, batch_size=256, num_workers=0)
    with tempfile.TemporaryDirectory() as scratch:
        runner = bare_trainer(max_steps=options.steps, max_epochs=-1, default_root_dir=scratch)
        runner.fit(module, train)
        runner.test(module, test, verbose=False)
    found = {name.removeprefix(f"test/{TASK}/forth/"): value for name, value in runner.callback_metrics.items()}
    found = {name.removeprefix(f"test/{TASK}/"): float(value) for name, value in found.items()}
    return {name: found[name] for name in SHOWN}


def candidates(options: Options) -> dict[str, dict[str, float]]:
    """Scores of one model whose targets do not, may, or must reason, and how many of them it embeds in a second."""
    model, processor, _ = load_folder(options.folder)
    model.eval()
    pairs = read_pairs(options.test, 64 if options.quick else 10_000)
    ids = [pair.query.content_hash() for pair in pairs], [pair.target.content_hash() for pair in pairs]
    queries = encode_queries(model, [processor(pair.query) for pair in pairs], Decoding(max_new_tokens=MOST)).embeddings
    ways: dict[str, tuple[Side, Decoding]] = {
        "targets at once": ("target", Decoding("direct")),
        "targets may reason": ("query", Decoding(max_new_tokens=MOST)),
        "targets must reason": ("query", Decoding("always", max_new_tokens=MOST)),
    }
    found = {}
    for name, (side, decoding) in ways.items():
        encoded = [processor(pair.target, side) for pair in pairs]
        written, cpu, _ = timed(lambda encoded=encoded, decoding=decoding: encode_queries(model, encoded, decoding))
        scores = pair_scores(queries, written.embeddings, *ids)
        found[name] = {k: float(scores[f"forth/{k}"]) for k in SHOWN[:2]} | effort(written, pairs, cpu)
    return found


def effort(written: ReasonedEmbeddings, pairs: Sequence[Pair], cpu: float) -> dict[str, float]:
    """Tokens written, and their speed."""
    reasoned, tokens = sum(map(bool, written.tokens)), sum(map(len, written.tokens))
    return {"reasoned": 100 * reasoned / len(pairs), "tokens": tokens / len(pairs), "per_second": len(pairs) / cpu}


def main() -> None:
    options = parse()
    quiet_libraries()
    found = {"state before <|emb|>": trained(Trace, options), "state of <|emb|>": trained(OwnState, options)}
    found |= candidates(options)
    digits = {"recall@1": 1, "recall@5": 1, "reasoned": 0, "tokens": 1, "per_second": 0}
    rows = [(f"{options.steps} steps, seed {options.seed}", "recall@1", "recall@5", "reasoned, %", "tokens", "targets/s")]
    for label, values in found.items():
        rows.append((label, *(f"{values[name]:.{digit}f}" if name in values else "" for name, digit in digits.items())))
    short = dict(zip(found, ("before", "own", "at_once", "may", "must"), strict=True))
    figures = {f"{short[label]}_{name}": value for label, values in found.items() for name, value in values.items()}
    report(rows, figures)


if __name__ == "__main__":
    main()
