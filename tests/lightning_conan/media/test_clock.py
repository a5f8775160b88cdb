"""One clock a file: the same seconds mean the same moment of pictures and sound."""

import wave
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffmpeg_oracle import ffmpeg, pictures, sound
from lightning_conan.items import Media
from lightning_conan.media import MediaError, decode_audio, decode_video
from lightning_conan.media.clock import BestGuess, SampleClock, continued
from samples import EVERY_FRAME

FLASH, SECONDS, FPS, HERTZ = 3.0, 4, 25, 48_000
FORMS = {
    "mp4": ("-c:v", "libx264", "-bf", "2", "-c:a", "aac"),
    "mov": ("-c:v", "mjpeg", "-c:a", "pcm_s16le"),
    "mkv": ("-c:v", "libx264", "-bf", "2", "-c:a", "flac"),
    "webm": ("-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-c:a", "libopus"),
    "ts": ("-c:v", "libx264", "-bf", "2", "-c:a", "mp2"),
    "mpg": ("-c:v", "mpeg2video", "-bf", "2", "-c:a", "mp2"),
    "flv": ("-c:v", "flv", "-c:a", "libmp3lame"),
    "asf": ("-c:v", "wmv2", "-c:a", "wmav2"),
    "nut": ("-c:v", "mpeg4", "-c:a", "pcm_s16le"),
}


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Makes a file in which 3 s after its beginning the pictures flash and the sound beeps, each from a second of its own on."""
    folder = tmp_path_factory.mktemp("films")

    def make(suffix, pictures_from=0.0, sound_from=0.0, *settings):
        path = folder / f"{pictures_from}-{sound_from}-{len(list(folder.iterdir()))}.{suffix}"
        times = pictures_from + np.arange(int((SECONDS - pictures_from) * FPS)) / FPS
        frames = np.where((times > FLASH - 0.01) & (times < FLASH + 0.19), 230, 20).astype(np.uint8)
        given = frames.repeat(64 * 48 * 3).tobytes()
        seconds = sound_from + np.arange(int((SECONDS - sound_from) * HERTZ)) / HERTZ
        beep = np.where((seconds >= FLASH) & (seconds < FLASH + 0.2), np.sin(2 * np.pi * 1000 * seconds), 0) * 16_000
        with wave.open(str(folder / "a.wav"), "wb") as file:
            file.setparams((1, 2, HERTZ, 0, "NONE", ""))
            file.writeframes(beep.astype("<i2").tobytes())
        shift = ("-vf", f"setpts=PTS+{pictures_from}/TB")  # -itsoffset does nothing to a raw stream
        ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48", "-r", FPS, "-i", "-",
               "-itsoffset", sound_from, "-i", folder / "a.wav", "-map", "0:v", "-map", "1:a",
               "-fps_mode", "passthrough", *shift, *FORMS[suffix], *settings,
               path, given=given)  # fmt: skip
        return path

    return make


def flash(seconds, frames):
    """When the pictures are bright for the first time."""
    return next(second for second, frame in zip(seconds, frames, strict=True) if np.asarray(frame, np.float32).mean() > 128)


def beep(samples):
    """When the sound is loud for the first time."""
    return float(np.flatnonzero(np.abs(np.asarray(samples)) > 0.2)[0]) / 16_000


def moments(path, start, end):
    """When a part flashes and beeps."""
    media = {kind: Media(kind, path, path.name, start, end) for kind in ("video", "audio")}
    clip = decode_video(media["video"], EVERY_FRAME)
    return flash(clip.seconds, clip.frames), beep(decode_audio(media["audio"]))


@pytest.mark.parametrize("begin", [{}, {"sound_from": 1.0}, {"pictures_from": 1.0}], ids=str)
@pytest.mark.parametrize("suffix", FORMS)
def test_a_part_means_the_same_moment_of_both_tracks(film, suffix, begin):
    if suffix == "asf" and "sound_from" in begin:
        pytest.skip("FFmpeg's own header announces a second too much")
    path = film(suffix, **begin)
    span = ("-ss", 2.5, "-to", 3.5)
    theirs = flash(*pictures(path, *span)), beep(sound(path, *span, filters="aresample=async=1:first_pts=0"))
    assert theirs == pytest.approx((0.5, 0.5), abs=0.06)
    assert moments(path, 2.5, 3.5) == pytest.approx(theirs, abs=0.055)
    assert moments(path, 0.5, 3.5) == pytest.approx((2.5, 2.5), abs=0.05)  # which both tracks need not fill


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "nut"])
def test_a_file_begins_where_its_first_track_does(film, suffix):
    path = film(suffix, 0.0, 1.0, "-output_ts_offset", 7)
    assert moments(path, 2.5, 3.5) == pytest.approx((0.5, 0.5), abs=0.05)


def test_before_a_track_begins_there_are_no_frames_and_there_is_silence(film):
    late_pictures, late_sound = film("mkv", 1.0, 0.0), film("mkv", 0.0, 1.0)
    clip = decode_video(Media("video", late_pictures, "a.mkv", 0.5, 1.5), EVERY_FRAME)
    assert clip.seconds == pytest.approx([0.5 + n / FPS for n in range(13)], abs=0.002)
    samples = decode_audio(Media("audio", late_sound, "a.mkv", 0.5, 3.5))
    assert len(samples) == 48_000
    for kind, path, decode in (("video", late_pictures, decode_video), ("audio", late_sound, decode_audio)):
        with pytest.raises(MediaError, match=r"no frames between|holds no samples"):
            decode(Media(kind, path, "a.mkv", 0.2, 0.8))


def test_whole_files_begin_with_their_own_track(film):
    """As upstream reads them: no silence before a late sound, no seconds before late pictures."""
    clip = decode_video(Media("video", film("mkv", 1.0, 0.0), "a.mkv"), EVERY_FRAME)
    assert clip.seconds[0] == 0
    assert flash(clip.seconds, clip.frames) == pytest.approx(2.0, abs=0.002)
    assert beep(decode_audio(Media("audio", film("mkv", 0.0, 1.0), "a.mkv"))) == pytest.approx(2.0, abs=0.002)


DROPPED = "noise=drop='gte(pts*tb,{0}+1)*lt(pts*tb,{0}+2)'"


@pytest.mark.parametrize(("suffix", "offset"), [("mp4", 0), ("mkv", 0), ("ts", 0), ("asf", 0), ("nut", 0)])
@pytest.mark.parametrize("track", ["v", "a"])
def test_a_gap_moves_nothing_that_follows(film, suffix, offset, track):
    """A second is missing from one track, as when packets were lost, or nobody spoke."""
    codec = ("-c:v", "mjpeg", "-bf", "0") if suffix in ("mkv", "mov", "mp4") else ("-g", "1", "-bf", "0")
    path = film(suffix, 0.0, 0.0, *codec, f"-bsf:{track}", DROPPED.format(offset))
    assert moments(path, 2.5, 3.5) == pytest.approx((0.5, 0.5), abs=0.05)
    assert moments(path, 0.5, 3.5) == pytest.approx((2.5, 2.5), abs=0.05)
    theirs = pictures(path)[0]
    clip = decode_video(Media("video", path, path.name, 0.5, 3.5), EVERY_FRAME)
    assert clip.seconds == pytest.approx([max(0.0, t - 0.5) for t, after in zip(theirs, [*theirs[1:], 9], strict=True)
                                          if after > 0.501 and t < 3.499], abs=0.021)  # fmt: skip


def test_silence_fills_a_gap_of_a_part_but_whole_files_keep_their_samples(film):
    path = film("mkv", 0.0, 0.0, "-bsf:a", DROPPED.format(0))
    samples = decode_audio(Media("audio", path, "a.mkv", 0.5, 3.5))
    assert len(samples) == 48_000
    assert len(decode_audio(Media("audio", path, "a.mkv"))) / 16_000 == pytest.approx(len(sound(path)) / 16_000, abs=0.001)


def test_spliced_broadcasts_go_on_where_they_were(film):
    """Two recordings in one file, whose times begin anew."""
    data = film("ts").read_bytes()
    spliced = Media("video", 2 * data, "a.ts")
    clip = decode_video(spliced, EVERY_FRAME)
    assert len(clip.seconds) == 2 * SECONDS * FPS
    assert clip.seconds == pytest.approx([n / FPS for n in range(2 * SECONDS * FPS)], abs=0.021)
    part = Media("video", 2 * data, "a.ts", 6.5, 7.5)
    clip = decode_video(part, EVERY_FRAME)
    assert flash(clip.seconds, clip.frames) == pytest.approx(0.5, abs=0.05)
    assert beep(decode_audio(Media("audio", 2 * data, "a.ts", 6.5, 7.5))) == pytest.approx(0.5, abs=0.1)


def test_a_jump_of_a_broadcast_is_no_gap(film):
    """The clock of a station may be set in mid-recording."""
    data = film("ts").read_bytes() + film("ts", 0.0, 0.0, "-output_ts_offset", 5000).read_bytes()
    clip = decode_video(Media("video", data, "a.ts"), EVERY_FRAME)
    assert clip.seconds == pytest.approx([n / FPS for n in range(2 * SECONDS * FPS)], abs=0.021)
    assert beep(decode_audio(Media("audio", data, "a.ts", 6.5, 7.5))) == pytest.approx(0.5, abs=0.1)


def test_priming_is_no_beginning(film):
    """FFmpeg lets an Opus track begin 7 ms before 0, where nothing is heard: frame 25 begins at 1 s all the same."""
    path = film("webm")
    clip = decode_video(Media("video", path, "a.webm", 1.0, 2.0), EVERY_FRAME)
    assert clip.seconds == pytest.approx([n / FPS for n in range(FPS)], abs=0.002)


@given(st.lists(st.integers(-3, 40), min_size=1, max_size=40), st.booleans())
def test_continued_seconds_ascend_and_keep_what_ascends(steps, discontinuous):
    times = np.cumsum(steps).tolist()
    found = continued([(float(time), 0.5) for time in times], discontinuous)
    assert all(before < after for before, after in pairwise(found))
    if all(step > 0 and (step <= 10 or not discontinuous) for step in steps[1:]):
        assert found == times


def test_frames_without_a_time_follow_the_one_before():
    assert continued([(None, 0.5), (None, 0.25), (2.0, 0.5), (None, 0.5)], False) == [0.0, 0.5, 2.0, 2.5]


@given(st.lists(st.integers(1, 5), min_size=2, max_size=50), st.integers(0, 3))
def test_samples_keep_to_their_times_where_these_ascend(gaps, late):
    """Frames of 100 samples at 1 kHz, with none or some missing between them."""
    clock, due, true = SampleClock(1000, 0.0, False), 0, 1000 * late
    for gap in gaps:
        place = clock.place(true / 1000, due)
        assert abs(place - true) <= 100  # what is filled is more than jitter
        due, true = place + 100, true + 100 * gap


def test_the_times_of_decoding_serve_where_those_of_showing_run_backwards():
    guess = BestGuess()
    assert [guess(pts, dts) for pts, dts in ((1, 2), (4, 3), (3, 4), (6, 5), (5, 6), (9, 7))] == [1, 4, 4, 5, 6, 7]
    guess = BestGuess()
    assert [guess(pts, dts) for pts, dts in ((None, None), (None, 3), (5, None), (6, 6))] == [None, 3, 5, 6]
