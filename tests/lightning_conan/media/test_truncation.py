"""Audio files that are whole, cut, streamed, or of unknown length, held against the ffmpeg executable."""

import contextlib
import io
import subprocess
import time

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from imageio_ffmpeg import get_ffmpeg_exe
from torchaudio.functional import resample

from lightning_conan.items import Media
from lightning_conan.media import Limits, MediaError, audio, decode_audio
from lightning_conan.media.truncation import SAMPLES_OF_W64, check_whole, count_header
from samples import flac

RATE = 16_000
SECONDS = 3
FORMS = {
    "riff.wav": "",
    "float.wav": "-c:a pcm_f32le",
    "adpcm.wav": "-c:a adpcm_ms",
    "rf64.wav": "-rf64 always",
    "a.w64": "",
    "a.aiff": "",
    "a.aifc": "-f aiff -c:a pcm_mulaw",
    "pcm.caf": "-c:a pcm_s16be",
    "alac.caf": "-c:a alac",
    "a.au": "",
    "a.wv": "",
    "a.tta": "",
    "a.flac": "",
    "cbr.mp3": "-b:a 64k",
    "vbr.mp3": "-q:a 4",
    "plain.mp3": "-q:a 4 -id3v2_version 0",
    "stereo.mp3": "-b:a 128k -ar 44100 -ac 2",
    "flac.mka": "-c:a flac",
    "pcm.mka": "-c:a pcm_s16le",
    "opus.webm": "-c:a libopus",
    "last.m4a": "-c:a aac",
    "first.m4a": "-c:a aac -movflags +faststart",
    "alac.m4a": "-c:a alac -movflags +faststart",
    "fragments.m4a": "-c:a aac -movflags +frag_keyframe+empty_moov -frag_duration 1000000",
    "pcm.mov": "-c:a pcm_s16le -movflags +faststart",
    "a.wma": "-c:a wmav2",
    "pcm.avi": "-c:a pcm_s16le",
    "vorbis.ogg": "-c:a libvorbis",
    "a.opus": "-c:a libopus",
    "flac.ogg": "-c:a flac",
}
"""Files whose sizes, counts or pages say how much there should be, and ffmpeg's options for them."""
STREAMS = {
    "riff.wav": "-f wav",
    "a.au": "-f au",
    "pcm.caf": "-f caf -c:a pcm_s16be",
    "a.wv": "-f wv",
    "a.flac": "-f flac",
    "a.mp3": "-f mp3",
    "a.aac": "-f adts",
    "flac.mka": "-f matroska -c:a flac",
    "opus.webm": "-f webm -c:a libopus",
    "live.webm": "-f webm -live 1 -c:a libopus",
    "a.m4a": "-f mp4 -c:a aac -movflags +frag_keyframe+empty_moov",
    "vorbis.ogg": "-f ogg -c:a libvorbis",
    "a.opus": "-f opus",
    "a.wma": "-f asf -c:a wmav2",
    "pcm.avi": "-f avi -c:a pcm_s16le",
    "a.ts": "-f mpegts -c:a mp2",
    "a.nut": "-f nut -c:a pcm_s16le",
}
"""A stream without seeking, so that sizes stay unknown, and ffmpeg's options for it."""


def ffmpeg(*options: object, given: bytes = b"") -> bytes:
    command = [get_ffmpeg_exe(), "-v", "error", "-nostdin" if not given else "-y", "-threads", "1", *map(str, options)]
    return subprocess.run(command, input=given, capture_output=True, check=True).stdout


def by_ffmpeg(data: bytes, folder) -> torch.Tensor:
    """The slow reference: the executable's own decoding, at the file's own rate."""
    path = folder / "reference"
    path.write_bytes(data)
    with av.open(str(path)) as container:
        rate, channels = container.streams.audio[0].rate, container.streams.audio[0].channels
    found = np.frombuffer(ffmpeg("-i", path, "-map", "0:a:0", "-f", "f32le", "-"), dtype="<f4").reshape(-1, channels)
    return resample(torch.from_numpy(found.mean(axis=1)), rate, RATE)


