import io
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image

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
    video,
)
from lightning_conan.media.video import pick
from samples import flac, mp4, png


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


def test_exif_orientation_is_applied():
    image, buffer = Image.new("RGB", (20, 10)), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(buffer, "JPEG", exif=exif)
    assert decode_image(image_media(buffer.getvalue())).shape == (3, 20, 10)


@pytest.mark.parametrize("data", [b"", b"nonsense", png()[:50], png()[:-400], b"GIF89a" + bytes(30)])
def test_broken_image_names_file_and_reason(data):
    with pytest.raises(MediaError, match=r"image 'x\.png': "):
        decode_image(image_media(data, "x.png"))


def test_bomb_is_refused_from_its_header(monkeypatch):
    buffer = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(buffer, "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
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
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=48_000, options={"strict": "experimental"})
        stream.layout = "stereo"
        tone = (0.4 * np.sin(np.arange(48_000) * 0.05)).astype(np.float32)
        resampler = av.AudioResampler(format=stream.format, layout="stereo", rate=48_000, frame_size=stream.frame_size or 960)
        frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
        frame.rate = 48_000
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    wave = decode_audio(Media("audio", buffer.getvalue(), f"a.{container}"))
    assert abs(len(wave) / 16_000 - 1) < 0.2
    assert 0.2 < wave.abs().max() < 0.6


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


def movie(codec="libx264", frames=60, gop=10, b_frames=2):
    """Noise, with key frames now and then."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (frames, 48, 64, 3), dtype=np.uint8)
    with av.open(buffer, "w", format="webm" if codec == "libvpx" else "mp4") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size, stream.max_b_frames = 64, 48, "yuv420p", gop, b_frames
        for pixels in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


class Counting:
    """A container that counts the frames it decodes."""

    def __init__(self, container):
        self.container, self.decoded = container, 0

    def __getattr__(self, name):
        return getattr(self.container, name)

    def decode(self, stream):
        for frame in self.container.decode(stream):
            self.decoded += 1
            yield frame


@pytest.mark.parametrize(
    ("codec", "gop", "b_frames"), [("libx264", 10, 2), ("libx264", 10, 0), ("mpeg4", 12, 2), ("libvpx", 10, 0)]
)
def test_jumping_finds_the_frames_that_scanning_finds(codec, gop, b_frames, monkeypatch):
    monkeypatch.setattr(video, "SPARSE", 0)
    data = movie(codec, 60, gop, b_frames)
    with av.open(io.BytesIO(data)) as container:
        scanned = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for wanted in ([0], [59], [7, 8, 9, 31], [12, 40, 41, 58], list(range(60)), [19, 20, 21]):
        with av.open(io.BytesIO(data)) as container:
            counting = Counting(container)
            found = dict(pick(counting, container.streams.video[0], set(wanted)))
        assert sorted(found) == wanted
        assert all(np.array_equal(found[index].permute(1, 2, 0).numpy(), scanned[index]) for index in wanted)
        if codec != "libvpx":  # its header does not count frames, so it is scanned
            assert counting.decoded <= gop * len({index // gop for index in wanted}) + 4


class Odd:
    """Ten packets, of which the fifth holds a frame that is never shown: times are no guide."""

    def __init__(self):
        self.start = 0

    def demux(self, stream):
        return [SimpleNamespace(pts=n, size=1, is_keyframe=n == 0, is_discard=False) for n in range(10)]

    def seek(self, time, stream=None):
        self.start = time

    def decode(self, stream):
        shown = [n for n in range(10) if n != 4]
        return (
            SimpleNamespace(pts=n, to_ndarray=lambda n=n, **_: np.full((1, 1, 3), n, np.uint8)) for n in shown if n >= self.start
        )


def test_frames_are_counted_where_their_times_are_no_guide(monkeypatch):
    monkeypatch.setattr(video, "SPARSE", 0)
    found = dict(pick(Odd(), SimpleNamespace(frames=10), {4, 7}))
    assert {index: int(pixels[0]) for index, pixels in found.items()} == {4: 5, 7: 8}


def test_a_span_of_a_video():
    clip = decode_video(Media("video", mp4(16), "a.mp4", start=1.0, end=3.0))
    assert 1.0 <= clip.seconds[0] <= clip.seconds[-1] < 3.0
    with pytest.raises(MediaError, match="no frames between"):
        decode_video(Media("video", mp4(8), "a.mp4", start=60.0))


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.8])
def test_truncated_video_is_refused(keep):
    data = mp4(16)
    cut = data[: int(keep * len(data)) if keep < 1 else keep]
    with pytest.raises(MediaError, match=r"video 'x\.mp4': "):
        decode_video(Media("video", cut, "x.mp4"))


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
