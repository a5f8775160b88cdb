"""Every form of input that sentence-transformers documents, against its own modules on the stock export."""

import base64
import io
import json
import wave
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen3VLVideoProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.video_utils import VideoMetadata

from lightning_conan.embedder import ProcessorConfig
from lightning_conan.embedder.sentence_arrays import ArrayReader
from lightning_conan.embedder.sentence_tensors import mono_of
from lightning_conan.items import Item, Media
from lightning_conan.media.sampling import Sampling
from samples import flac, mp4, png

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 255, (30, 3, 64, 48), dtype=np.uint8)
PIXELS = RNG.integers(0, 255, (3, 70, 90), dtype=np.uint8)
RED, BLUE = Image.new("RGB", (64, 48), "red"), Image.new("RGB", (64, 48), "blue")
PICTURE = Image.fromarray(PIXELS.transpose(1, 2, 0))
PILS = [Image.fromarray(frame.transpose(1, 2, 0)) for frame in FRAMES]
METADATA = {"fps": 6.0, "total_num_frames": 30}


def user(*parts):
    return {"role": "user", "content": list(parts)}


SAID = {"type": "text", "text": "a red circle"}
FORMS = {
    "message": user(SAID),
    "message of a string": {"role": "user", "content": "a red circle"},
    "messages": [user(SAID)],
    "several turns": [user(SAID), {"role": "assistant", "content": "No."}, {"role": "user", "content": "Why?"}],
    "system turn": [{"role": "system", "content": "Find it."}, user(SAID)],
    "system turn alone": [{"role": "system", "content": "Find it."}],
    "system turn with an image": [{"role": "system", "content": [{"type": "image", "image": RED}]}, user(SAID)],
    "turn without content": [user(), user(SAID)],
    "message with an image": user({"type": "image", "image": RED}, SAID, {"type": "image", "image": BLUE}),
    "message with a video": user(SAID, {"type": "video", "video": FRAMES}),
    "pair of texts": ("a query", "a document"),
    "pair of an image and a text": (RED, "a document"),
    "pair of mappings": [{"image": RED, "text": "blue"}, {"image": BLUE}],
    "image, channels first": PIXELS,
    "image, channels last": np.ascontiguousarray(PIXELS.transpose(1, 2, 0)),
    "image, not contiguous": PIXELS[:, ::2],
    "image, tensor": torch.from_numpy(PIXELS),
    "image, tensor in a mapping": {"image": torch.from_numpy(PIXELS)},
    "image of three rows": PIXELS[:, :3],
    "images": {"image": [RED, BLUE]},
    "images and texts": {"image": [RED, BLUE], "text": ["both ", "of them"]},
    "text before image": {"text": "before", "image": RED},
    "text that is alone": {"text": "hello"},
    "video, array": FRAMES,
    "video, tensor": torch.from_numpy(FRAMES),
    "video, tensor in a mapping": {"video": torch.from_numpy(FRAMES)},
    "video, channels last": {"video": np.ascontiguousarray(FRAMES.transpose(0, 2, 3, 1))},
    "video, images": {"video": PILS},
    "video, arrays": {"video": list(FRAMES)},
    "video, metadata": {"array": FRAMES, "video_metadata": METADATA},
    "video, metadata in a mapping": {"video": {"array": FRAMES, "video_metadata": METADATA}, "text": "and a text"},
    "video, transformers' metadata": {"video": {"array": FRAMES, "video_metadata": VideoMetadata(**METADATA)}},
    "video, no metadata": {"video": {"array": FRAMES, "video_metadata": None}},
    "video, metadata without a rate": {"video": {"array": FRAMES, "video_metadata": {"total_num_frames": 30}}},
    "video, metadata of fewer frames": {"video": {"array": FRAMES, "video_metadata": {"fps": 2.0, "total_num_frames": 12}}},
    "video, images with metadata": {"video": {"array": PILS, "video_metadata": METADATA}},
    "videos": {"video": [FRAMES[:9], FRAMES[9:20]]},
    "image and video": {"image": RED, "video": FRAMES},
}  # fmt: skip


def embed(model, *values, **options):
    found = model.encode(list(values), convert_to_tensor=True, **options)
    return found.reshape(-1, found.shape[-1])  # a list that begins with a message is one input to the library


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FORMS)
def test_gives_the_vector_of_the_librarys_own_modules(whole, stock, name):
    close(embed(whole, FORMS[name]), embed(stock, FORMS[name]))


