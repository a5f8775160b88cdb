"""Queries a second: embedding at once, always reasoning, and deciding by the first token; ours beside a plain implementation.

The plain one is what transformers offers: `generate` over left-padded batches, then a second forward pass over prompt and text
whose last state is the embedding. Both have the same weights, and must write the same and come to the same vectors. `--folder`
takes a TRACE folder; without it a short training makes one that bypasses texts and writes about pictures.
"""

import argparse
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Literal

import torch
from common import report
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen3VLForConditionalGeneration

from datamodules.toy_world import draw_composed
from lightning_conan.cli.common.logging import quiet_libraries
from lightning_conan.embedder import Encoded, OmniEmbedder, OmniProcessor, load_folder, pack, tiny_embedder
from lightning_conan.embedder.backbones import backbone_of
from lightning_conan.embedder.vision import patchify
from lightning_conan.objectives import generation_loss
from lightning_conan.reasoning import Decoding, ReasonedEmbeddings, encode_queries

ROWS, MOST, REPEATS = 64, 120, 10
BUDGET = 2048
"""Tokens of our chunks: about as many as the plain one's batches of simple queries hold; larger ones leave a CPU's caches."""


def taught_to_route(steps: int = 250) -> tuple[OmniEmbedder, OmniProcessor]:
    """A tiny model that writes nothing about texts, and the description of a picture: trained on the spot."""
    model, processor = tiny_embedder(0)
    processor = OmniProcessor(processor.tokenizer, replace(processor.config, ends=False, reasons=True))
    pairs = draw_composed("caption", 600, 0)[0]
    lessons = [processor.teach(processor(pair.query), str(pair.target.parts[0])) for pair in pairs]
    lessons += [processor.teach(processor(pair.query), "") for pair in draw_composed("simple", 600, 0)[0]]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(lessons), (24,), generator=generator).tolist()
        chunks = pack([lessons[row] for row in rows], 100_000)
        loss = torch.cat([model(chunk, writing=generation_loss).generation_losses for chunk in chunks]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), processor


def plain_model(model: OmniEmbedder) -> Qwen3VLForConditionalGeneration:
    """The same weights in transformers' own class."""
    config = copy.deepcopy(model.config.backbone_config)
    plain: Any = Qwen3VLForConditionalGeneration(config)
    plain.model.load_state_dict(model.backbone.state_dict())
    plain.lm_head.weight = plain.model.language_model.embed_tokens.weight
    plain.generation_config.pad_token_id, plain.generation_config.eos_token_id = 0, model.config.emb_token_id
    return plain.eval()  # type: ignore[no-any-return]


def left_padded(items: Sequence[Encoded], config: Any) -> dict[str, Any]:
    """A batch as transformers' generate wants it."""
    longest = max(map(len, items))
    ids = torch.stack([F.pad(item.input_ids, (longest - len(item), 0)) for item in items])
    mask = torch.stack([F.pad(torch.ones_like(item.input_ids), (longest - len(item), 0)) for item in items])
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == config.image_token_id).int()}
    vision = config.vision_config
    if pixels := [image for item in items for image in item.inputs("vision")]:
        inputs["pixel_values"], grids = patchify(
            pixels, vision.patch_size, vision.spatial_merge_size, backbone_of(config.model_type).scaled
        )
        inputs["image_grid_thw"] = torch.tensor(grids)
    return inputs


@torch.no_grad()
def plain_route(plain: Any, items: Sequence[Encoded], emb: int) -> tuple[Tensor, list[list[int]]]:
    """Generates for every query, then reads prompt and text once more."""
    config, vectors, texts = plain.config, [], []
    for start in range(0, len(items), ROWS):
        batch = items[start : start + ROWS]
        inputs = left_padded(batch, config)
        plain.model.rope_deltas = None  # kept between calls, and another batch's
        written = plain.generate(**inputs, max_new_tokens=MOST, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        rows = [row.tolist() for row in written]
        rows = [row[: row.index(emb)] if emb in row else row for row in rows]
        again = [replace(item, input_ids=torch.cat([item.input_ids, torch.tensor(row).long()])) for item, row in zip(batch, rows)]  # noqa: B905
        plain.model.rope_deltas = None
        states = plain.model(**left_padded(again, config)).last_hidden_state[:, -1]
        vectors.append(F.normalize(states, dim=-1))
        texts += rows
    return torch.cat(vectors), texts


def fastest(ways: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, float]]:
    """Each way's result, and its least CPU seconds of a few runs: in turns, since other work comes and goes."""
    results: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for _ in range(REPEATS):
        for name, work in ways.items():
            start = time.process_time()
            results[name] = work()
            seconds[name] = min(seconds.get(name, inf), time.process_time() - start)
    return results, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer queries")
    parser.add_argument("--folder", type=Path, help="a TRACE folder")
    args = parser.parse_args()
    quiet_libraries()
    count = 64 if args.quick else 256
    model, processor = load_folder(args.folder)[:2] if args.folder else taught_to_route()
    emb, task = model.config.emb_token_id, "composed" if args.folder else "caption"
    simple = [processor(pair.query) for pair in draw_composed("simple", count, "bench")[0]]
    hard = [processor(pair.query) for pair in draw_composed(task, count, "bench")[0]]
    mixed = [item for both in zip(simple[: count // 2], hard[: count // 2], strict=True) for item in both]
    plain, seconds, rows = plain_model(model), {}, [("queries", "direct", "always", "adaptive", "plain", "reasoned")]

    def ours(route: Literal["adaptive", "direct", "always"], items: Sequence[Encoded]) -> Callable[[], ReasonedEmbeddings]:
        return partial(encode_queries, model, items, Decoding(route, max_new_tokens=MOST, rows=ROWS), BUDGET)

    for name, items in {"simple": simple, task: hard, "mixed": mixed}.items():
        ways: dict[str, Callable[[], Any]] = {"plain": partial(plain_route, plain, items, emb)}
        ways |= {route: ours(route, items) for route in ("direct", "always", "adaptive")}
        if name == "mixed":  # its very rows, each as it is best
            ways |= {"simple half": ours("direct", simple[: count // 2]), "hard half": ours("always", hard[: count // 2])}
        results, seconds[name] = fastest(ways)
        found, (vectors, texts) = results["adaptive"], results["plain"]
        assert found.tokens == texts, "both write the same"
        assert float((found.embeddings - vectors).abs().max()) < 1e-4, "and come to the same vectors"
        speeds = [f"{len(items) / seconds[name][way]:.0f}/s" for way in ("direct", "always", "adaptive", "plain")]
        rows.append((name, *speeds, f"{sum(map(bool, found.tokens))} of {len(items)}"))
    figures = {f"adaptive_to_plain_{name}": times["plain"] / times["adaptive"] for name, times in seconds.items()}
    ideal = {"simple": seconds["simple"]["direct"], task: seconds[task]["always"]}
    ideal["mixed"] = seconds["mixed"]["simple half"] + seconds["mixed"]["hard half"]
    report(rows, figures | {f"adaptive_to_ideal_{name}": ideal[name] / times["adaptive"] for name, times in seconds.items()})


if __name__ == "__main__":
    main()
