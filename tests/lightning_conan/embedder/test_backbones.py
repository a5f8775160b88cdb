"""Every family of backbones: inputs, vectors and gradients are those of a plain transformers call, and every path is exact."""

import copy
import inspect
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from backbones import FAMILIES, Family, audio_of, ours, write_backbone
from torch.nn import functional as F
from transformers.video_utils import VideoMetadata

from lightning_conan.embedder import Encoded, OmniEmbedder, OmniProcessor, graft_folder, load_folder, pack, pad
from lightning_conan.embedder.backbones import backbone_of
from lightning_conan.embedder.backbones.registry import FAMILIES as KNOWN
from lightning_conan.embedder.language import last_layer_of, taken
from lightning_conan.embedder.vision import PatchProduct, patchify
from lightning_conan.items import Item, Media
from lightning_conan.media import decode_image, encode_audio
from lightning_conan.media.audio import decode_audio
from lightning_conan.media.video import decode_video
from lightning_conan.objectives import ChunkStep, cached_backward
from samples import EVERY_FRAME, mp4, png


def image(seed=0, height=90, width=140):
    return Media("image", png(height, width, seed), f"{seed}.png")


def video(frames=9, seed=0, side=100):
    return Media("video", mp4(frames, side, seed), f"{seed}.mp4")


def audio(seconds, seed=0):
    wave = torch.randn(int(seconds * 16_000), generator=torch.Generator().manual_seed(seed))
    return Media("audio", encode_audio(0.1 * wave), f"{seconds}.{seed}.flac")


ITEMS = {
    "text": Item(("a small red circle",)),
    "instructed": Item(("a small red circle",), "Find the picture."),
    "image": Item((image(),)),
    "tiny image": Item((image(1, 20, 30),)),
    "several images": Item((image(3), "and then", image(4, 64, 64), image(5, 200, 50))),
    "document": Item((Media("document", png(200, 140, 8), "page.png"),)),
    "image and text": Item((image(7), "make it blue")),
    "video": Item((video(),)),
    "video of an odd number of frames": Item((video(13),)),
    "short video": Item((video(3, 1, 40),)),
    "video and text": Item(("what moves here?", video(16, 2), "and why", image(6))),
}
HEARD = {
    "audio": Item((audio(1.3),)),
    "whole windows": Item((audio(9.0),)),
    "several clips and text": Item((audio(2.4), "and then", audio(2.4, 1), "what is louder?")),
    "audio, image and video": Item((image(2), audio(1.9), "in the rain", video(9, 3), audio(1.9, 1))),
}
"""Items that families that hear are compared on, too. Clips of one item are of one length, of a second or more: transformers pads
a shorter one before its log-mel, whose last frame then sees the padding, and a clip of less than a window by itself to fewer
frames than beside another. Here neither depends on the neighbours."""
CASES = [(name, item) for name in KNOWN for item in (ITEMS | HEARD if FAMILIES[name].hears else ITEMS)]
each_item = pytest.mark.parametrize(("line", "name"), CASES, indirect=["line"])


@pytest.fixture(scope="module", params=KNOWN)
def line(request, tmp_path_factory) -> Any:
    """A base grafted from a checkpoint in upstream layout: its folders, our model and processor, and plain transformers'."""
    root: Path = tmp_path_factory.mktemp(request.param)
    family = FAMILIES[request.param]
    write_backbone(root / "backbone", request.param)
    graft_folder(str(root / "backbone"), audio_of(root / "audio", request.param), root / "base", family.settings, hidden=32)
    model, processor, _ = load_folder(root / "base")
    plain = family.head.from_pretrained(root / "backbone").eval()
    return SimpleNamespace(root=root, family=family, name=request.param, model=model, processor=processor, plain=plain)


def upstream_inputs(family: Family, item: Item, instruction: str) -> Any:
    """The item through the family's own template and processor; whole videos go in, so that it samples them itself."""
    images, videos, sounds, metadata, content = [], [], [], [], []
    for part in item.parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        elif part.modality == "video":
            clip = decode_video(part, EVERY_FRAME)
            videos.append(clip.frames)
            metadata.append(VideoMetadata(total_num_frames=len(clip.frames), fps=4.0))
            content.append({"type": "video"})
        elif part.modality == "audio":
            sounds.append(decode_audio(part).numpy())
            content.append({"type": "audio"})
        else:
            images.append(decode_image(part))
            content.append({"type": "image"})
    system = {"role": "system", "content": [{"type": "text", "text": item.instruction or instruction}]}
    messages, processor = [system, {"role": "user", "content": content}], family.processor()
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + "<|endoftext|>"
    options: dict[str, Any] = {"images": images or None, "videos": videos or None, "return_tensors": "pt"}
    if videos:
        options["videos_kwargs"] = {"video_metadata": metadata, "do_sample_frames": True}
    if family.hears:
        options["audio"] = sounds or None
        given = {
            "fps": family.settings.sampling.fps,
            "size": family.video().to_dict()["size"],
        }  # else it takes defaults of its class
        options["videos_kwargs"] = {**options.get("videos_kwargs", {}), **given}
    return processor(text=[text], **options)


