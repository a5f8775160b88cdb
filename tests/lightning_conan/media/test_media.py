import io
import math
import struct
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from torchaudio.functional import resample
from torchvision.io import decode_jpeg

from lightning_conan.items import Media
from lightning_conan.media import (
    Limits,
    MediaError,
    decode_audio,
    decode_document,
    decode_image,
    decode_media,
    decode_video,
    encode_audio,
    encode_video,
    image,
    video,
)
from lightning_conan.media.audio import BLOCK, resampled, resampler
from lightning_conan.media.container import Source
from lightning_conan.media.image import resize
from lightning_conan.media.sampling import Resampling, Sampling
from lightning_conan.media.timeline import Timeline
from lightning_conan.media.video import Misled, pick
from samples import EVERY_FRAME, call, flac, mp4, png, recording


def image_media(data: bytes, name: str = "a.png") -> Media:
    return Media("image", data, name)


def test_png_is_lossless():
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    assert np.array_equal(decode_image(image_media(buffer.getvalue())).permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_formats(format):
    assert decode_image(image_media(png(format=format))).shape == (3, 40, 56)


@pytest.mark.parametrize("mode", ["L", "1", "RGBA", "CMYK", "I;16", "P"])
def test_every_mode_becomes_rgb(mode):
    buffer = io.BytesIO()
    Image.new(mode, (9, 6)).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    assert decode_image(image_media(buffer.getvalue())).shape == (3, 6, 9)


def test_grays_of_16_bits_keep_their_shades():
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 128 * 256, 255 * 256, 65535]], dtype=np.uint16)).save(buffer, "PNG")
    assert decode_image(image_media(buffer.getvalue()))[:, 0].tolist() == [[0, 128, 255, 255]] * 3


def by_pillow(data: bytes) -> torch.Tensor:
    """The slow reference: Pillow alone."""
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB"))).permute(2, 0, 1)


def encoded(mode: str = "RGB", format: str = "JPEG", **settings) -> bytes:
    buffer = io.BytesIO()
    photo().convert(mode).save(buffer, format, **settings)
    return buffer.getvalue()


def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 14, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((141, 90), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 30}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
def test_jpegs_are_decoded_as_pillow_decodes_them(mode, settings):
    data = encoded(mode, restart_marker_rows=2, **settings)
    assert torch.equal(decode_image(image_media(data)), by_pillow(data))


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("RGB", {"format": "WEBP"}),
        ("RGB", {"format": "WEBP", "lossless": True}),
        ("RGBA", {"format": "WEBP"}),
        ("L", {"format": "WEBP"}),
        ("RGB", {"format": "WEBP", "save_all": True, "append_images": [Image.new("RGB", (141, 90))]}),
        ("RGB", {"format": "MPO", "save_all": True, "append_images": [Image.new("RGB", (141, 90))]}),
    ],
)
def test_webp_and_files_of_several_pictures_are_decoded_as_pillow_decodes_them(mode, settings):
    data = encoded(mode, **settings)
    assert torch.equal(decode_image(image_media(data)), by_pillow(data))