@pytest.mark.parametrize("name", ["message", "system turn", "images", "several turns", "pair of texts", "video, tensor"])
def test_prompts_stand_where_the_library_puts_them(whole, stock, name):
    close(embed(whole, FORMS[name], prompt="Look for it."), embed(stock, FORMS[name], prompt="Look for it."))
    close(whole.encode_query([FORMS[name]], convert_to_tensor=True), stock.encode_query([FORMS[name]], convert_to_tensor=True))


def test_a_batch_may_mix_forms(whole):
    values = ["a text first", *FORMS.values()]
    close(embed(whole, *values), torch.cat([embed(whole, value) for value in values]))


def test_forms_differ_from_each_other(whole):
    """Else an equal vector would tell nothing."""
    names = [
        "message",
        "several turns",
        "system turn",
        "pair of texts",
        "image, tensor",
        "images",
        "video, array",
        "video, metadata",
    ]
    scores = (found := embed(whole, "first", *(FORMS[name] for name in names))) @ found.T
    assert scores.fill_diagonal_(0).max() < 0.9999


def test_all_frames_are_taken_where_that_is_asked_for(whole, stock):
    value = {
        "video": {
            "array": FRAMES[:6],
            "video_metadata": {"fps": 10.0, "total_num_frames": 99, "frames_indices": [0, 9, 18, 40, 60, 98]},
        }
    }
    options = {"processing_kwargs": {"video": {"do_sample_frames": False}}}
    close(embed(whole, value, **options), embed(stock, value, **options))
    with pytest.raises(ValueError, match=r"total_num_frames must be at most the 6 frames .*do_sample_frames"):
        embed(whole, value)
    with pytest.raises(ValueError, match=r"processing_kwargs may be .*, got .*max_length"):
        embed(whole, "a", processing_kwargs={"text": {"max_length": 3}})


@pytest.fixture
def files(tmp_path):
    for name, data in {"a.png": png(90, 140), "b.jpeg": png(40, 60, 1, "JPEG"), "a.mp4": mp4(9, 64), "a.flac": flac(1.3)}.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


KINDS = {"a.png": "image", "b.jpeg": "image", "a.mp4": "video", "a.flac": "audio"}


@pytest.mark.parametrize("name", KINDS)
def test_a_string_that_is_a_mediums_path_is_the_medium(whole, wanted, files, name):
    """As the library's ``infer_modality`` has it: an existing file with a medium's suffix."""
    found = embed(whole, str(files / name), {"text": str(files / name)}, str(files / f"no-{name}"))
    close(found[:1], wanted(Item((Media(KINDS[name], files / name, name),))))
    close(found[1:], wanted(Item((str(files / name),)), Item((str(files / f"no-{name}"),))))


@pytest.mark.parametrize("key", ["image", "url", "path", "image_url", "base64", "data"])
def test_a_messages_image_may_be_a_file(whole, stock, files, key):
    path, data = str(files / "a.png"), base64.b64encode(png(90, 140)).decode()
    entry = {
        "image_url": {"type": "image_url", "image_url": {"url": path}},
        "base64": {"type": "image", "base64": data},
        "data": {"type": "image", "url": f"data:image/png;base64,{data}"},
    }.get(key, {"type": "image", key: path})
    close(embed(whole, user(entry, SAID)), embed(stock, user(entry, SAID)))


def test_data_uris_are_media_too(whole, stock):
    value = "data:image/png;base64," + base64.b64encode(png(90, 140)).decode()
    close(embed(whole, value), embed(stock, value))
    with pytest.raises(ValueError, match="A data URI must hold base64"):
        embed(whole, "data:image/png;base64,%%%")


def test_a_part_of_a_file_is_what_a_manifest_would_name(whole, wanted, files):
    entry = {"path": str(files / "a.mp4"), "start": 0.5, "end": 1.5}
    close(embed(whole, {"video": entry}), wanted(Item((Media("video", files / "a.mp4", "a.mp4", 0.5, 1.5),))))


URLS = ["https://example.org/a.png", "http://localhost/a.mp4", "https://youtu.be/x", "https://example.org/a.flac?x=1"]


@pytest.mark.parametrize("url", URLS)
def test_urls_are_refused_and_may_be_meant_as_text(whole, wanted, url):
    with pytest.raises(ValueError, match="URLs are not fetched, got"):
        embed(whole, url)
    close(embed(whole, {"text": url}), wanted(Item((url,))))
    for scheme in ("file", "ftp", "s3"):
        with pytest.raises(ValueError, match="URLs are not fetched, got"):
            embed(whole, {"image": f"{scheme}://host/a.png"})


