"""Each form of each medium in an exported folder, against the vector of the same file as our own ``Item``."""

import base64
import io
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from lightning_conan.embedder.sentence_decoders import rate_of, shown_seconds
from lightning_conan.items import Item, Media
from lightning_conan.media import decode_media, encode_video
from samples import EVERY_FRAME, flac, png, recording


def near(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def embed(model, *values):
    return model.encode(
        [[value] if isinstance(value, dict) and "role" in value else value for value in values], convert_to_tensor=True
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Files, and what they hold: a video of 24 frames a second, which frames without metadata are taken to have."""
    root = tmp_path_factory.mktemp("forms")
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 255, (40, 3, 64, 96), dtype=torch.uint8, generator=generator)
    gray = io.BytesIO()
    Image.open(io.BytesIO(png(70, 90, 4))).convert("L").save(gray, "PNG")
    alpha = io.BytesIO()
    levels = np.random.default_rng(0).integers(0, 255, (70, 90, 4), dtype=np.uint8)
    Image.fromarray(levels).save(alpha, "PNG")
    contents = {
        "a.png": png(70, 90),
        "gray.png": gray.getvalue(),
        "alpha.png": alpha.getvalue(),
        "a.mp4": encode_video(frames, 24),
        "a.flac": flac(1.3),
    }
    for name, data in contents.items():
        (root / name).write_bytes(data)
    whole = decode_media(Media("video", root / "a.mp4", "a.mp4"), EVERY_FRAME).frames
    names = [str(root / f"frame{number}.png") for number in range(len(whole))]
    for name, frame in zip(names, whole, strict=True):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(name)
    wave = decode_media(Media("audio", root / "a.flac", "a.flac"))
    images = {name: Image.open(root / file) for name, file in (("image", "a.png"), ("gray", "gray.png"), ("alpha", "alpha.png"))}
    return SimpleNamespace(root=root, frames=whole, wave=wave, names=names, **images)


def rows(image):
    """Pixels as PIL's arrays have them."""
    return np.asarray(image)


def channels(image):
    """Pixels as torch has them."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


META = {"fps": 24.0, "total_num_frames": 40}
CONTENTS = {
    "a.png": {
        "string": lambda made: str(made.root / "a.png"),
        "path": lambda made: made.root / "a.png",
        "data URI": lambda made: "data:image/png;base64," + base64.b64encode((made.root / "a.png").read_bytes()).decode(),
        "PIL": lambda made: made.image,
        "array, channels last": lambda made: rows(made.image),
        "array, channels first": lambda made: channels(made.image),
        "array, read-only": lambda made: np.frombuffer(rows(made.image).tobytes(), np.uint8).reshape(70, 90, 3),
        "tensor": lambda made: torch.from_numpy(channels(made.image)),
        "tensor, channels last": lambda made: torch.from_numpy(rows(made.image).copy()),
    },
    "gray.png": {
        "PIL": lambda made: made.gray,
        "array, one channel last": lambda made: rows(made.gray)[..., None],
        "array, one channel first": lambda made: rows(made.gray)[None],
        "tensor, one channel": lambda made: torch.from_numpy(rows(made.gray).copy())[None],
    },
    "alpha.png": {
        "PIL": lambda made: made.alpha,
        "array": lambda made: rows(made.alpha),
        "tensor, channels first": lambda made: torch.from_numpy(channels(made.alpha)),
    },
    "a.mp4": {
        "string": lambda made: str(made.root / "a.mp4"),
        "path": lambda made: made.root / "a.mp4",
        "array": lambda made: made.frames.numpy(),
        "array, channels last": lambda made: made.frames.permute(0, 2, 3, 1).numpy(),
        "tensor": lambda made: made.frames,
        "array with metadata": lambda made: {"array": made.frames.numpy(), "video_metadata": META},
        "tensor without metadata": lambda made: {"array": made.frames, "video_metadata": None},
        "images with metadata": lambda made: {"array": [Image.open(name) for name in made.names], "video_metadata": META},
        "files with metadata": lambda made: {"array": made.names, "video_metadata": META},
        "files in a tuple with metadata": lambda made: {"array": tuple(made.names), "video_metadata": META},
        "decoder": lambda made: decoder("VideoDecoder", made.root / "a.mp4"),
    },
    "a.flac": {
        "string": lambda made: str(made.root / "a.flac"),
        "path": lambda made: made.root / "a.flac",
        "array": lambda made: made.wave.numpy(),
        "tensor": lambda made: made.wave,
        "tensor, one channel": lambda made: made.wave[None],
        "doubles": lambda made: made.wave.double().numpy(),
        "array with its rate": lambda made: {"array": made.wave.numpy(), "sampling_rate": 16_000},
        "tensor with its rate": lambda made: {"array": made.wave, "sampling_rate": 16_000},
        "row of a data set": lambda made: {"path": "lost.flac", "array": made.wave.numpy(), "sampling_rate": 16_000},
        "decoder": lambda made: decoder("AudioDecoder", made.root / "a.flac"),
    },
}  # fmt: skip
NESTED = {
    "a.mp4": {
        "images": lambda made: [Image.open(name) for name in made.names],
        "arrays": lambda made: list(made.frames.numpy()),
        "tensors in a tuple": lambda made: tuple(made.frames),
        "files": lambda made: made.names,
        "mixed frames": lambda made: [*made.names[:7], *made.frames[7:20].numpy(), *made.frames[20:]],
    },
    "gray.png": {
        "array of two axes": lambda made: rows(made.gray),
        "tensor of two axes": lambda made: torch.tensor(rows(made.gray)),
    },
}
"""Forms that need the name of their modality: a bare list is a pair or nothing, and an array of two axes is audio."""
KINDS = {"a.png": "image", "gray.png": "image", "alpha.png": "image", "a.mp4": "video", "a.flac": "audio"}
BARE = [(file, form) for file, forms in CONTENTS.items() for form in forms]
ALL = BARE + [(file, form) for file, forms in NESTED.items() for form in forms]


def decoder(name, path):
    """A decoder of torchcodec, where it and FFmpeg's libraries are there."""
    found = pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, RuntimeError, OSError))
    try:
        return getattr(found, name)(path)
    except RuntimeError as error:  # FFmpeg's libraries are looked for only now
        pytest.skip(str(error)[:80])