def assert_alike(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """To the sample, but for what fills up the last frame: not all versions of FFmpeg trim it."""
    count = min(len(found), len(wanted))
    assert max(len(found), len(wanted)) - count <= 1024
    assert float((found[:count] - wanted[:count]).abs().max()) < 1e-5


@pytest.fixture(scope="module")
def sound() -> bytes:
    """Seconds of a tone in noise, 16 bits."""
    time = np.arange(SECONDS * RATE) / RATE
    wave = 0.3 * np.sin(2 * np.pi * 300 * time) + np.random.default_rng(0).normal(0, 0.05, len(time))
    return (wave * 32767).astype("<i2").tobytes()


RAW = ("-f", "s16le", "-ar", RATE, "-ac", 1, "-i", "pipe:0")


class Files(dict[str, bytes]):
    """Files by name, which hypothesis need not print."""

    def __repr__(self) -> str:
        return "files"


@pytest.fixture(scope="module")
def files(sound, tmp_path_factory) -> Files:
    """Each form, written to a file that could be gone back in."""
    folder = tmp_path_factory.mktemp("forms")
    outputs = [part for name, options in FORMS.items() for part in (*options.split(), folder / name)]
    ffmpeg(*RAW, *outputs, given=sound)
    return Files({name: (folder / name).read_bytes() for name in FORMS})


def media(data: bytes, name: str, **part: float) -> Media:
    return Media("audio", data, name, **part)


@pytest.mark.parametrize("name", FORMS)
def test_whole_files_are_read_to_their_end(name, files, tmp_path):
    data = files[name]
    found, wanted = decode_audio(media(data, name)), by_ffmpeg(data, tmp_path)
    assert_alike(found, wanted)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", FORMS)
def test_cut_files_are_refused(name, share, files):
    with pytest.raises(MediaError):
        decode_audio(media(files[name][: int(share * len(files[name]))], name))


PLAIN = ["riff.wav", "rf64.wav", "a.w64", "a.aiff", "a.aifc", "pcm.caf", "a.au", "a.flac", "a.wv", "a.tta", "flac.mka", "pcm.mov"]


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=20)
@given(kept=st.floats(0.01, 0.99))  # behind its samples a file may have tags
def test_a_cut_is_noticed_wherever_it_is(name, kept, files):
    with pytest.raises(MediaError):
        decode_audio(media(files[name][: int(kept * len(files[name]))], name))


@pytest.mark.parametrize("name", STREAMS)
def test_streams_whose_headers_know_no_size_are_read_to_their_end(name, sound, tmp_path):
    data = ffmpeg(*RAW, *STREAMS[name].split(), "pipe:1", given=sound)
    found, wanted = decode_audio(media(data, name)), by_ffmpeg(data, tmp_path)
    assert len(wanted) > 0.9 * SECONDS * RATE
    assert_alike(found, wanted)


@pytest.fixture(scope="module")
def joined() -> dict[str, tuple[bytes, bytes]]:
    """Two seconds of silence at a low bit rate and two of noise at a high one, in formats whose files can be joined."""
    silence, noise = bytes(4 * 44_100), np.random.default_rng(0).integers(-9000, 9000, 2 * 44_100, dtype="<i2").tobytes()
    raw = ("-f", "s16le", "-ar", 44_100, "-ac", 1, "-i", "pipe:0")
    found = {}
    codecs = {"mp3": "-c:a libmp3lame -reservoir 0 -write_xing 0 -id3v2_version 0 -f mp3", "aac": "-c:a aac -f adts"}
    for name, codec in codecs.items():
        quiet = ffmpeg(*raw, *codec.split(), "-b:a", "32k", "pipe:1", given=silence)
        found[name] = quiet, ffmpeg(*raw, *codec.split(), "-b:a", "320k", "pipe:1", given=noise)
    return found


def guess(data: bytes) -> float:
    with av.open(io.BytesIO(data)) as container:
        return container.duration / av.time_base


@pytest.mark.parametrize("name", ["mp3", "aac"])
def test_a_guessed_length_refuses_nothing(name, joined, tmp_path):
    """FFmpeg takes the first frames' bit rate for the whole file's."""
    quiet, loud = joined[name]
    data = quiet + 4 * loud
    wanted = by_ffmpeg(data, tmp_path)
    assert guess(data) > 2 * len(wanted) / RATE
    found = decode_audio(media(data, f"a.{name}"), Limits(max_seconds=12.0))
    assert abs(len(found) - len(wanted)) <= RATE / 10
    with pytest.raises(MediaError, match="s long, must be at most 8"):
        decode_audio(media(data, f"a.{name}"), Limits(max_seconds=8.0))


@pytest.mark.parametrize("name", ["mp3", "aac"])
def test_a_guess_that_is_too_low_lets_nothing_pass(name, joined):
    """Loud first: the guess is below the limit, the file is not."""
    quiet, loud = joined[name]
    data = loud + 9 * quiet
    assert guess(data) < 15
    with pytest.raises(MediaError, match="s long, must be at most 15"):
        decode_audio(media(data, f"a.{name}"), Limits(max_seconds=15.0))


@pytest.mark.parametrize("name", ["mp3", "aac"])
def test_what_is_too_long_is_refused_before_any_is_decoded(name, joined, monkeypatch):
    monkeypatch.setattr(audio, "collect", lambda *_: pytest.fail("decoded"))
    with pytest.raises(MediaError, match=r"s long, must be at most 60"):
        decode_audio(media(40 * joined[name][0], f"a.{name}"), Limits(max_seconds=60.0))