def test_limits_of_the_folder_hold(tiny):
    config = ProcessorConfig.from_dict(
        ProcessorConfig().to_dict() | {"limits": {"max_bytes": 10**6, "max_pixels": 5000, "max_seconds": 2.0, "max_frames": 20}}
    )
    reader = ArrayReader(config)
    for kind, content, said in (
        ("image", Image.new("RGB", (100, 51)), "100x51 pixels"),
        ("image", PIXELS, "90x70 pixels"),
        ("video", FRAMES, "1 to 20 frames, got 30"),
        ("video", np.zeros((2, 3, 100, 51), np.uint8), "51x100 pixels"),
        ("video", FRAMES[:0], "1 to 20 frames, got 0"),
        ("audio", np.zeros(32_001, np.float32), "2 s long"),
        ("audio", {"array": np.zeros(96_100, np.float32), "sampling_rate": 48_000}, "2 s long"),
        ("audio", {"array": np.zeros(99, np.float32), "sampling_rate": 44_101}, "must be a usual rate"),
    ):
        with pytest.raises(ValueError, match=said):
            reader.read(kind, content)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "An input must be a text"),
        (3, "An input must be a text"),
        ([RED, RED, RED], "An input must be a text"),
        (np.zeros((2, 2, 2, 2, 2, 2), np.uint8), "An input must be a text"),
        ({"array": FRAMES}, "An input must be a text"),
        ({"text": None, "image": None}, "must hold something to embed"),
        ({"text": 3}, "A text must be a string"),
        ({"image": PIXELS.astype(np.float32) / 255}, "An image must be uint8"),
        ({"image": np.zeros((5, 9, 9), np.uint8)}, "An image must be uint8"),
        ({"image": 3}, "An image must be"),
        ({"video": {"array": FRAMES, "video_metadata": {"fps": 0}}}, "fps must be positive"),
        ({"video": [RED, PICTURE]}, "Frames must be of one size"),
        ({"video": RED}, "A video must be"),
        ({"audio": {"array": np.zeros(9)}}, "An audio clip must be"),
        ({"audio": {"array": np.zeros(999), "sampling_rate": "16000"}}, "must be a usual rate"),
        ({"audio": {"array": np.zeros(999), "sampling_rate": float("nan")}}, "must be a usual rate"),
        ({"audio": {"array": np.full(999, np.nan), "sampling_rate": 16_000}}, "must be finite"),
        ({"audio": {"array": np.zeros((9, 9)), "sampling_rate": 16_000}}, "must be of shape"),
        ({"audio": {"array": np.zeros((9, 9, 9)), "sampling_rate": 16_000}}, "must be of shape"),
        ({"role": 3, "content": "a"}, "A message must be"),
        ([{"role": "user", "content": "a"}, "b"], "A message must be"),
        ({"role": "user", "content": 3}, "A message's content must be"),
        ({"role": "user", "content": ["a"]}, "A message's part must have"),
        ({"role": "user", "content": [{"type": "image"}]}, "A message's part must have"),
        ({"role": "user", "content": [{"type": "smell", "smell": "rose"}]}, "A message's part must have"),
    ],
)
def test_what_is_no_form_is_refused_by_name(whole, value, said):
    with pytest.raises(ValueError, match=said):
        embed(whole, value)


def wav(samples, rate):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(samples.shape[0])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.T.astype("<i2").tobytes())
    return buffer.getvalue()


TONE = (9000 * np.sin(np.arange(24_000) * 0.05) + RNG.normal(0, 500, (2, 24_000))).astype(np.int16)
SOUNDS = {
    "bare mapping": lambda found, rate: {"array": found.mean(axis=0), "sampling_rate": rate},
    "channels first": lambda found, rate: {"audio": {"array": found, "sampling_rate": rate}},
    "channels last": lambda found, rate: {"audio": {"array": np.ascontiguousarray(found.T), "sampling_rate": rate}},
    "tensor": lambda found, rate: {"audio": {"array": torch.from_numpy(found), "sampling_rate": rate}},
    "doubles": lambda found, rate: {"audio": {"array": found.astype(np.float64), "sampling_rate": float(rate)}},
    "list": lambda found, rate: {"audio": {"array": found.mean(axis=0).tolist(), "sampling_rate": np.int64(rate)}},
    "message": lambda found, rate: user({"type": "audio", "audio": {"array": found, "sampling_rate": rate}}),
    "decoder": lambda found, rate: {
        "audio": SimpleNamespace(
            metadata=SimpleNamespace(duration_seconds=None),
            get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(found), sample_rate=rate),
        )
    },
}


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("form", SOUNDS)
def test_samples_are_the_audio_clip_that_a_wav_file_of_them_is(whole, wanted, form, rate):
    found = (TONE / 32768).astype(np.float32)
    close(embed(whole, SOUNDS[form](found, rate)), wanted(Item((Media("audio", wav(TONE, rate), "a.wav"),))))