def test_a_torchvision_without_its_image_library_leaves_images_to_pillow(monkeypatch):
    def missing(*_):
        raise AttributeError("'_OpNamespace' 'image' object has no attribute 'decode_jpeg'")

    monkeypatch.setitem(image.STRAIGHT, "JPEG", missing)
    assert torch.equal(decode_image(image_media(encoded())), by_pillow(encoded()))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_applied(format, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(format=format, exif=exif)
    pixels = decode_image(image_media(data))
    assert pixels.shape == ((3, 141, 90) if orientation in (5, 6, 7, 8) else (3, 90, 141))
    assert torch.equal(pixels, by_pillow(data))


def test_a_jpeg_without_its_end_marker_is_read_as_pillow_reads_it():
    data = encoded()
    without = data[:-2] + bytes(64)
    with pytest.raises(RuntimeError):
        decode_jpeg(torch.frombuffer(bytearray(without), dtype=torch.uint8))
    assert torch.equal(decode_image(image_media(without)), by_pillow(data))
    with pytest.raises(MediaError, match="truncated"):
        decode_image(image_media(data[:-40]))


@pytest.mark.parametrize("data", [b"", b"nonsense", png()[:50], png()[:-400], b"GIF89a" + bytes(30)])
def test_broken_image_names_file_and_reason(data):
    with pytest.raises(MediaError, match=r"image 'x\.png': "):
        decode_image(image_media(data, "x.png"))


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_bomb_is_refused_from_its_header(format, monkeypatch):
    buffer = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(buffer, format)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr("lightning_conan.media.image.decode_jpeg", lambda *_: pytest.fail("decoded"))
    with pytest.raises(MediaError, match="12000x12000 pixels, must be"):
        decode_image(image_media(buffer.getvalue()))


@pytest.mark.parametrize("format", ["wav", "flac"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_any_rate_becomes_16_khz(format, rate):
    wave = decode_audio(Media("audio", flac(1.0, rate, format), f"a.{format}"))
    assert abs(len(wave) - 16_000) <= 1


def test_16_khz_comes_back_as_it_was():
    wave = torch.rand(5000) - 0.5
    found = decode_audio(Media("audio", encode_audio(wave, format="wav"), "a.wav"))
    assert torch.allclose(found, wave, atol=4e-5)


@pytest.mark.parametrize(("codec", "container"), [("libmp3lame", "mp3"), ("libopus", "ogg"), ("vorbis", "ogg")])
def test_lossy_formats_and_stereo(codec, container):
    wave = decode_audio(Media("audio", tone(codec, container, "stereo"), f"a.{container}"))
    assert abs(len(wave) / 16_000 - 1) < 0.2
    assert 0.2 < wave.abs().max() < 0.6


def tone(codec: str, container: str, layout: str) -> bytes:
    """A second of a tone in each channel."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=48_000, layout=layout, options={"strict": "experimental"})
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=48_000, frame_size=stream.frame_size or 960)
        wave = (0.4 * np.sin(np.arange(48_000) * 0.05)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.stack([wave] * (1 + (layout == "stereo"))), format="fltp", layout=layout)
        frame.rate = 48_000
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["flac", "wav"])
def test_a_sound_of_several_blocks_comes_back(format):
    generator = torch.Generator().manual_seed(0)
    wave = torch.randint(-32_768, 32_768, (2 * BLOCK + 77,), generator=generator) / 32_768
    found = decode_audio(Media("audio", encode_audio(wave, format=format), f"a.{format}"))
    assert torch.equal(found, wave), "16 bits are not lost"
    media = Media("audio", encode_audio(wave, format=format), f"a.{format}", end=5.0)
    assert torch.equal(decode_audio(media), found[:80_000])


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("length", [1, 900, 30_000, 100_001])
def test_pieces_are_resampled_as_the_whole_is(rate, length):
    generator = torch.Generator().manual_seed(length)
    wave = torch.rand(length, generator=generator) - 0.5
    blocks = wave.split(7_001)
    found = resampled(iter(blocks), rate, at_once=20_000)
    assert torch.allclose(found, resampler(rate)(wave), atol=1e-6)
    assert len(found) == math.ceil(length * 16_000 / rate)


def test_a_sound_is_not_held_at_its_own_rate(monkeypatch):
    """A small file of an hour of nothing at a high rate would take gigabytes."""
    lengths, convert = [], resampler(48_000)

    class Spy:
        width = convert.width

        def __call__(self, wave):
            lengths.append(len(wave))
            return convert(wave)

    monkeypatch.setattr("lightning_conan.media.audio.resampler", lambda rate: Spy())
    assert len(resampled((torch.zeros(1_000) for _ in range(300)), 48_000, at_once=20_000)) == 100_000
    assert max(lengths) < 22_000


def test_resampling_is_torchaudios():
    wave = torch.sin(torch.arange(44_100) * 0.05) / 2
    data = encode_audio(wave, 44_100)
    expected = resample((wave * 32_768).round().double() / 32_768, 44_100, 16_000)
    assert torch.allclose(decode_audio(Media("audio", data, "a.flac")).double(), expected, atol=1e-6)


@pytest.mark.parametrize("layouts", [("mono", "stereo"), ("stereo", "mono")])
def test_a_sound_that_changes_its_channels_is_refused(layouts):
    """FFmpeg's buffer of samples would lose one, or crash where there is none."""
    data = b"".join(tone("mp2", "mp2", layout) for layout in layouts)
    with pytest.raises(MediaError, match=r"changes from .* to .* after \d+ samples"):
        decode_audio(Media("audio", data, "a.mp2"))


def test_a_span_is_cut_out():
    wave = torch.arange(16_000) / 16_000 - 0.5
    media = Media("audio", encode_audio(wave, format="wav"), "a.wav", start=0.25, end=0.5)
    assert torch.allclose(decode_audio(media), wave[4000:8000], atol=4e-5)


def test_not_finite_samples_are_refused():
    samples = np.zeros(800, dtype=np.float32)
    samples[3] = np.nan
    size = samples.nbytes
    header = b"RIFF" + (36 + size).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    header += (3).to_bytes(2, "little") + (1).to_bytes(2, "little") + (16_000).to_bytes(4, "little")
    header += (64_000).to_bytes(4, "little") + (4).to_bytes(2, "little") + (32).to_bytes(2, "little")
    data = header + b"data" + size.to_bytes(4, "little") + samples.tobytes()
    with pytest.raises(MediaError, match="not finite"):
        decode_audio(Media("audio", data, "nan.wav"))


def test_too_long_is_refused():
    with pytest.raises(MediaError, match="s long, must be at most 1"):
        decode_audio(Media("audio", flac(3.0), "a.flac"), Limits(max_seconds=1.0))


@pytest.mark.parametrize("data", [b"", b"nonsense" * 20, flac()[:40]])
def test_broken_audio_names_file_and_reason(data):
    with pytest.raises(MediaError, match=r"audio 'x\.flac': "):
        decode_audio(Media("audio", data, "x.flac"))


def test_frames_are_those_at_their_times():
    shades = torch.arange(8, dtype=torch.uint8)[:, None, None, None] * 30
    clip = decode_video(Media("video", encode_video(shades.expand(8, 3, 48, 48).contiguous(), 4), "a.mp4"))
    assert clip.seconds == [0.0, 0.5, 1.25, 1.75]
    found = clip.frames.float().mean(dim=(1, 2, 3)) / 30
    assert torch.allclose(found, torch.tensor([0.0, 2.0, 5.0, 7.0]), atol=0.25)


BETWEEN = {"x264-params": "b-adapt=0:b-pyramid=none"}
"""As many frames as may be that no other frame is made from."""


def movie(codec="libx264", frames=60, gop=10, b_frames=2):
    """Noise that moves, with key frames now and then."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    with av.open(buffer, "w", format="webm" if codec == "libvpx" else "mp4") as container:
        stream = container.add_stream(codec, rate=10, options=BETWEEN if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size, stream.max_b_frames = 64, 48, "yuv420p", gop, b_frames
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(noise, number, axis=1), format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


class Counting:
    """A container that counts the frames it decodes."""

    def __init__(self, container):
        self.container, self.decoded = container, 0

    def __getattr__(self, name):
        return getattr(self.container, name)

    def demux(self, stream):
        for packet in self.container.demux(stream):
            known = {name: getattr(packet, name) for name in ("pts", "dts", "size", "is_keyframe")}
            yield SimpleNamespace(**known, decode=lambda packet=packet: self.counted(packet.decode()))

    def counted(self, frames):
        self.decoded += len(frames)
        return frames


@pytest.mark.parametrize("sparse", [0, 1000])
@pytest.mark.parametrize(
    ("codec", "gop", "b_frames"),
    [("libx264", 10, 2), ("libx264", 10, 0), ("libx264", 60, 3), ("mpeg4", 12, 2), ("libvpx", 10, 0)],
)
def test_jumping_and_leaving_out_find_the_frames_that_scanning_finds(codec, gop, b_frames, sparse, monkeypatch):
    monkeypatch.setattr(video, "SPARSE", sparse)
    data = movie(codec, 60, gop, b_frames)
    with av.open(io.BytesIO(data)) as container:
        scanned = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(io.BytesIO(data)) as container:
        container.streams.video[0].codec_context.skip_frame = "NONREF"
        needed = len(list(container.decode(video=0)))
    assert needed < 0.7 * 60 or not b_frames
    for wanted in ([0], [59], [7, 8, 9, 31], [12, 40, 41, 58], list(range(60)), [19, 20, 21]):
        source = Source(Media("video", data, "a"), "video", data)
        shown = Timeline.read(source)
        source.container = counting = Counting(source.container)
        found = dict(pick(source, shown, set(wanted), lambda *_: None))
        assert sorted(found) == wanted
        assert all(np.array_equal(found[index].permute(1, 2, 0).numpy(), scanned[index]) for index in wanted)
        if sparse == 0:
            assert counting.decoded <= gop * len({index // gop for index in wanted}) + 4
        assert counting.decoded <= needed + len(wanted)


def test_a_wrong_timeline_is_noticed():
    data = movie()
    for wanted in ({3, 5}, {59}):
        source = Source(Media("video", data, "a"), "video", data)
        shown = Timeline.read(source)
        shown.times[5], shown.times[59] = shown.times[5] - 1, shown.times[59] + 1
        with pytest.raises(Misled):
            list(pick(source, shown, wanted, lambda *_: None))


def film(format, codec, moments, rate, sound=0.0, tallest=0):
    """Gray frames that say which they are, shown at some milliseconds, with a sound track of some seconds."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format, options={"avoid_negative_ts": "disabled"}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", 25
        heard = container.add_stream("libopus", rate=48_000, layout="mono") if sound else None
        for number, moment in enumerate(moments):
            pixels = np.full((64, 64, 3), 7 * number % 256, np.uint8)
            pixels[: tallest * 8] = 0
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = moment, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for start in range(0, int(48_000 * sound), 960) if heard else ():
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.int16), format="s16", layout="mono")
            frame.rate, frame.pts, frame.time_base = 48_000, start, Fraction(1, 48_000)
            container.mux(heard.encode(frame))
        if heard:
            container.mux(heard.encode(None))
    return buffer.getvalue()


def numbers(clip):
    """Numbers of the frames that a film's clip holds."""
    return [round(float(frame.float().mean()) / 7) for frame in clip.frames]


@pytest.mark.parametrize("begin", [0, 500])
@pytest.mark.parametrize("sound", [0.0, 1.9, 2.04, 3.0])
@pytest.mark.parametrize(("format", "codec"), [("webm", "libvpx-vp9"), ("matroska", "libx264")])
def test_frames_are_those_of_the_picture_whatever_the_sound(format, codec, sound, begin):
    """A file's duration is that of its longest track."""
    clip = decode_video(Media("video", film(format, codec, [begin + 40 * n for n in range(30)], 25, sound), "a"), EVERY_FRAME)
    assert len(clip.seconds) == 30
    assert clip.seconds == pytest.approx([n / 25 for n in range(30)])


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_webm_that_was_cut_is_refused(share):
    data = film("webm", "libvpx-vp9", [40 * n for n in range(100)], 25, 4.0)
    with pytest.raises(MediaError, match=r"truncated: the header announces 4\.0"):
        decode_video(Media("video", data[: int(share * len(data))], "a.webm"))


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_an_mp4_whose_header_comes_first_and_whose_end_was_cut_is_refused(share, tmp_path):
    """As a download that broke off: every packet that is left decodes, so only their number tells."""
    source = film("mp4", "libx264", [40 * n for n in range(100)], 25)
    with (
        av.open(io.BytesIO(source)) as given,
        av.open(tmp_path / "a.mp4", "w", options={"movflags": "+faststart"}) as made,  # which reads its file again
    ):
        copy = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                made.mux(packet)
    data = (tmp_path / "a.mp4").read_bytes()
    assert len(decode_video(Media("video", data, "a.mp4"), EVERY_FRAME).seconds) == 100
    with pytest.raises(MediaError, match="truncated: the header announces 100 frames"):
        decode_video(Media("video", data[: int(share * len(data))], "a.mp4"), EVERY_FRAME)


def test_frames_of_unlike_length_are_found_by_their_times():
    """Twenty frames in the first second, then one a second."""
    moments = [50 * n for n in range(20)] + [1000 * n for n in range(1, 11)]
    data = film("mp4", "libx264", moments, 1000)
    whole = decode_video(Media("video", data, "a.mp4"), EVERY_FRAME)
    assert whole.seconds == pytest.approx([moment / 1000 for moment in moments], abs=0.002)
    part = decode_video(Media("video", data, "a.mp4", start=5.0, end=9.0), EVERY_FRAME)
    assert part.seconds == pytest.approx([0, 1, 2, 3], abs=0.002)
    assert numbers(part) == [24, 25, 26, 27]
    late = decode_video(Media("video", data, "a.mp4", start=9.5, end=99.0), EVERY_FRAME)
    assert numbers(late) == [28, 29]  # what is shown at 9.5 s begins at 9


@pytest.mark.parametrize(
    ("start", "end", "shown"), [(4.5, 9.5, [4, 5, 6, 7, 8, 9]), (3.2, 3.9, [3]), (3.0, 4.0, [3]), (0.0, 0.5, [0])]
)
@pytest.mark.parametrize("moments", [range(0, 20_000, 1000), [*range(0, 15_000, 1000), 15_100, 15_200, 15_300]])
def test_a_span_has_every_frame_that_is_on_screen_in_it(moments, start, end, shown):
    """One frame a second, of equal length or not."""
    data = film("mp4", "libx264", moments, 1000)
    clip = decode_video(Media("video", data, "a.mp4", start=start, end=end), EVERY_FRAME)
    assert clip.seconds == pytest.approx([max(0, second - start) for second in shown], abs=0.002)  # as if it had been cut out
    assert numbers(clip) == shown


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_a_webm_that_does_not_tell_how_long_it_is_has_all_its_frames(codec):
    """A recording in a browser: its header was written before its end was known."""
    data = recording(codec)
    with av.open(io.BytesIO(data)) as container:
        assert container.duration is None
    clip = decode_video(Media("video", data, "a.webm"), EVERY_FRAME)
    assert numbers(clip) == list(range(20))
    with pytest.raises(MediaError, match="2 s long, must be at most 1"):
        decode_video(Media("video", data, "a.webm"), limits=Limits(max_seconds=1))


def test_a_film_whose_frames_change_their_size_is_refused():
    """As a call over a bad line is recorded; the header tells the first size only."""
    calm, wild = Media("video", call(64), "a.ts"), Media("video", call(64, 128), "a.ts")
    assert len(decode_video(calm, EVERY_FRAME).seconds) == 10
    with pytest.raises(MediaError, match="frames of several sizes"):
        decode_video(wild, EVERY_FRAME)
    with pytest.raises(MediaError, match="128x128 pixels, must be 1 to 5000"):
        decode_video(wild, EVERY_FRAME, Limits(max_pixels=5000))


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "huge.mkv"
    with path.open("wb") as file:
        file.truncate(2**40)
    for modality, decode in (("video", decode_video), ("audio", decode_audio), ("image", decode_image)):
        with pytest.raises(MediaError, match="1099511627776 bytes, must be 1 to"):
            decode(Media(modality, path, "huge.mkv"))


def test_what_an_editor_cut_off_without_encoding_anew_is_not_shown():
    """Packets before the cut stay in the file, since later ones build on them, and are marked."""
    source, out = film("mp4", "libx264", [40 * n for n in range(100)], 25), io.BytesIO()
    with av.open(io.BytesIO(source)) as given, av.open(out, "w", format="mp4", options={"avoid_negative_ts": "disabled"}) as cut:
        stream = given.streams.video[0]
        copy, offset = cut.add_stream_from_template(stream), int(1.4 / stream.time_base)
        for packet in given.demux(stream):
            if packet.dts is not None and packet.pts * stream.time_base >= 1.0:
                packet.pts, packet.dts, packet.stream = packet.pts - offset, packet.dts - offset, copy
                cut.mux(packet)
    clip = decode_video(Media("video", out.getvalue(), "cut.mp4"), EVERY_FRAME)
    assert numbers(clip)[0] == 35
    assert len(clip.seconds) == 65


def test_a_film_that_was_held_upright_stands_upright():
    data = bytearray(film("mp4", "libx264", [100 * n for n in range(4)], 10, tallest=4))
    matrix = data.find(b"tkhd") + 4 + 4 + 20 + 8 + 8
    assert struct.unpack(">9i", data[matrix : matrix + 36])[0] == 65536
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 64 * 65536, 0, 1 << 30)
    lying = decode_video(Media("video", film("mp4", "libx264", [100 * n for n in range(4)], 10, tallest=4), "a.mp4")).frames[3]
    upright = decode_video(Media("video", bytes(data), "a.mp4")).frames[3]
    assert torch.equal(upright, lying.rot90(-1, (1, 2)))  # a quarter clockwise: what was above is right now
    assert upright[:, :, 48:].float().mean() < 5 < upright[:, :, :16].float().mean()


