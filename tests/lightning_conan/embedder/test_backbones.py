"""Every family of backbones: inputs, vectors and gradients are those of a plain transformers call, and every path is exact."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from backbones import FAMILIES, Family, write_backbone
from torch.nn import functional as F
from transformers.video_utils import VideoMetadata
from upstream import write_qwen3_omni

from lightning_conan.embedder import Encoded, OmniEmbedder, OmniProcessor, graft_folder, load_folder, pack, pad
from lightning_conan.embedder.backbones import backbone_of
from lightning_conan.embedder.backbones.registry import FAMILIES as KNOWN
from lightning_conan.embedder.language import last_layer_of, taken
from lightning_conan.embedder.vision import PatchProduct, patchify
from lightning_conan.items import Item, Media
from lightning_conan.media import decode_image
from lightning_conan.media.video import decode_video
from lightning_conan.objectives import ChunkStep, cached_backward
from samples import EVERY_FRAME, flac, mp4, png


def image(seed=0, height=90, width=140):
    return Media("image", png(height, width, seed), f"{seed}.png")


def video(frames=9, seed=0, side=100):
    return Media("video", mp4(frames, side, seed), f"{seed}.mp4")


ITEMS = {
    "text": Item(("a small red circle",)),
    "instructed": Item(("a small red circle",), "Find the picture."),
    "image": Item((image(),)),
    "tiny image": Item((image(1, 20, 30),)),
    "several images": Item((image(3), "and then", image(4, 64, 64), image(5, 200, 50))),
    "image and text": Item((image(7), "make it blue")),
    "video": Item((video(),)),
    "video of an odd number of frames": Item((video(13),)),
    "short video": Item((video(3, 1, 40),)),
    "video and text": Item(("what moves here?", video(16, 2), "and why", image(6))),
}


@pytest.fixture(scope="module", params=KNOWN)
def line(request, tmp_path_factory) -> Any:
    """A base grafted from a checkpoint in upstream layout: its folders, our model and processor, and plain transformers'."""
    root: Path = tmp_path_factory.mktemp(request.param)
    family = FAMILIES[request.param]
    write_backbone(root / "backbone", request.param)
    write_qwen3_omni(root / "audio")
    graft_folder(str(root / "backbone"), str(root / "audio"), root / "base", family.settings, hidden=32)
    model, processor, _ = load_folder(root / "base")
    plain = family.head.from_pretrained(root / "backbone").eval()
    return SimpleNamespace(root=root, family=family, name=request.param, model=model, processor=processor, plain=plain)


def upstream_inputs(family: Family, item: Item, instruction: str) -> Any:
    """The item through the family's own template and processor; whole videos go in, so that it samples them itself."""
    images, videos, metadata, content = [], [], [], []
    for part in item.parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        elif part.modality == "video":
            clip = decode_video(part, EVERY_FRAME)
            videos.append(clip.frames)
            metadata.append(VideoMetadata(total_num_frames=len(clip.frames), fps=4.0))
            content.append({"type": "video"})
        else:
            images.append(decode_image(part))
            content.append({"type": "image"})
    system = {"role": "system", "content": [{"type": "text", "text": item.instruction or instruction}]}
    messages, processor = [system, {"role": "user", "content": content}], family.processor()
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + "<|endoftext|>"
    options: dict[str, Any] = {"images": images or None, "videos": videos or None, "return_tensors": "pt"}
    if videos:
        options["videos_kwargs"] = {"video_metadata": metadata, "do_sample_frames": True}
    return processor(text=[text], **options)


