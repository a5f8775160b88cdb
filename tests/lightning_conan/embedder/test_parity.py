"""Inputs and vectors equal those of a plain transformers call on the same checkpoint."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import Qwen3VLForConditionalGeneration, WhisperFeatureExtractor
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeForConditionalGeneration
from transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe import _get_feat_extract_output_lengths
from transformers.video_utils import VideoMetadata
from upstream import upstream_processor

from lightning_conan.embedder import OmniProcessor, load_folder
from lightning_conan.embedder.vision import patchify
from lightning_conan.items import Item, Media
from lightning_conan.media import decode_audio, decode_document, decode_image
from lightning_conan.media.video import decode_video
from samples import EVERY_FRAME, flac, mp4, png


def image(seed=0, height=90, width=140, kind="image"):
    return Media(kind, png(height, width, seed), f"{seed}.png")


def video(frames=9, seed=0, side=100):
    return Media("video", mp4(frames, side, seed), f"{seed}.mp4")


ITEMS = {
    "text": Item(("a small red circle",)),
    "instructed": Item(("a small red circle",), "Find the picture."),
    "image": Item((image(),)),
    "tiny image": Item((image(1, 20, 30),)),
    "large image": Item((image(2, 400, 500),)),
    "several images": Item((image(3), "and then", image(4, 64, 64), image(5, 200, 50))),
    "document": Item((image(6, 300, 212, "document"),)),
    "image and text": Item((image(7), "make it blue")),
    "video": Item((video(),)),
    "video of an odd number of frames": Item((video(10),)),
    "short video": Item((video(3, 1, 40),)),
    "video and text": Item(("what moves here?", video(16, 2), "and why")),
}


def upstream_inputs(item, instruction, cap):
    """The item through Qwen3-VL's own template and processor; whole videos go in, so that it samples them itself."""
    processor, images, videos, metadata, content = upstream_processor(), [], [], [], []
    for part in item.parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        elif part.modality == "video":
            clip = decode_video(part, EVERY_FRAME)
            videos.append(clip.frames)
            metadata.append(VideoMetadata(total_num_frames=len(clip.frames), fps=4.0))
            content.append({"type": "video"})
        else:
            images.append((decode_document if part.modality == "document" else decode_image)(part))
            content.append({"type": "image"})
    system = {"role": "system", "content": [{"type": "text", "text": item.instruction or instruction}]}
    messages = [system, {"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + "<|endoftext|>"
    options = {"images": images or None, "videos": videos or None, "return_tensors": "pt"}
    if videos:
        options |= {"videos_kwargs": {"video_metadata": metadata, "cap_pixels_per_frame": cap, "do_sample_frames": True}}
    return processor(text=[text], **options)


@pytest.fixture(scope="module")
def ours(grafted):
    return load_folder(grafted)


@pytest.fixture(scope="module")
def theirs(upstream):
    return Qwen3VLForConditionalGeneration.from_pretrained(upstream / "qwen3_vl").eval()


def their_vector(model, item, processor):
    inputs = upstream_inputs(item, processor.config.instruction, False)
    model.model.rope_deltas = None  # else the call before would shift the positions of this one
    with torch.no_grad():
        states = model.model(**inputs).last_hidden_state
    return F.normalize(states[0, -1], dim=-1)


@pytest.mark.parametrize("cap", [False, True])
@pytest.mark.parametrize("name", ITEMS)
def test_inputs_equal_those_of_the_upstream_processor(ours, name, cap):
    settings = replace(ours[1].config, frame_max_tokens=768 if cap else None)
    processor = OmniProcessor(ours[1].tokenizer, settings)
    found, wanted = processor(ITEMS[name]), upstream_inputs(ITEMS[name], settings.instruction, cap)
    assert found.input_ids.tolist() == wanted["input_ids"][0].tolist()
    patches, found_grids = (
        patchify(found.inputs("vision"), 16, 2, processor.family.scaled) if found.inputs("vision") else (torch.empty(0), [])
    )
    for values, grids in {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}.items():
        if values in wanted:
            assert [list(grid) for grid in found_grids] == wanted[grids].tolist()
            torch.testing.assert_close(patches, wanted[values], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ITEMS)
def test_vectors_equal_a_plain_transformers_call(ours, theirs, name):
    model, processor, _ = ours
    with torch.no_grad():
        found = model.embed([processor(ITEMS[name])])[0]
    torch.testing.assert_close(found, their_vector(theirs, ITEMS[name], processor), atol=1e-5, rtol=0)


@pytest.mark.parametrize("budget", [64, 300, 100_000])
def test_packed_chunks_equal_one_by_one(ours, theirs, budget):
    model, processor, _ = ours
    with torch.no_grad():
        found = model.embed([processor(item) for item in ITEMS.values()], budget)
    wanted = torch.stack([their_vector(theirs, item, processor) for item in ITEMS.values()])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seconds", [0.4, 1.0, 1.013, 3.7, 9.25])
def test_audio_features_and_frames_equal_qwen3_omnis(ours, upstream, seconds):
    """Upstream's encoder pads to the longest window of a batch, ours to the full one (decision 004): with a sound of a
    second or more they agree."""
    model, processor, _ = ours
    media = Media("audio", flac(seconds), "a.flac")
    mel = processor(Item((media,))).inputs("audio")[0]
    extractor = WhisperFeatureExtractor.from_pretrained(upstream / "qwen3_omni")
    wanted = extractor(decode_audio(media).numpy(), sampling_rate=16_000, padding=True, truncation=False, return_tensors="pt")
    torch.testing.assert_close(mel, wanted["input_features"][0], atol=1e-6, rtol=0)
    with torch.no_grad():
        found = model.encode_frames("audio", [mel])
    assert len(found) == int(_get_feat_extract_output_lengths(torch.tensor(mel.shape[1])))
    if seconds >= 1:
        tower = Qwen3OmniMoeForConditionalGeneration.from_pretrained(upstream / "qwen3_omni").thinker.model.audio_tower.eval()
        with torch.no_grad():
            frames = tower(mel, feature_lens=torch.tensor([mel.shape[1]])).last_hidden_state
        torch.testing.assert_close(found, frames, atol=1e-5, rtol=0)