def their_vector(line, name: str) -> torch.Tensor:
    line.plain.model.rope_deltas = None  # else the call before would shift the positions of this one
    item = (ITEMS | HEARD)[name]
    states = line.plain.model(**upstream_inputs(line.family, item, line.processor.config.instruction)).last_hidden_state
    return F.normalize(states[0, -1], dim=-1)


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def rope_inputs(plain, wanted) -> dict[str, Any]:
    """Arguments of a family's own function of positions, under its names."""
    given = {**wanted, "second_per_grids": torch.as_tensor(wanted.get("video_second_per_grid", []))}
    given["audio_seqlens"] = wanted["feature_attention_mask"].sum(-1) if "feature_attention_mask" in wanted else None
    known = inspect.signature(plain.model.get_rope_index).parameters
    return {name: value for name, value in given.items() if name in known}


@each_item
def test_ids_pixels_and_positions_are_those_of_the_upstream_processor(line, name):
    item = (ITEMS | HEARD)[name]
    found, wanted = line.processor(item), upstream_inputs(line.family, item, line.processor.config.instruction)
    assert found.input_ids.tolist() == wanted["input_ids"][0].tolist()
    vision, pixels = line.model.config.backbone_config.vision_config, found.inputs("vision")
    if pixels:
        alone = [patchify([each], vision.patch_size, vision.spatial_merge_size, line.model.family.scaled) for each in pixels]
        for values, grids, still in (("pixel_values", "image_grid_thw", 1), ("pixel_values_videos", "video_grid_thw", 0)):
            mine = [held for held, each in zip(alone, pixels, strict=True) if (len(each) == 1) == still]
            assert [[*grid] for _, (grid,) in mine] == (wanted[grids].tolist() if grids in wanted else [])
            if mine:
                close(torch.cat([patches for patches, _ in mine]), wanted[values], 2e-6)
    if pixels or line.family.hears:
        positions, _ = line.plain.model.get_rope_index(**rope_inputs(line.plain, wanted))
        assert found.positions.tolist() == positions[:, 0].tolist()
    for mel, theirs, mask in zip(
        found.inputs("audio"), wanted.get("input_features", []), wanted.get("feature_attention_mask", []), strict=True
    ):
        close(mel, theirs[:, mask.bool()], 2e-6)


def test_audio_frames_are_those_of_the_upstream_tower(line):
    """A clip shorter than a window, too, beside longer ones."""
    if not line.family.hears:
        pytest.skip("its audio encoder is grafted: test_parity compares it")
    mels = [line.processor(Item((audio(seconds),))).media["audio"][0] for seconds in (0.11, 1.3, 9.0, 0.6)]
    lengths = torch.tensor([mel.shape[1] for mel in mels])
    with torch.no_grad():
        found = line.model.audio_projector(line.model.encode_frames("audio", mels))
        close(found, line.plain.model.audio_tower(torch.cat(mels, dim=1), feature_lens=lengths).last_hidden_state)


@each_item
def test_vectors_are_those_of_a_plain_transformers_call(line, name):
    with torch.no_grad():
        close(line.model.embed([line.processor((ITEMS | HEARD)[name])])[0], their_vector(line, name))


@pytest.mark.parametrize("budget", [64, 300, 100_000])
def test_packed_chunks_equal_one_by_one(line, budget):
    """Under any padding, in any order; the media of all rows in one call of the tower."""
    encoded = [line.processor(item) for item in (ITEMS | HEARD).values()]
    with torch.no_grad():
        alone = torch.cat([line.model.embed([item]) for item in encoded])
        close(line.model.embed(encoded[::-1], budget).flip(0), alone)


def test_gradients_are_those_of_plain_transformers(line):
    """Gradients of every parameter, for an image, a video and texts at once."""
    names = ["image and text", "video", "instructed", *(["several clips and text"] if line.family.hears else [])]
    model, plain = copy.deepcopy(line.model), line.plain
    mark = torch.randn(len(names), model.config.dim, generator=torch.Generator().manual_seed(0))
    found = model.embed([line.processor((ITEMS | HEARD)[name]) for name in names])
    (found * mark).sum().backward()
    plain.zero_grad()
    sum((their_vector(line, name) * mark[row]).sum() for row, name in enumerate(names)).backward()
    wanted = {ours(name): parameter.grad for name, parameter in plain.model.named_parameters()}
    compared = 0
    for name, parameter in model.named_parameters():
        if wanted.get(name) is not None and "embed_tokens" not in name:
            assert (parameter.grad - wanted[name]).norm() <= 1e-4 * wanted[name].norm() + 1e-6, name
            compared += 1
    assert compared > 40


def test_shared_prefixes_change_nothing(line):
    """Families that cannot continue a KV cache say so, and compute each item whole."""
    instruction = "Find the picture or video that fits these words best."
    encoded = [line.processor(Item(item.parts, instruction)) for item in (ITEMS | HEARD).values()]
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
    names = ["image and text", "video", "instructed", "several images", "text", "short video", "audio", "several clips and text"]
    encoded, found = [line.processor((ITEMS | HEARD)[name]) for name in names], {}
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


@pytest.mark.parametrize("name", ["instructed", "video and text", "audio, image and video"])
def test_a_reasoning_model_writes_what_it_would_without_a_cache(line, name):
    from lightning_conan.reasoning import Decoding, encode_queries

    processor = OmniProcessor(line.processor.tokenizer, replace(line.processor.config, ends=False, reasons=True))
    items = [processor((ITEMS | HEARD)[name]), processor(ITEMS["text"]), processor(ITEMS["image"])]
    with torch.no_grad():
        found = encode_queries(line.model, items, Decoding("always", max_new_tokens=5), 10_000)
    written = found.tokens[0]
    assert written == decoded(line.model, items[0], 5)[: len(written)]
    assert written