RATES = [1, 2, 10, 12.5, 15, 24_000 / 1001, 24, 25, 30_000 / 1001, 30, 50, 60_000 / 1001, 60, 120]


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("even", [True, False])
def test_a_frame_is_shown_at_its_own_second(fps, even):
    """However that second is rounded: a part that begins or ends there has or lacks just this frame."""
    shown = Timeline(1500, fps, seconds=[] if even else [n / fps for n in range(1500)])
    for frame in range(1500):
        for second in (frame / fps, frame * (1 / fps), float(f"{frame / fps:.7f}")):
            assert shown.frame_at(second) == shown.frame_after(second) == frame
    middle = [shown.frame_at((frame + 0.5) / fps) for frame in range(1500)]
    assert middle == list(range(1500))


def test_a_part_that_ends_where_a_frame_begins_lacks_it():
    data = encode_video(torch.zeros(40, 3, 48, 48, dtype=torch.uint8), 10)
    for first, last in ((3, 6), (7, 9), (11, 29), (0, 3)):
        clip = decode_video(Media("video", data, "a.mp4", start=first / 10, end=last / 10), EVERY_FRAME)
        assert len(clip.seconds) == last - first


@pytest.mark.parametrize(
    ("total", "rate", "fps", "count"),
    [(15, 4, 2, 7), (19, 10, 2, 4), (99, 10, 2, 19), (100, 10, 2, 20), (59, 30, 3, 5), (7, 4, 2, 4)],
)
def test_a_last_fraction_of_a_frame_is_not_counted(total, rate, fps, count):
    """As upstream's processor floors."""
    assert len(Sampling(fps=fps).indices(total, rate)) == count