def content(made, file, form):
    return (CONTENTS[file] | NESTED.get(file, {}))[form](made)


def item(made, file, *rest):
    return Item((Media(KINDS[file], made.root / file, file), *rest))


@pytest.mark.parametrize(("file", "form"), BARE)
def test_a_bare_form_is_its_file(whole, wanted, made, file, form):
    near(embed(whole, content(made, file, form)), wanted(item(made, file)))


@pytest.mark.parametrize(("file", "form"), ALL)
def test_a_form_in_a_mapping_a_list_or_a_message_is_its_file(whole, wanted, made, file, form):
    kind = KINDS[file]
    values = [
        {kind: content(made, file, form)},
        {kind: [content(made, file, form)]},
        {kind: content(made, file, form), "text": "and a text"},
        {kind: [content(made, file, form), content(made, file, form)]},
        {"role": "user", "content": [{"type": kind, kind: content(made, file, form)}, {"type": "text", "text": "and a text"}]},
        (content(made, file, form) if (file, form) in BARE else {kind: content(made, file, form)}, "a document"),
    ]
    one, both = item(made, file), Media(kind, made.root / file, file)
    found = embed(whole, *values)
    near(found[:2], wanted(one, one))
    near(found[2], wanted(item(made, file, "and a text"))[0])
    near(found[3], wanted(Item((both, both)))[0])
    near(found[4], found[2])
    assert not torch.allclose(found[5], found[0], atol=1e-3)  # a pair is two turns


@pytest.mark.parametrize("name", ["image", "url", "path"])
def test_a_column_of_messages_may_hold_none_under_other_names(whole, wanted, made, name):
    part = dict.fromkeys(("text", "image", "url", "path")) | {"type": "image", name: str(made.root / "a.png")}
    near(embed(whole, {"role": "user", "content": [part]}), wanted(item(made, "a.png")))
    with pytest.raises(ValueError, match="A message's part must have"):
        embed(whole, {"role": "user", "content": [part | {name: None}]})