def their_vector(line, name: str) -> torch.Tensor:
    line.plain.model.rope_deltas = None  # else the call before would shift the positions of this one
    states = line.plain.model(**upstream_inputs(line.family, ITEMS[name], line.processor.config.instruction)).last_hidden_state
    return F.normalize(states[0, -1], dim=-1)


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ITEMS)
def test_ids_pixels_and_positions_are_those_of_the_upstream_processor(line, name):
    found, wanted = line.processor(ITEMS[name]), upstream_inputs(line.family, ITEMS[name], line.processor.config.instruction)
    assert found.input_ids.tolist() == wanted["input_ids"][0].tolist()
    vision, pixels = line.model.config.backbone_config.vision_config, found.inputs("vision")
    if pixels:
        alone = [patchify([each], vision.patch_size, vision.spatial_merge_size, line.model.family.scaled) for each in pixels]
        for values, grids, still in (("pixel_values", "image_grid_thw", 1), ("pixel_values_videos", "video_grid_thw", 0)):
            mine = [held for held, each in zip(alone, pixels, strict=True) if (len(each) == 1) == still]
            assert [[*grid] for _, (grid,) in mine] == (wanted[grids].tolist() if grids in wanted else [])
            if mine:
                close(torch.cat([patches for patches, _ in mine]), wanted[values], 2e-6)
        named = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "attention_mask")
        positions, _ = line.plain.model.get_rope_index(
            wanted["input_ids"], **{key: wanted[key] for key in named if key in wanted}
        )
        assert torch.equal(found.positions, positions[:, 0])


@pytest.mark.parametrize("name", ITEMS)
def test_vectors_are_those_of_a_plain_transformers_call(line, name):
    with torch.no_grad():
        close(line.model.embed([line.processor(ITEMS[name])])[0], their_vector(line, name))


@pytest.mark.parametrize("budget", [64, 300, 100_000])
def test_packed_chunks_equal_one_by_one(line, budget):
    """Under any padding, in any order; the media of all rows in one call of the tower."""
    encoded = [line.processor(item) for item in [*ITEMS.values(), Item((Media("audio", flac(1.3), "a.flac"),))]]
    with torch.no_grad():
        alone = torch.cat([line.model.embed([item]) for item in encoded])
        close(line.model.embed(encoded[::-1], budget).flip(0), alone)


def test_gradients_are_those_of_plain_transformers(line):
    """Gradients of every parameter, for an image, a video and texts at once."""
    names = ["image and text", "video", "instructed"]
    model, plain = copy.deepcopy(line.model), line.plain
    mark = torch.randn(len(names), model.config.dim, generator=torch.Generator().manual_seed(0))
    found = model.embed([line.processor(ITEMS[name]) for name in names])
    (found * mark).sum().backward()
    plain.zero_grad()
    sum((their_vector(line, name) * mark[row]).sum() for row, name in enumerate(names)).backward()
    wanted = {f"backbone.{name}": parameter.grad for name, parameter in plain.model.named_parameters()}
    compared = 0
    for name, parameter in model.named_parameters():
        if name.startswith("backbone.") and wanted[name] is not None and "embed_tokens" not in name:
            assert (parameter.grad - wanted[name]).norm() <= 1e-4 * wanted[name].norm() + 1e-6, name
            compared += 1
    assert compared > 40


