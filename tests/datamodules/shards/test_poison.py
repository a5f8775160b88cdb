"""Every row of docs/broken-samples.md."""

import io
import json
import re
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from pages import filled_form
from PIL import Image

from datamodules.loading.plan import Slot
from datamodules.loading.stream import Encoder
from datamodules.shards.read import ShardSet
from datamodules.shards.write import write_shards
from datamodules.sources.manifest import Fault, read_manifest
from lightning_conan.items import Item, Media, Pair
from samples import call, flac, mp4, png, recording

TABLE = Path(__file__).parents[3] / "docs" / "broken-samples.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TABLE.read_text().splitlines()
    if re.search(r"\| (handled|skipped) \|", line)
]


def wav(samples, rate=16_000, kind="<i2", claim=None):
    """A WAV file of (samples, channels); ``claim`` is the number of bytes that its header promises."""
    data = np.asarray(samples).astype(kind)
    width = data.dtype.itemsize
    code, channels, body = 3 if data.dtype.kind == "f" else 1, data.shape[1], data.tobytes()
    header = struct.pack("<HHIIHH", code, channels, rate, rate * channels * width, channels * width, 8 * width)
    size = len(body) if claim is None else claim
    parts = [b"RIFF", struct.pack("<I", (36 + size) % 2**32), b"WAVEfmt ", struct.pack("<I", 16), header, b"data"]
    return b"".join([*parts, struct.pack("<I", size), body])


def sound(format, codec, bit_rates=(0,), **options):
    """An audio file of a tone, a second for each bit rate, which some formats may change as they like."""
    parts = b""
    for bit_rate in bit_rates:
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=format, options=options) as container:
            stream = container.add_stream(codec, rate=16_000, layout="mono")
            if bit_rate:
                stream.bit_rate = bit_rate
            wave = np.sin(np.arange(16_000) / 10) * 9000
            frame = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], format="s16", layout="mono")
            frame.rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
            resampler = av.AudioResampler(stream.format, "mono", 16_000, stream.codec_context.frame_size or 1024)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(stream.encode(part))
            container.mux(stream.encode(None))
        parts += buffer.getvalue()
    return parts