@pytest.mark.parametrize(("seconds", "count"), [(2.0, 4), (2.0000001, 4), (2.1, 5), (1.9999999, 4), (1.6, 4)])
def test_resampled_frames_are_those_of_multiples_within(seconds, count):
    shown = Timeline(100, 25.0)
    assert len(Resampling(2.0).choose(shown, 0.5, 0.5 + seconds)) == count


def test_a_span_of_a_video():
    clip = decode_video(Media("video", mp4(16), "a.mp4", start=1.0, end=3.0))
    assert clip.seconds[0] == 0.0
    assert 1.0 <= clip.seconds[-1] < 2.0
    with pytest.raises(MediaError, match="no frames between"):
        decode_video(Media("video", mp4(8), "a.mp4", start=60.0))


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.8])
def test_truncated_video_is_refused(keep):
    data = mp4(16)
    cut = data[: int(keep * len(data)) if keep < 1 else keep]
    with pytest.raises(MediaError, match=r"video 'x\.mp4': "):
        decode_video(Media("video", cut, "x.mp4"))


def test_a_recording_whose_stream_goes_on_under_another_number_names_its_file():
    """PyAV stumbles over a stream that begins in mid-file, with an error of Python's own; from 19 on it reads the first alone,
    as FFmpeg does.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 9 * number, np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    before, after = buffer.getvalue(), bytearray(buffer.getvalue())
    for place in range(0, len(after), 188):
        if (after[place + 1] & 31) << 8 | after[place + 2] == 256:
            after[place + 1 : place + 3] = bytes([after[place + 1] & 0xE0 | 1, 44])  # 300
    if int(av.__version__.partition(".")[0]) >= 19:
        first, both = (decode_video(Media("video", 5 * before + rest, "a.ts")) for rest in (b"", bytes(after)))
        assert both.frames.equal(first.frames)
        return
    with pytest.raises(MediaError, match=r"video 'a\.ts'"):
        decode_video(Media("video", 5 * before + bytes(after), "a.ts"))


def test_frames_that_no_header_counts_are_counted_on_the_way():
    with pytest.raises(MediaError, match="must be 1 to 4"):
        decode_video(Media("video", recording(), "a.webm"), limits=Limits(max_frames=4))


def test_a_header_that_announces_too_many_frames_is_refused():
    with pytest.raises(MediaError, match="must be 1 to 4"):
        decode_video(Media("video", mp4(8), "a.mp4"), limits=Limits(max_frames=4))


def test_sound_of_a_silent_video_is_refused():
    with pytest.raises(MediaError, match="holds no audio"):
        decode_audio(Media("audio", mp4(), "a.mp4"))


def test_pdf_page():
    import pypdfium2

    pdf, buffer = pypdfium2.PdfDocument.new(), io.BytesIO()
    pdf.new_page(72, 36)
    pdf.new_page(144, 72)
    pdf.save(buffer)
    assert decode_document(Media("document", buffer.getvalue(), "a.pdf")).shape == (3, 72, 144)
    assert decode_document(Media("document", buffer.getvalue(), "a.pdf", page=2)).shape == (3, 144, 288)
    with pytest.raises(MediaError, match="page 3 does not exist"):
        decode_document(Media("document", buffer.getvalue(), "a.pdf", page=3))
    with pytest.raises(MediaError, match="as a PDF"):
        decode_document(Media("document", buffer.getvalue()[:30], "a.pdf"))


def test_any_medium_by_its_modality():
    assert decode_media(Media("audio", flac(), "a.flac")).ndim == 1
    assert len(decode_media(Media("video", mp4(), "a.mp4")).seconds) == 4
    assert decode_media(Media("document", png(), "a.png")).shape == decode_media(Media("image", png(), "a.png")).shape


def test_an_odd_sample_rate_is_refused_before_its_filter_is_made():
    """44,101 Hz shares nothing with 16 kHz: its filter would take gigabytes."""
    odd = Media("audio", encode_audio(torch.zeros(4410), 44_101, "wav"), "odd.wav")
    with pytest.raises(MediaError, match="shares too little"):
        decode_media(odd)
    assert len(decode_media(Media("audio", encode_audio(torch.zeros(4410), 44_100, "wav"), "usual.wav"))) == 1600


def wav(channels: np.ndarray, rate: int = 16_000) -> bytes:
    """A PCM file of samples by time and channel."""
    kinds = {"u1": 1, "i2": 1, "i4": 1, "f4": 3}
    width, count = channels.dtype.itemsize, channels.shape[1]
    header = struct.pack("<HHIIHH", kinds[channels.dtype.str[1:]], count, rate, rate * width * count, width * count, 8 * width)
    data = channels.tobytes()
    whole = b"WAVEfmt " + struct.pack("<I", 16) + header + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(whole)) + whole


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
@pytest.mark.parametrize("size", [3000, BLOCK + 3000])
def test_channels_are_averaged_sample_by_sample(dtype, size):
    """Two tones, of which neither is the mean, and one is silent for a while."""
    time = np.arange(size)
    tones = np.stack([0.6 * np.sin(time * 0.05), 0.3 * np.sin(time * 0.31) * (time > 1000), 0.2 * np.cos(time * 0.11)], axis=1)
    scale, middle = {"uint8": (127, 128), "int16": (32_767, 0), "int32": (2**31 - 1, 0), "float32": (1, 0)}[dtype]
    coded = (np.round(tones * scale) + middle if scale > 1 else tones).astype(dtype)
    found = decode_audio(Media("audio", wav(coded), "a.wav"))
    assert torch.allclose(found, torch.from_numpy(tones.mean(axis=1)).float(), atol=0.01 if dtype == "uint8" else 1e-4)


def test_a_span_is_one_of_seconds_at_any_rate():
    wave = torch.arange(44_100) / 44_100 - 0.5
    media = Media("audio", encode_audio(wave, 44_100, "wav"), "a.wav", start=0.25, end=0.5)
    found = decode_audio(media)
    assert abs(len(found) - 4000) <= 1
    assert torch.allclose(found[200:3800], torch.arange(4200, 7800) / 16_000 - 0.5, atol=1e-3)


def test_a_sound_without_a_length_is_no_longer_than_the_limit():
    """Whatever end is asked for: its header says nothing, so it is stopped while it is decoded."""
    data = bytearray(encode_audio(torch.zeros(64_000), format="flac"))
    data[21] &= 0xF0  # FLAC's number of samples, 36 bits
    data[22:26] = bytes(4)
    limits = Limits(max_seconds=2.0)
    for end in (None, 1e6):
        with pytest.raises(MediaError, match="must be at most 2"):
            decode_audio(Media("audio", bytes(data), "a.flac", end=end), limits)
    assert len(decode_audio(Media("audio", bytes(data), "a.flac", end=1.0), limits)) == 16_000


def test_frames_that_are_resized_one_by_one_are_those_that_are_resized_together():
    """64 frames as large as the limits allow would take 12 GB at once."""
    media, asked = Media("video", mp4(16), "a.mp4"), []

    def half(count, height, width):
        asked.append((count, height, width))
        return height // 2, width // 2

    whole, small = decode_video(media), decode_video(media, size=half)
    assert set(asked) == {(len(whole.frames), *whole.frames.shape[2:])}
    assert torch.equal(small.frames, resize(whole.frames, (whole.frames.shape[2] // 2, whole.frames.shape[3] // 2)))
    assert small.seconds == whole.seconds


def test_a_sliver_of_a_video_is_refused():
    def size(count, height, width):
        raise ValueError("too thin")

    with pytest.raises(MediaError, match=r"video 'a\.mp4': too thin"):
        decode_video(Media("video", mp4(8), "a.mp4"), size=size)