def test_shared_prefixes_change_nothing(line):
    """Families that cannot continue a KV cache say so, and compute each item whole."""
    instruction = "Find the picture or video that fits these words best."
    encoded = [line.processor(Item(item.parts, instruction)) for item in ITEMS.values()]
    with torch.no_grad():
        shares = [past is not None for _, past in line.model.chunks(encoded, 100_000)]
        assert any(shares) == line.model.family.shares_prefixes
        close(line.model.embed(encoded), torch.cat([line.model.embed([item]) for item in encoded]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_last_layer_for_one_token_changes_nothing(line, attention):
    model, encoded = copy.deepcopy(line.model), [line.processor(item) for item in ITEMS.values()]
    model.switch(attention, None)
    whole = copy.deepcopy(model)
    layers = whole.backbone.language_model.layers
    assert type(layers[-1]) is last_layer_of(type(layers[0]))
    layers[-1].__class__ = type(layers[0])
    chunk = pad(encoded, [*range(len(encoded))])
    with torch.no_grad():
        close(model.hidden_states(chunk, last=chunk.last), taken(whole.hidden_states(chunk), chunk.last))


def test_what_the_host_prepares_is_what_the_tower_finds(line):
    """One grid several times, videos, a single square, edges that fill no window: bit for bit."""
    tower, vision = line.model.backbone.visual, line.model.config.backbone_config.vision_config
    grids = [(1, 4, 4), (3, 2, 6), (1, 4, 4), (1, 2, 2), (3, 2, 6), (2, 6, 10)]
    patches = torch.randn(sum(a * b * c for a, b, c in grids), 3 * 2 * vision.patch_size**2)
    with torch.no_grad():
        wanted = tower(patches, grid_thw=torch.tensor(grids))
        found = tower(patches, grid_thw=torch.tensor(grids), **line.model.family.layout(tower, grids, patches.device))
    assert torch.equal(found.pooler_output, wanted.pooler_output)
    assert all(map(torch.equal, line.model.family.features(found), line.model.family.features(wanted)))


def test_layers_and_prefixes_are_those_that_the_family_names(line):
    """Sharding and checkpoints look for the classes, stages for the prefixes."""
    kinds = {kind.__name__ for module in line.plain.modules() for kind in type(module).__mro__}
    assert {*line.model.family.layers} <= kinds
    names = [name for name, _ in line.model.named_parameters() if name.startswith("backbone.")]
    assert all(name.startswith(("backbone.visual.", "backbone.language_model.")) for name in names)
    assert any(name.startswith("backbone.visual.merger.") for name in names)
    assert type(line.model.backbone.visual.patch_embed) is PatchProduct
    count = len(line.model.backbone.visual.blocks) + len(line.model.backbone.language_model.layers)
    assert len([layer for layer in line.model.layers() if "Audio" not in type(layer).__name__]) == count


def test_the_tokenizer_and_settings_name_the_family(line):
    assert line.processor.config.family == line.name
    assert backbone_of(line.name).head_class == line.family.head.__name__


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_cache_is_the_one_pass(line, checkpointing):
    """With activation checkpointing too: loss and every gradient, of chunks of any size."""
    names = ["image and text", "video", "instructed", "several images", "text", "short video"]
    encoded, found = [line.processor(ITEMS[name]) for name in names], {}
    for budget in (150, 10**6):
        model = copy.deepcopy(line.model).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        step = ChunkStep(model, lambda rows: info_nce_of(rows), lambda value, last: value.backward(), torch.device("cpu"))
        value = cached_backward(step, pack(encoded, budget), len(encoded))
        found[budget] = [torch.as_tensor(value), *(p.grad for p in model.parameters() if p.grad is not None)]
    assert len(pack(encoded, 150)) > 1
    assert len(found[150]) == len(found[10**6]) > 40
    for one, other in zip(*found.values(), strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-6


def info_nce_of(rows: torch.Tensor) -> torch.Tensor:
    """Finds the second half by the first."""
    half = len(rows) // 2
    return F.cross_entropy(rows[:half] @ rows[half:].T / 0.05, torch.arange(half))


def decoded(model: OmniEmbedder, item: Encoded, count: int) -> list[int]:
    """Greedy tokens, all read anew for each further one."""
    ids: list[int] = []
    for _ in range(count):
        (chunk,) = pack([item], 10**6)
        with torch.no_grad():
            logits = model.logits(model.hidden_states(chunk)[0, -1])
        logits[model.config.emb_token_id] = -torch.inf
        ids.append(int(logits.argmax()))
        after = item.positions[:, -1:] + 1
        item = Encoded(torch.cat([item.input_ids, torch.tensor(ids[-1:])]), torch.cat([item.positions, after], 1), item.media)
    return ids


@pytest.mark.parametrize("name", ["instructed", "video and text"])
def test_a_reasoning_model_writes_what_it_would_without_a_cache(line, name):
    from lightning_conan.reasoning import Decoding, encode_queries

    processor = OmniProcessor(line.processor.tokenizer, replace(line.processor.config, ends=False, reasons=True))
    items = [processor(ITEMS[name]), processor(ITEMS["text"]), processor(ITEMS["image"])]
    with torch.no_grad():
        found = encode_queries(line.model, items, Decoding("always", max_new_tokens=5), 10_000)
    written = found.tokens[0]
    assert written == decoded(line.model, items[0], 5)[: len(written)]
    assert written
