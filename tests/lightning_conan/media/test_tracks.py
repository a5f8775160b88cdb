"""Choice among several tracks."""

import numpy as np
import pytest

from ffmpeg_oracle import ffmpeg, pictures, sound
from lightning_conan.items import Media
from lightning_conan.media import MediaError, decode_audio, decode_video
from samples import flac, mp4, png


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A still, a small and a large movie, a cover, a mono and a stereo tone of another loudness."""
    folder = tmp_path_factory.mktemp("tracks")
    for name, side, shade, frames in (("still", 96, "red", 1), ("small", 32, "green", 12), ("large", 64, "blue", 12)):
        ffmpeg("-f", "lavfi", "-i", f"color={shade}:s={side}x{side}:r=4", "-frames:v", frames, "-c:v", "mpeg4",
               folder / f"{name}.mkv")  # fmt: skip
    for name, channels, volume in (("mono", 1, 0.2), ("stereo", 2, 0.6)):
        tone = f"aevalsrc={'|'.join(channels * [f'{volume}*sin(2000*t)'])}:s=16000:d=2"
        ffmpeg("-f", "lavfi", "-i", tone, "-c:a", "flac", folder / f"{name}.mka")
    (folder / "cover.png").write_bytes(png())
    return folder


TRACKS = {
    "a still before the movie, none by default": (["still", "large"], ["0", "0"], 64),
    "a still before the movie": (["still", "large"], ["0", "default"], 64),
    "a movie before a still": (["large", "still"], ["0", "0"], 64),
    "a small movie before a large one": (["small", "large"], ["0", "0"], 64),
    "a large movie before a small one": (["large", "small"], ["0", "0"], 64),
    "a small movie by default": (["large", "small"], ["0", "default"], 32),
    "both by default": (["small", "large"], ["default", "default"], 64),
    "one for the visually impaired": (["large", "small"], ["visual_impaired", "0"], 32),
}


def joined(folder, path, names, dispositions, kind):
    """A file of several tracks."""
    inputs = [option for name in names for option in ("-i", folder / f"{name}.mk{'v' if kind == 'v' else 'a'}")]
    maps = [option for number in range(len(names)) for option in ("-map", f"{number}:{kind}")]
    flags = [option for n, flag in enumerate(dispositions) for option in (f"-disposition:{kind}:{n}", flag)]
    ffmpeg(*inputs, *maps, "-c", "copy", *flags, path)
    return path


@pytest.mark.parametrize("name", TRACKS)
def test_the_movie_is_taken(folder, tmp_path, name):
    names, dispositions, side = TRACKS[name]
    path = joined(folder, tmp_path / "a.mkv", names, dispositions, "v")
    clip = decode_video(Media("video", path, "a.mkv"))
    assert clip.frames.shape[2:] == (side, side)
    assert len(clip.frames) > 1
    if "impaired" not in name and "still" not in name:  # where the program's own choice is that of av_find_best_stream
        assert pictures(path)[1].shape[1] == side


@pytest.mark.parametrize("suffix", ["mov", "mp4", "avi", "nut"])
def test_the_movie_is_taken_in_every_container(folder, tmp_path, suffix):
    path = joined(folder, tmp_path / f"a.{suffix}", ["still", "large"], ["0", "default"], "v")
    clip = decode_video(Media("video", path, path.name))
    assert clip.frames.shape[2:] == (64, 64)


@pytest.mark.parametrize(
    ("names", "dispositions", "loud"),
    [
        (["mono", "stereo"], ["0", "0"], 0.6),
        (["stereo", "mono"], ["0", "default"], 0.2),
        (["mono", "stereo"], ["default", "0"], 0.2),
        (["stereo", "mono"], ["hearing_impaired", "0"], 0.2),
        (["mono", "mono"], ["0", "0"], 0.2),
    ],
)
def test_the_sound_is_the_default_or_the_one_of_most_channels(folder, tmp_path, names, dispositions, loud):
    path = joined(folder, tmp_path / "a.mka", names, dispositions, "a")
    samples = decode_audio(Media("audio", path, "a.mka"))
    assert float(samples.abs().max()) == pytest.approx(loud, abs=0.02)
    if "hearing_impaired" not in dispositions:
        assert (np.abs(sound(path)).max() > 0.5) == (loud > 0.5)


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("first", [True, False])
def test_a_cover_is_no_video(folder, tmp_path, suffix, first):
    path, tracks = tmp_path / f"a.{suffix}", [folder / "cover.png", folder / "small.mkv"]
    given = [option for track in (tracks if first else tracks[::-1]) for option in ("-i", track)]
    ffmpeg(*given, "-map", "0", "-map", "1", "-c", "copy", f"-disposition:v:{0 if first else 1}", "attached_pic", path)
    assert decode_video(Media("video", path, path.name)).frames.shape[2:] == (32, 32)


@pytest.mark.parametrize("suffix", ["mp3", "flac", "m4a"])
def test_a_song_with_a_cover_is_a_sound_and_no_video(folder, tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    ffmpeg("-i", folder / "mono.mka", "-i", folder / "cover.png", "-map", "0", "-map", "1", "-c:v", "copy",
           "-disposition:v:0", "attached_pic", path)  # fmt: skip
    assert len(decode_audio(Media("audio", path, path.name))) == pytest.approx(32_000, abs=1200)
    with pytest.raises(MediaError, match="holds no video stream"):
        decode_video(Media("video", path, path.name))


def test_what_is_missing_is_named():
    with pytest.raises(MediaError, match="holds no audio stream"):
        decode_audio(Media("audio", mp4(), "a.mp4"))
    with pytest.raises(MediaError, match="holds no video stream"):
        decode_video(Media("video", flac(), "a.flac"))