def half(data):
    return data[: len(data) // 2]


def whole_frames(data):
    """A file's first half, up to a frame's end: what is left decodes without an error."""
    with av.open(io.BytesIO(data)) as container:
        places = [packet.pos for packet in container.demux(audio=0) if packet.size]
    return data[: places[len(places) // 2]]


def picture(mode, format, size=(40, 32), **options):
    """An image file of a mode."""
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format, **options)
    return buffer.getvalue()


def bomb(side):
    """A PNG of side x side black pixels of one bit, made a row at a time."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pack = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    body = b"".join(pack.compress(row) for _ in range(side)) + pack.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def animated(format="WEBP"):
    frames = [Image.new("RGB", (40, 32), color) for color in ("red", "green")]
    buffer = io.BytesIO()
    frames[0].save(buffer, format, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def empty_mp4():
    """A container with a video stream and no frame."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.mux(stream.encode(None))
    return buffer.getvalue()


def film(format, codec="libx264", still=False):
    """Twenty frames of noise, two seconds."""
    buffer, generator = io.BytesIO(), np.random.default_rng(0)
    with av.open(buffer, "w", format=format) as container:
        first = container.add_stream("mjpeg", rate=10) if still else None
        stream = container.add_stream(codec, rate=10, options={"g": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if first:
            first.width, first.height, first.pix_fmt = 64, 48, "yuvj420p"
            container.mux(first.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
            container.mux(first.encode(None))
        for _ in range(20):
            pixels = generator.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def late():
    """A Matroska file of two tracks, of which each begins alone: pictures at 1 s, a sound at 2 s, another one at 0 s."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sounds = [container.add_stream("pcm_s16le", rate=16_000, layout=layout) for layout in ("stereo", "mono")]
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        frame.pts, frame.time_base = 1000, Fraction(1, 1000)
        packets = [*stream.encode(frame), *stream.encode(None)]
        for sound, begin in zip(sounds, (2, 0), strict=True):
            channels = 1 + (sound.layout.name == "stereo")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600 * channels), np.int16), format="s16", layout=sound.layout.name)
            frame.rate, frame.pts, frame.time_base = 16_000, begin * 16_000, Fraction(1, 16_000)
            packets += [*sound.encode(frame), *sound.encode(None)]
        container.mux(sorted(packets, key=lambda packet: packet.pts * packet.time_base))
    return buffer.getvalue()


def pdf():
    buffer = io.BytesIO()
    Image.new("RGB", (100, 80)).save(buffer, "PDF")
    return buffer.getvalue()


RATES = (8000, 64_000, 32_000)
TONE = (np.sin(np.arange(8000) / 10)[:, None] * 9000).astype(np.int16)
POISON = {
    "cut PNG": lambda: Media("image", png()[:-400], "a.png"),
    "text file called .png": lambda: Media("image", b"hello", "a.png"),
    "PNG of 20,000 x 20,000 pixels in 50 kB": lambda: Media("image", bomb(20_000), "a.png"),
    "PNG of 1 x 100,000 pixels": lambda: Media("image", picture("L", "PNG", (1, 100_000)), "a.png"),
    "CMYK JPEG": lambda: Media("image", picture("CMYK", "JPEG"), "a.jpg"),
    "16-bit PNG": lambda: Media("image", picture("I;16", "PNG"), "a.png"),
    "palette PNG with transparency": lambda: Media("image", picture("P", "PNG", transparency=0), "a.png"),
    "PNG with alpha": lambda: Media("image", picture("RGBA", "PNG"), "a.png"),
    "animated GIF": lambda: Media("image", animated("GIF"), "a.gif"),
    "animated WebP": lambda: Media("image", animated(), "a.webp"),
    "image of 1 x 1 pixel": lambda: Media("image", picture("RGB", "PNG", (1, 1)), "a.png"),
    "stereo WAV": lambda: Media("audio", wav(TONE.repeat(2, 1)), "a.wav"),
    "WAV of six channels": lambda: Media("audio", wav(TONE.repeat(6, 1)), "a.wav"),
    "WAV at 8 kHz": lambda: Media("audio", wav(TONE, 8000), "a.wav"),
    "WAV of 8 bits": lambda: Media("audio", wav(TONE // 256 + 128, kind="u1"), "a.wav"),
    "WAV with NaN in it": lambda: Media("audio", wav([[0.1], [float("nan")]] * 4000, kind="<f4"), "a.wav"),
    "WAV without samples": lambda: Media("audio", wav(np.zeros((0, 1))), "a.wav"),
    "WAV whose header says 10 hours": lambda: Media("audio", wav(TONE, claim=36_000 * 32_000), "a.wav"),
    "WAV cut in the middle": lambda: Media("audio", wav(TONE)[:8000], "a.wav"),
    "WAV that was streamed, its size unknown": lambda: Media("audio", wav(TONE, claim=0xFFFFFFFF - 36), "a.wav"),
    "RF64 cut in the middle": lambda: Media("audio", half(sound("wav", "pcm_s16le", rf64="always")), "a.wav"),
    "AIFF cut in the middle": lambda: Media("audio", half(sound("aiff", "pcm_s16be")), "a.aiff"),
    "FLAC cut between two frames": lambda: Media("audio", whole_frames(sound("flac", "flac")), "a.flac"),
    "MP3 with an Info header, cut in the middle": lambda: Media("audio", half(sound("mp3", "libmp3lame")), "a.mp3"),
    "Opus in Ogg, cut in the middle": lambda: Media("audio", half(sound("ogg", "libopus")), "a.ogg"),
    "FLAC in Matroska, cut in the middle": lambda: Media("audio", half(sound("matroska", "flac")), "a.mka"),
    "MP3 of varying bit rate without a header": lambda: Media(
        "audio", sound("mp3", "libmp3lame", RATES, write_xing="0", id3v2_version="0"), "a.mp3"
    ),
    "FLAC whose rate changes in the middle": lambda: Media("audio", flac(1.0) + flac(1.0, 8000), "a.flac"),
    "MP4 cut in the middle": lambda: Media("video", mp4()[: len(mp4()) // 2], "a.mp4"),
    "WebM that does not tell how long it is": lambda: Media("video", recording(), "a.webm"),
    "video whose frames change their size": lambda: Media("video", call(64, 128), "a.ts"),
    "MPEG-TS that begins between key frames": lambda: Media("video", film("mpegts")[188 * 20 :], "a.ts"),
    "ASF that names no rate": lambda: Media("video", film("asf", "mpeg4"), "a.wmv"),
    "raw H.264, without times": lambda: Media("video", film("h264"), "a.h264"),
    "video whose first track is a still": lambda: Media("video", film("matroska", still=True), "a.mkv"),
    "part of a video before its first frame": lambda: Media("video", late(), "a.mkv", start=0.2, end=0.8),
    "part of an audio clip before its first sample": lambda: Media("audio", late(), "a.mkv", start=0.2, end=0.8),
    "MP4 without frames": lambda: Media("video", empty_mp4(), "a.mp4"),
    "MP4 without sound, asked for its sound": lambda: Media("audio", mp4(), "a.mp4"),
    "PDF of nonsense": lambda: Media("document", b"%PDF-1.7 nonsense", "a.pdf"),
    "page 9 of a PDF of one page": lambda: Media("document", pdf(), "a.pdf", page=9),
    "PDF form that is filled in": lambda: Media("document", filled_form(), "a.pdf"),
    "PDF page in units of 10 points": lambda: Media("document", filled_form(more=b"/UserUnit 10"), "a.pdf"),
    "text with null bytes": lambda: "a\x00b",
    "text of 200,000 characters": lambda: "word " * 40_000,
}


def test_the_table_is_whole():
    assert [row[0] for row in ROWS] == list(POISON)


@pytest.mark.parametrize(("name", "outcome", "reason"), ROWS, ids=[row[0] for row in ROWS])
def test_a_poisoned_sample(tmp_path, processor, name, outcome, reason):
    part = POISON[name]()
    kind = "text" if isinstance(part, str) else part.modality
    good = Item((Media("audio", flac(), "good.flac"),))
    pairs = [Pair("bad", "t", kind, Item((part,)), Item(("words",))), Pair("good", "t", kind, good, Item(("other words",)))]
    write_shards(pairs, tmp_path / "set")
    batch = Encoder({"set": ShardSet(tmp_path / "set")}, processor)(Slot("set", (0, 1)))
    assert "good" in batch.keys
    assert ("bad" in batch.keys) == (outcome == "handled")
    if outcome == "skipped":
        (fault,) = map(json.loads, batch.faults)
        assert fault["key"] == "bad"
        assert reason in fault["reason"]


def test_a_manifest_in_another_encoding_is_listed_line_by_line(tmp_path):
    line = json.dumps({"key": "a", "task": "t", "modality": "text", "query": {"text": "x"}, "target": {"text": "y"}})
    (tmp_path / "m.jsonl").write_text(f"{line}\n{line}\n", encoding="utf-16")
    found = list(read_manifest(tmp_path / "m.jsonl"))
    assert found
    assert all(isinstance(entry, Fault) and "m.jsonl:" in entry.where for entry in found)


def test_half_a_character_is_left_out_when_packed(tmp_path):
    bad = {"key": "bad", "task": "t", "modality": "text", "query": {"text": "half \ud83d"}, "target": {"text": "a"}}
    good = bad | {"key": "good", "query": {"text": "whole \U0001f600"}}
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (bad, good)))
    write_shards(read_manifest(tmp_path / "m.jsonl"), tmp_path / "set")
    assert [sample.key for sample in ShardSet(tmp_path / "set").samples] == ["good"]
    assert ShardSet(tmp_path / "set").read(0).query.parts == ("whole \U0001f600",)
    fault = json.loads((tmp_path / "set" / "quarantine.jsonl").read_text())
    assert fault["key"] == "bad"
    assert "must be whole characters, got half of one" in fault["reason"]
    assert fault["where"].endswith("m.jsonl:1")


@pytest.mark.parametrize("name", ["pipe:cat /etc/passwd", "https://example.org/set"])
def test_a_url_is_no_packed_folder(name):
    with pytest.raises(ValueError, match=r"is not a packed data set|A URL must be text"):
        ShardSet(Path(name))