def test_samples_without_a_rate_are_at_16_khz_and_several_clips_follow_each_other(whole, wanted):
    found = (TONE / 32768).astype(np.float32)
    clip, other = (Media("audio", wav(TONE[:, :end], 16_000), "a.wav") for end in (24_000, 9_000))
    close(
        embed(whole, found, {"audio": torch.from_numpy(found[0])}),
        wanted(Item((clip,)), Item((Media("audio", wav(TONE[:1], 16_000), "a.wav"),))),
    )
    close(embed(whole, {"audio": [found, found[:, :9_000]], "text": "both"}), wanted(Item((clip, other, "both"))))


@pytest.mark.parametrize("lacking", ["text", "image", "audio", "video"])
def test_rows_of_mixed_data_sets_may_lack_a_modality(whole, lacking):
    """As mteb's collators hand rows over: None, not a missing key."""
    row = {"text": "a", "image": RED, "audio": {"array": (TONE[0] / 32768).astype(np.float32), "sampling_rate": 16_000}}
    row |= {"video": torch.from_numpy(FRAMES)}
    rest = {name: value for name, value in row.items() if name != lacking}
    close(embed(whole, row | {lacking: None}), embed(whole, rest))


def test_torchcodecs_decoders_are_taken(whole, wanted, files):
    pytest.importorskip("torchcodec", exc_type=(ImportError, RuntimeError, OSError))
    from torchcodec.decoders import AudioDecoder, VideoDecoder

    try:
        video = VideoDecoder(files / "a.mp4")
    except RuntimeError as error:  # FFmpeg's libraries are looked for only now
        pytest.skip(str(error)[:80])
    close(embed(whole, video), wanted(Item((Media("video", files / "a.mp4", "a.mp4"),))))
    close(embed(whole, {"audio": AudioDecoder(files / "a.flac")}), wanted(Item((Media("audio", files / "a.flac", "a.flac"),))))


@pytest.mark.parametrize("name", ["whole", "stock"])
def test_boards_find_the_modalities_where_they_look(exported, name):
    found = json.loads((exported / name / "sentence_bert_config.json").read_text())["modality_config"]
    assert {"text", "image", "video"} | ({"audio"} if name == "whole" else set()) == set(found) & {
        "text",
        "image",
        "video",
        "audio",
    }


@given(st.integers(1, 900), st.floats(0.2, 240), st.floats(0.1, 30), st.integers(1, 8), st.integers(1, 64))
@settings(max_examples=200)
def test_frames_are_chosen_and_timed_as_transformers_does(count, fps, rate, least, more):
    config = ProcessorConfig(sampling=Sampling(rate, least, least + more))
    theirs = Qwen3VLVideoProcessor(fps=rate, min_frames=least, max_frames=least + more)
    metadata = {"fps": fps, "total_num_frames": count}
    indices = theirs.sample_frames(VideoMetadata(**metadata))
    numbers, seconds, _ = ArrayReader(config).chosen(count, metadata)
    assert numbers == indices.tolist()
    if len(seconds) % 2:
        seconds.append(seconds[-1])
    shown = Qwen3VLProcessor._calculate_timestamps(None, indices, fps)
    assert shown == pytest.approx([(one + other) / 2 for one, other in zip(seconds[::2], seconds[1::2], strict=True)])


@given(st.integers(1, 8), st.integers(9, 400), st.booleans(), st.booleans())
def test_channels_are_averaged_whichever_axis_they_are(channels, samples, last, tensor):
    found = np.random.default_rng(samples).uniform(-1, 1, (channels, samples)).astype(np.float32)
    array = found.T if last else found
    mono = mono_of(torch.from_numpy(array.copy()) if tensor else array)
    np.testing.assert_allclose(mono.numpy(), found.mean(axis=0), atol=1e-6)
