"""Images as transformers' image processor takes the same files, transparent ones above all."""

import io
import struct
import warnings
import zlib

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import ExifTags, Image, ImageOps, ImageSequence
from transformers import Qwen2VLImageProcessor

from lightning_conan.items import Media
from lightning_conan.media import Limits, MediaError, decode_document, decode_image, decode_video
from lightning_conan.media.image import Shrink
from samples import EVERY_FRAME

UPSTREAM = Qwen2VLImageProcessor()


def decoded(data: bytes, name: str = "a.png") -> torch.Tensor:
    return decode_image(Media("image", data, name))


def upstream(data: bytes) -> torch.Tensor:
    """The first frame of a file as Qwen2-VL's image processor takes it, before it resizes it."""
    with Image.open(io.BytesIO(data)) as image, warnings.catch_warnings(action="ignore"):
        return UPSTREAM.process_image(ImageOps.exif_transpose(image), do_convert_rgb=True)


def saved(image: Image.Image, format: str, **options) -> bytes:
    image.save(buffer := io.BytesIO(), format, **options)
    return buffer.getvalue()


def painted(mode: str, seed: int = 0, size: tuple[int, int] = (23, 17)) -> Image.Image:
    """Every color, shown by any degree."""
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
    values[..., 3] *= np.random.default_rng(seed).random(size[::-1]) < 0.9
    return Image.fromarray(values).convert(mode)


def keyed(format: str, **options) -> bytes:
    """A palette of eight colors, the transparent one of which is a hidden red; ``bytes`` give every color an alpha of its own."""
    values = np.arange(23 * 17, dtype=np.uint8).reshape(17, 23) % 8
    image = Image.fromarray(values)
    image.putpalette([255, 0, 0, *range(10, 31)])
    return saved(image, format, **options)