def test_a_header_that_claims_hours_for_a_second_is_of_a_cut_file(files):
    """And not of a long one: its packets are few."""
    data = bytearray(flac(1.0))
    data[21:26] = (int.from_bytes(data[21:26], "big") & ~(2**36 - 1) | 16_000 * 36_000).to_bytes(5, "big")
    with pytest.raises(MediaError, match="is cut: its header says 576000000 samples, 16000 are there"):
        decode_audio(media(bytes(data), "a.flac"))


SIZES = {"riff.wav": (b"data", 4, 4, "little"), "a.aiff": (b"SSND", 4, 4, "big"), "a.au": (b".snd", 8, 4, "big")}
SIZES |= {"a.w64": (SAMPLES_OF_W64, 16, 8, "little"), "pcm.caf": (b"data", 4, 8, "big")}
"""Place of the samples' size in a format: behind a mark by so many bytes, so many bytes of it."""


@pytest.mark.parametrize("name", SIZES)
@settings(max_examples=15)
@given(less=st.one_of(st.just(1), st.integers(1, 4000)), narrow=st.sampled_from([0x7F000000, 2**31, 2**32]))
def test_sizes_that_stand_for_an_unknown_one(name, less, narrow, files):
    """arecord, SoX, mplayer, espeak and FFmpeg write one each, less the header or rounded to a block."""
    mark, behind, width, order = SIZES[name]
    data = bytearray(files[name])
    place = data.find(mark) + behind
    size = (narrow if width == 4 else 2**64 if narrow == 2**32 else 2**63) - less
    data[place : place + width] = size.to_bytes(width, order)
    check_whole(media(bytes(data), name), bytes(data))
    exact = less == 1 and narrow == 2**32 and name != "a.w64"
    if exact or name in ("riff.wav", "a.aiff"):  # FFmpeg itself reads the others' -1 alone
        assert len(decode_audio(media(bytes(data), name))) == SECONDS * RATE


@pytest.mark.parametrize(("name", "lost"), [("a.flac", 1), ("a.wv", 1), ("a.tta", 1), ("vbr.mp3", 3)])
def test_a_cut_between_two_frames_is_noticed(name, lost, files):
    """If every frame that is there decodes, only the header's count tells: of MP3 but for what encoders add."""
    with av.open(io.BytesIO(files[name])) as container:
        places = [packet.pos for packet in container.demux(audio=0) if packet.size]
    with pytest.raises(MediaError, match=r"is cut: its header says \d+ samples, \d+ are there"):
        decode_audio(media(files[name][: places[-lost]], name))


def test_chunks_of_odd_length_are_padded(files):
    """As RIFF says; what follows them would not be found."""
    data = files["riff.wav"]
    odd = data[:12] + b"odd " + (3).to_bytes(4, "little") + b"abc\0" + data[12:]
    assert torch.equal(decode_audio(media(odd, "a.wav")), decode_audio(media(data, "a.wav")))
    with pytest.raises(MediaError, match="is cut"):
        decode_audio(media(odd[:50_000], "a.wav"))


def test_a_part_before_the_cut_is_read(files):
    """The part that is asked for is there; only a chunk's size is held against the file before anything is read."""
    data = files["a.flac"]
    assert len(decode_audio(media(data[: len(data) // 2], "a.flac", end=0.5))) == RATE // 2
    with pytest.raises(MediaError):
        decode_audio(media(data[: len(data) // 2], "a.flac", start=0.1, end=2.9))
    with pytest.raises(MediaError, match="is cut"):
        decode_audio(media(files["riff.wav"][:60_000], "a.wav", end=0.5))


BEGINNINGS = [
    b"RIFF....WAVE", b"RF64....WAVE", b"RIFF....AVI ", b"FORM....AIFF", b"riff" + bytes(36), b"caff\0\1\0\0", b".snd",
    b"\x30\x26\xb2\x75", b"....ftyp", b"OggS", b"\x1a\x45\xdf\xa3", b"fLaC", b"ID3", b"wvpk", b"TTA1",
]  # fmt: skip
"""One file of each format whose sizes are read."""


@given(begin=st.sampled_from(BEGINNINGS), rest=st.binary(max_size=100))
@settings(max_examples=300)
def test_headers_of_nonsense_end_in_words(begin, rest):
    with contextlib.suppress(MediaError):
        check_whole(media(begin + rest, "a"), begin + rest)
    assert len(count_header(begin + rest)) <= 192


def test_a_million_empty_chunks_are_not_looked_at():
    """A file of nothing but headers takes no longer than its first ones."""
    data = b"RIFF....WAVE" + bytes(2**24)
    start = time.process_time()
    check_whole(media(data, "a.wav"), data)
    assert time.process_time() - start < 5