def test_a_string_is_a_file_by_every_suffix_that_items_have(whole, wanted, tmp_path):
    """The library knows neither WebM nor PDF, and embeds the letters of such a name."""
    (tmp_path / "a.WebM").write_bytes(recording())
    Image.open(io.BytesIO(png(200, 150))).save(tmp_path / "a.pdf")
    page = Item((Media("document", tmp_path / "a.pdf", "a.pdf", page=1),))
    film = Item((Media("video", tmp_path / "a.WebM", "a.webm"),))
    near(embed(whole, str(tmp_path / "a.WebM"), tmp_path / "a.pdf", f"{tmp_path}/a.pdf#page=1"), wanted(film, page, page))
    near(
        embed(whole, str(tmp_path / "b.pdf"), "x" * 5000 + ".pdf"),
        wanted(Item((str(tmp_path / "b.pdf"),)), Item(("x" * 5000 + ".pdf",))),
    )


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (lambda made: made.root / "notes.txt", "A path must name a media file by its suffix"),
        (lambda made: rows(made.gray), r"Samples must be floats .* uint8 of \(70, 90\).*a gray image goes as"),
        (lambda made: made.names[:3], r"An input must be .*frames: {'video'"),
        (lambda made: {"video": rows(made.gray)[None].repeat(4, axis=0)}, "Frames must be uint8"),
        (lambda made: {"image": made.frames}, r"An image must be uint8 .*several images as a list"),
        (lambda made: {"video": [rows(made.image.convert("RGBA"))[None]]}, "Frames must be uint8"),
        (lambda made: {"image": rows(made.image) / 255}, r"An image must be uint8 .*Scale floats to 0 to 255"),
        (lambda made: (made.wave.numpy() * 32767).astype(np.int16), r"Samples must be floats .*Divide those of 16 bits by 32768"),
        (lambda made: {"audio": made.wave[:3].tolist()}, "An audio clip must be a path, an array of samples"),
    ],
)
def test_what_may_be_meant_in_two_ways_is_refused_with_a_remedy(whole, made, form, said):
    with pytest.raises(ValueError, match=said):
        embed(whole, form(made))


def film(times):
    """A video whose frames are shown at these seconds."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90_000)
        for number, second in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 37 * number % 255, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(second * 90_000), Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


TIMES = {
    "equally long": [number / 5 for number in range(12)],
    "of several lengths": [0, 0.1, 0.2, 1.5, 1.6, 3.0, 3.1, 3.2, 5.0],
    "from the second second on": [2, 2.1, 2.2, 2.3, 2.5, 2.6, 3.0, 3.5, 4],
    "a single one": [0.0],
}


@pytest.mark.parametrize("times", TIMES)
def test_frames_of_a_decoder_are_those_of_its_file(whole, wanted, tmp_path, times):
    """torchcodec's mean rate counts the last frame as no time at all, and says nothing of single frames."""
    (tmp_path / "a.mp4").write_bytes(film(TIMES[times]))
    near(
        embed(whole, {"video": decoder("VideoDecoder", tmp_path / "a.mp4")}),
        wanted(Item((Media("video", tmp_path / "a.mp4", "a.mp4"),))),
    )


@pytest.mark.parametrize(
    ("times", "named", "rate"), [("equally long", 5.37, 5.0), ("of several lengths", 1.79, 1.6), ("a single one", 30.0, 30.0)]
)
def test_a_decoders_rate_is_that_of_its_frames(times, named, rate):
    """Without torchcodec, by a stand-in of it."""

    class Decoder:
        metadata = SimpleNamespace(average_fps=named)

        def __len__(self):
            return len(TIMES[times])

        def get_frames_at(self, numbers):
            return SimpleNamespace(
                pts_seconds=torch.tensor([TIMES[times][number] + 7 for number in numbers], dtype=torch.float64)
            )

    found, begin = rate_of(Decoder())
    assert (round(found, 6), begin) == (rate, 7.0)
    numbers = [*range(0, len(TIMES[times]), 2)]
    shown = Decoder().get_frames_at(numbers).pts_seconds
    assert shown_seconds(numbers, shown, found, begin) == pytest.approx([TIMES[times][number] for number in numbers])


@pytest.mark.parametrize("form", [lambda path: path, lambda path: {"image": path}, lambda path: {"image": str(path)}])
def test_a_file_that_is_not_there_is_named(whole, tmp_path, form):
    with pytest.raises(FileNotFoundError, match=r"lost\.png"):
        embed(whole, form(tmp_path / "lost.png"))
