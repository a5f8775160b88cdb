"""Embedding texts and images of mixed lengths: ours against sentence-transformers on the exported folder, in one run."""

import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import options, report, timed
from PIL import Image
from sentence_transformers import SentenceTransformer
from upstream import write_qwen3_omni, write_qwen3_vl

from lightning_conan.cli.common.logging import quiet_libraries
from lightning_conan.embedder import ProcessorConfig, export_folder, graft_folder, load_folder, pack
from lightning_conan.items import Item, Media

LARGER = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
BUDGET = 8192


def draw(texts: int, images: int) -> tuple[list[Item], list[object]]:
    """Texts of 2 to 300 words and pictures of many shapes, shuffled; for us as items, for the peer as its inputs."""
    rng = np.random.default_rng(0)
    words = "a small red circle on the left of big blue square".split()
    both: list[tuple[Item, object]] = []
    for length in np.clip(rng.lognormal(3.2, 1.0, texts).astype(int), 2, 300):
        text = " ".join(rng.choice(words, length))
        both.append((Item((text,)), text))
    for height, width in rng.integers(64, 320, (images, 2)):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
        both.append((Item((Media("image", buffer.getvalue(), "a.png"),)), Image.open(io.BytesIO(buffer.getvalue()))))
    order = rng.permutation(len(both))
    return [both[i][0] for i in order], [both[i][1] for i in order]


def padding(lengths: list[list[int]]) -> float:
    """Padded tokens over tokens."""
    return sum(len(rows) * max(rows) for rows in lengths) / sum(sum(rows) for rows in lengths)


def main() -> None:
    quick = options(__doc__ or "").quick
    quiet_libraries()
    items, inputs = draw(96, 16) if quick else draw(512, 64)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_qwen3_vl(root / "eyes", shard="1GB", **LARGER)
        write_qwen3_omni(root / "ears")
        graft_folder(str(root / "eyes"), str(root / "ears"), root / "base", ProcessorConfig(), hidden=64)
        export_folder(root / "base", root / "stock", stock=True)
        model, processor, _ = load_folder(root / "base")
        peer = SentenceTransformer(str(root / "stock"), device="cpu")
    seen: list[list[int]] = []
    peer[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]["attention_mask"].sum(dim=1).tolist()))

    def ours() -> tuple[torch.Tensor, list[list[int]]]:
        with torch.inference_mode():
            encoded = [processor(item) for item in items]
            return model.embed(encoded, BUDGET), [chunk.lengths for chunk in pack(encoded, BUDGET)]

    def theirs() -> torch.Tensor:
        return peer.encode(inputs, convert_to_tensor=True, batch_size=32)

    ours(), theirs()  # warm caches
    seen.clear()
    runs = [(timed(ours), timed(theirs)) for _ in range(1 if quick else 3)]
    (found, chunks), our_cpu, our_wall = min((run[0] for run in runs), key=lambda run: run[1])
    expected, peer_cpu, peer_wall = min((run[1] for run in runs), key=lambda run: run[1])
    off = float((found - expected).abs().max())
    rows = [("", "CPU s", "wall s", "padding")]
    rows += [("ours", f"{our_cpu:.2f}", f"{our_wall:.2f}", f"{padding(chunks):.3f}")]
    rows += [("sentence-transformers", f"{peer_cpu:.2f}", f"{peer_wall:.2f}", f"{padding(seen):.3f}")]
    print(f"{len(items)} inputs; vectors differ by at most {off:.1e}")
    report(rows, {"ratio_cpu": our_cpu / peer_cpu, "padding": padding(chunks), "padding_peer": padding(seen), "difference": off})


if __name__ == "__main__":
    main()