MORE = {"save_all": True, "append_images": [painted("RGBA", 1)]}
FADING = bytes(range(0, 256, 32))
FILES = {
    "RGBA PNG": saved(painted("RGBA"), "PNG"),
    "gray PNG with alpha": saved(painted("LA"), "PNG"),
    "palette PNG with a transparent color": keyed("PNG", transparency=0),
    "palette PNG with eight alphas": keyed("PNG", transparency=FADING),
    "palette PNG with a transparent color of 1 bit": keyed("PNG", transparency=0, bits=1),
    "gray PNG with a transparent shade": saved(painted("L"), "PNG", transparency=7),
    "black-and-white PNG whose black is transparent": saved(painted("1"), "PNG", transparency=0),
    "RGB PNG with a transparent color": saved(Image.new("RGB", (9, 5), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
    "RGB PNG with another transparent color": saved(painted("RGB"), "PNG", transparency=(1, 2, 3)),
    "APNG": saved(painted("RGBA"), "PNG", **MORE),
    "APNG whose first image is no frame": saved(painted("RGBA"), "PNG", default_image=True, **MORE),
    "lossy WebP with alpha": saved(painted("RGBA"), "WEBP"),
    "lossless WebP with alpha": saved(painted("RGBA"), "WEBP", lossless=True),
    "lossless WebP with its hidden colors": saved(painted("RGBA"), "WEBP", lossless=True, exact=True),
    "animated WebP with alpha": saved(painted("RGBA"), "WEBP", lossless=True, **MORE),
    "GIF with a transparent color": keyed("GIF", transparency=0),
    "animated GIF with a transparent color": keyed("GIF", transparency=0, save_all=True, append_images=[painted("P", 1)]),
    "gray GIF with a transparent shade": saved(painted("L"), "GIF", transparency=7),
    "GIF": saved(painted("RGB").quantize(), "GIF"),
    "RGB PNG": saved(painted("RGB"), "PNG"),
    "opaque RGBA PNG": saved(painted("RGB").convert("RGBA"), "PNG"),
    "palette PNG": keyed("PNG"),
    "gray PNG": saved(painted("L"), "PNG"),
    "black-and-white PNG": saved(painted("1"), "PNG"),
    "WebP": saved(painted("RGB"), "WEBP"),
    "JPEG": saved(painted("RGB"), "JPEG"),
    "gray JPEG": saved(painted("L"), "JPEG"),
    "CMYK JPEG": saved(painted("RGB").convert("CMYK"), "JPEG"),
    "progressive JPEG": saved(painted("RGB"), "JPEG", progressive=True, subsampling=0),
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_that_qwens_image_processor_takes(name):
    assert torch.equal(decoded(FILES[name]), upstream(FILES[name]))


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_transparent_image_is_turned_upright_too(format, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = saved(painted("RGBA"), format, lossless=True, exif=exif)
    assert torch.equal(decoded(data), upstream(data))


@settings(max_examples=40)
@given(
    values=arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4))),
    format=st.sampled_from(["PNG", "WEBP"]),
)
def test_what_is_transparent_lies_on_white(values, format):
    """Whatever color is hidden under it."""
    data = saved(Image.fromarray(values), format, lossless=True, exact=True)
    assert torch.equal(decoded(data), upstream(data))
    alpha = values[..., 3:] / 255
    wanted = alpha * values[..., :3] + (1 - alpha) * 255
    assert np.abs(decoded(data).permute(1, 2, 0).numpy() - wanted).max() <= 1


def test_black_words_on_a_clear_ground_can_be_read():
    values = np.zeros((20, 30, 4), np.uint8)
    values[5:9, 4:20, 3] = 255
    for data in (saved(Image.fromarray(values), "PNG"), saved(Image.fromarray(values), "WEBP", lossless=True)):
        pixels = decode_document(Media("document", data, "page.png"))
        assert pixels[:, 5:9, 4:20].max() == 0
        pixels[:, 5:9, 4:20] = 255
        assert pixels.min() == 255


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def raw_png(depth: int, color: int, row: bytes, width: int, key: tuple[int, ...] = ()) -> bytes:
    """A PNG of one row; ``key`` is its transparent color, as it is stored."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, color, 0, 0, 0))
    clear = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b""
    body = chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + clear + body


@pytest.mark.parametrize(
    ("depth", "row", "key", "wanted"),
    [
        (1, bytes([0b01010000]), 0, [255, 255, 255, 255]),
        (1, bytes([0b01010000]), 1, [0, 255, 0, 255]),
        (2, bytes([0b00011011]), 1, [0, 255, 170, 255]),
        (2, bytes([0b00011011]), 2, [0, 85, 255, 255]),
        (4, bytes([0x01, 0x2F]), 2, [0, 17, 255, 255]),
        (8, bytes([0, 7, 8, 255]), 7, [0, 255, 8, 255]),
        (16, struct.pack(">4H", 0, 1000, 1001, 40_000), 1000, [0, 255, 3, 156]),
        (16, struct.pack(">4H", 255, 256, 1000, 65_535), 255, [255, 1, 3, 255]),
    ],
)
def test_the_transparent_shade_of_a_gray_png_is_white_at_every_depth(depth, row, key, wanted):
    """Pillow, and transformers with it, compares shades of 2 and 4 bits as they are stored to pixels of 8 (decision 027)."""
    assert decoded(raw_png(depth, 0, row, 4, (key,)))[:, 0].tolist() == [wanted] * 3


@pytest.mark.parametrize(("depth", "scale"), [(8, 1), (16, 257)])
def test_the_transparent_color_of_an_rgb_png_is_white_at_every_depth(depth, scale):
    values = [scale * value for value in (1, 2, 3, 1, 2, 4, 200, 100, 50)]
    data = raw_png(depth, 2, struct.pack(f">9{'BH'[depth // 16]}", *values), 3, tuple(values[:3]))
    assert decoded(data)[:, 0].T.tolist() == [[255, 255, 255], [1, 2, 4], [200, 100, 50]]


@pytest.mark.parametrize(("color", "bands"), [(4, 2), (6, 4)])
def test_a_png_of_16_bits_with_alpha_lies_on_white(color, bands):
    values = [*[51 * 257] * (bands - 1), 65_535, *[51 * 257] * (bands - 1), 0]
    data = raw_png(16, color, struct.pack(f">{2 * bands}H", *values), 2)
    assert decoded(data)[:, 0].T.tolist() == [[51] * 3, [255] * 3]
    assert torch.equal(decoded(data), upstream(data))


@pytest.mark.parametrize("name", ["RGB PNG", "opaque RGBA PNG", "palette PNG", "GIF", "JPEG", "WebP"])
def test_an_opaque_image_pays_nothing(name, monkeypatch):
    wanted = upstream(FILES[name])
    monkeypatch.setattr(Image, "alpha_composite", lambda *_: pytest.fail("laid on white"))
    assert torch.equal(decoded(FILES[name]), wanted)


def gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    """The headers of a GIF and of its first frame, and no pixels."""
    header = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6)
    return header + b"\x2c" + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x44\x01\x00\x3b"


@pytest.mark.parametrize("sizes", [((12_000, 12_000), (1, 1)), ((1, 1), (12_000, 12_000))])
def test_a_gif_of_too_many_pixels_is_refused_from_its_headers(sizes, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(MediaError, match="12000x12000 pixels, must be"):
        decoded(gif(*sizes), "a.gif")


def test_a_transparent_image_over_the_limit_is_refused_before_it_is_laid_on_white(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(Image, "new", lambda *_: pytest.fail("laid on white"))
    for name in ("RGBA PNG", "lossless WebP with alpha", "GIF with a transparent color"):
        with pytest.raises(MediaError, match="23x17 pixels, must be 1 to 390"):
            decode_image(Media("image", FILES[name], "a.png"), Limits(max_pixels=390))


@pytest.mark.parametrize("keep", [30, 60, 200, 300])
@pytest.mark.parametrize("name", ["RGBA PNG", "GIF", "palette PNG with eight alphas", "lossless WebP with alpha"])
def test_a_cut_transparent_image_is_refused(name, keep):
    data = FILES[name]
    with pytest.raises(MediaError, match=r"image 'a\.png': "):
        decoded(data[: min(keep, len(data) // 2)])


def film(format: str, **options) -> bytes:
    """Four frames with a bar that fades, over hidden colors."""
    frames = [np.full((48, 64, 4), 40 * number, np.uint8) for number in range(4)]
    for number, frame in enumerate(frames):
        frame[..., 3] = 0
        frame[10:20, :, 3] = 255
        frame[30:40, :, 3] = np.arange(64) * 4 if format == "PNG" else 255 * (np.arange(64) > 10 * number)
    first, *more = map(Image.fromarray, frames)
    return saved(first, format, save_all=True, append_images=more, duration=100, **options)


@pytest.mark.parametrize("data", [film("PNG"), film("GIF", disposal=2)], ids=["APNG", "GIF"])
def test_frames_of_an_animation_are_those_that_qwens_image_processor_takes(data):
    clip = decode_video(Media("video", data, "a.gif"), EVERY_FRAME)
    with Image.open(io.BytesIO(data)) as image:
        wanted = [UPSTREAM.process_image(frame.copy(), do_convert_rgb=True) for frame in ImageSequence.Iterator(image)]
    assert torch.equal(clip.frames, torch.stack(wanted))
    assert torch.equal(clip.frames[0], decoded(data))
    assert clip.frames[:, :, 0].min() == 255, "nothing hidden is seen"


@pytest.mark.parametrize(
    ("codec", "container", "pixels"),
    [("qtrle", "mov", "argb"), ("png", "mov", "rgba"), ("ffv1", "matroska", "bgra"), ("prores_ks", "mov", "yuva444p10le")],
)
def test_a_transparent_film_lies_on_white(codec, container, pixels):
    values = np.full((48, 64, 4), 80, np.uint8)
    values[..., 3] = np.arange(64) * 4
    with av.open(buffer := io.BytesIO(), "w", format=container) as file:
        stream = file.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        file.mux(stream.encode(av.VideoFrame.from_ndarray(values, format="rgba")))
        file.mux(stream.encode(None))
    (frame,) = decode_video(Media("video", buffer.getvalue(), "a.mov"), EVERY_FRAME).frames
    alpha = values[..., 3] / 255
    wanted = alpha * 80 + (1 - alpha) * 255
    assert np.abs(frame.numpy() - wanted).max() <= (1.01 if codec != "prores_ks" else 3)


def test_a_palette_with_alphas_lies_on_white_as_a_film_too():
    data = FILES["palette PNG with eight alphas"]
    (frame,) = decode_video(Media("video", data, "a.png"), EVERY_FRAME).frames
    assert (frame.int() - decoded(data).int()).abs().max() <= 1


def test_a_transparent_film_lies_on_white_as_qwens_video_processor_lays_it():
    """Within the rounding; what upstream's readers of videos do is to drop the alpha."""
    from transformers.video_utils import convert_to_rgb

    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 4), dtype=np.uint8)
    first, *more = map(Image.fromarray, frames)
    data = saved(first, "PNG", save_all=True, append_images=more, duration=100, blend=0)
    clip = decode_video(Media("video", data, "a.png"), EVERY_FRAME)
    wanted = convert_to_rgb(frames.transpose(0, 3, 1, 2), input_data_format="channels_first")
    assert np.abs(clip.frames.numpy() - wanted.astype(float)).max() <= 1


@pytest.mark.parametrize(
    ("gap", "decoded_at"), [(1.0, (100, 50)), (1.9, (200, 100)), (2.0, (200, 100)), (3.0, (400, 200)), (5.0, (800, 400))]
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_jpeg_is_decoded_no_smaller_than_the_gap_asks_for(gap, decoded_at, turned):
    """At an eighth, a quarter or half of its size, where that is still so many times as large as the eighth that is wanted."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6 if turned else 1
    with Image.open(io.BytesIO(saved(Image.new("RGB", (800, 400)), "JPEG", exif=exif))) as image:
        wanted = Shrink(lambda height, width: (height // 8, width // 8), gap).draft(image)
        assert image.size == decoded_at
        assert wanted == (None if decoded_at == (800, 400) else (100, 50) if turned else (50, 100))
