"""Videos as FFmpeg's own program reads them: frames, times, parts and orientations of every form that it writes."""

import struct
from itertools import product

import numpy as np
import pytest

from ffmpeg_oracle import ffmpeg, pictures
from lightning_conan.items import Media
from lightning_conan.media import MediaError, decode_video, video
from lightning_conan.media.sampling import Sampling
from lightning_conan.media.timeline import Timeline
from samples import EVERY_FRAME

FEW = Sampling(fps=1e-6, min_frames=3)
SIZE, COUNT, RATE = (64, 48), 24, 10
X264, X265 = ("-c:v", "libx264", "-g", "8", "-bf", "2"), "keyint=8:log-level=none:pools=none"
HEVC = ("-c:v", "libx265", "-x265-params", X265)
VP8, HIDDEN = ("-c:v", "libvpx", "-g", "8"), ("-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-g", "16")
VP9 = ("-c:v", "libvpx-vp9", "-g", "8", "-deadline", "realtime", "-cpu-used", "8")
AV1 = ("-c:v", "libsvtav1", "-preset", "12", "-g", "8", "-svtav1-params", "lp=1")
MPEG1, MPEG2, MPEG4 = (("-c:v", codec, "-bf", "2", "-g", "8") for codec in ("mpeg1video", "mpeg2video", "mpeg4"))
UNEVEN = ("-vf", "select='lt(n,10)+not(mod(n,3))'", "-fps_mode", "vfr")
DECODED = "decoded twice, since packets are no guide"
FORMS = {
    "mp4 h264": X264,
    "mp4 h264 open groups": (*X264, "-x264-params", "open-gop=1"),
    "mp4 h264 refreshed bit by bit": (*X264, "-x264-params", "intra-refresh=1:keyint=8"),
    "mp4 h264 interlaced": (*X264, "-flags", "+ildct+ilme"),
    "mp4 h264 fragmented": (*X264, "-movflags", "frag_keyframe+empty_moov"),
    "mp4 h264 uneven": (*X264, *UNEVEN),
    "mp4 hevc": HEVC,
    "mp4 hevc open groups": (*HEVC[:-1], f"{X265}:open-gop=1:scenecut=0"),
    "mp4 hevc in layers": (*HEVC[:-1], f"{X265}:temporal-layers=4:bframes=7"),
    "mp4 av1": AV1,
    "mp4 av1 by aom": ("-c:v", "libaom-av1", "-cpu-used", "8", "-g", "8"),
    "mp4 vp9": VP9,
    "mp4 vp9 hidden frames": ("-c:v", "libvpx-vp9", "-g", "16", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-cpu-used", "5"),
    "mp4 mpeg4": MPEG4,
    "mp4 mpeg2": MPEG2,
    "mov prores": ("-c:v", "prores_ks"),
    "mov qtrle": ("-c:v", "qtrle"),
    "mov svq1": ("-c:v", "svq1", "-g", "8"),
    "mov mjpeg": ("-c:v", "mjpeg"),
    "mkv h264 uneven": (*X264, *UNEVEN),
    "mkv av1": AV1,
    "mkv ffv1": ("-c:v", "ffv1", "-g", "8"),
    "mkv theora": ("-c:v", "libtheora", "-g", "8"),
    "mkv msmpeg4": ("-c:v", "msmpeg4v3", "-g", "8"),
    "mkv snow": ("-c:v", "snow", "-strict", "-2", "-g", "8"),
    "webm vp8": VP8,
    "webm vp8 hidden frames": HIDDEN,
    "webm vp9 without a length": (*VP9, "-live", "1"),
    "webm av1": AV1,
    "avi h264": (*X264, DECODED),
    "avi h264 in order": (*X264, "-bf", "0"),
    "avi mpeg4": (*MPEG4[:2], "-g", "8"),
    "avi mpeg4 reordered": (*MPEG4, DECODED),
    "avi mpeg4 packed": ("-c:v", "libxvid", "-bf", "2", "-g", "8", DECODED),
    "avi mpeg4 uneven": (*MPEG4[:2], "-g", "8", *UNEVEN),
    "avi cinepak": ("-c:v", "cinepak"),
    "avi zmbv": ("-c:v", "zmbv", "-g", "8"),
    "asf wmv2": ("-c:v", "wmv2", "-g", "8"),
    "asf wmv2 uneven": ("-c:v", "wmv2", "-g", "8", *UNEVEN),
    "asf mpeg4": (*MPEG4, DECODED),
    "flv flv1": ("-c:v", "flv", "-g", "8"),
    "flv h264": X264,
    "ts h264": X264,
    "ts h264 uneven": (*X264, *UNEVEN),
    "ts hevc": HEVC,
    "ts mpeg2": MPEG2,
    "ts mpeg4": MPEG4,
    "mpg mpeg2": MPEG2,
    "mpg hevc": (*HEVC, DECODED),
    "ogv theora": ("-c:v", "libtheora", "-g", "8"),
    "nut mpeg4": MPEG4,
    "nut h264": X264,
    "3gp h263": ("-c:v", "h263", "-g", "8", "-s", "128x96"),
    "rm rv20": ("-c:v", "rv20", "-g", "8"),
    "gif gif": (),
    "apng apng": ("-f", "apng"),
    "ivf vp9": VP9,
    "ivf av1": AV1,
    "y4m raw": ("-pix_fmt", "yuv420p"),
    "h264 raw": (*X264, DECODED),
    "hevc raw": (*HEVC, DECODED),
    "m1v raw": (*MPEG1, "-r", "25", DECODED),
    "m2v raw": (*MPEG2, DECODED),
    "m4v raw": MPEG4,
    "mjpeg raw": ("-c:v", "mjpeg", DECODED),
    "obu raw": (*AV1, DECODED),
    "vvc raw": ("-c:v", "libvvenc", "-preset", "faster", "-pix_fmt", "yuv420p10le", DECODED),
}


def numbered(count=COUNT, size=SIZE):
    """Frames, each brighter than the last, with a red bar that moves to the right and a black corner above on the left."""
    width, height = size
    frames = np.empty((count, height, width, 3), np.uint8)
    for number in range(count):
        frames[number] = 30 + 200 * number // count
        place = number * width // count // 2 * 2
        frames[number, :, place : place + 4] = [255, 40, 40]
        frames[number, : height // 3, : width // 8] = 0
    return frames


def made(path, *settings, count=COUNT):
    """A file of numbered frames, ten a second."""
    given = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "{}x{}".format(*SIZE), "-r", RATE, "-i", "-")
    ffmpeg(*given, *settings, "-fflags", "+bitexact", path, given=numbered(count).tobytes())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


def assert_same(clip, pixels, due):
    """Compares frames with those of the program, by their numbers."""
    found = clip.frames.permute(0, 2, 3, 1).numpy().astype(int)
    assert found.shape == (len(due), *pixels.shape[1:])
    away = [np.abs(frame - pixels[number].astype(int)).mean() for frame, number in zip(found, due, strict=True)]
    assert max(away) < 3, due  # one frame before or after is 8 away; versions of FFmpeg round colours differently


def on_screen(seconds, start, end):
    """Numbers of the frames that are shown in a part."""
    ends = [*seconds[1:], float("inf")]
    return [n for n, second in enumerate(seconds) if second < end - 1e-4 and ends[n] > start + 1e-4]


@pytest.mark.parametrize("form", FORMS)
def test_frames_and_times_are_those_of_ffmpeg(folder, form, monkeypatch):
    """Whole videos and parts, all frames and a few, with and without seeking to key frames."""
    settings, twice = [entry for entry in FORMS[form] if entry is not DECODED], []
    path = made(folder / f"{form.replace(' ', '_')}.{form.split()[0]}", *settings)
    seconds, pixels = pictures(path)
    monkeypatch.setattr(Timeline, "decoded", lambda *given, decoded=Timeline.decoded: twice.append(1) or decoded(*given))
    data = path.read_bytes()
    clip = decode_video(Media("video", data, path.name), EVERY_FRAME)
    assert_same(clip, pixels, range(len(seconds)))
    assert clip.seconds == pytest.approx([second - seconds[0] for second in seconds], abs=0.003)
    assert bool(twice) == (DECODED in FORMS[form])
    for start, end, sparse in ((0.32, 0.71, 0), (0.5, 0.9, 16), (0.53, 0.57, 0), (0.8, 0.95, 0)):
        monkeypatch.setattr(video, "SPARSE", sparse)
        due = on_screen(seconds, start, end)
        media = Media("video", data, path.name, start, end)
        clip = decode_video(media, EVERY_FRAME)
        assert_same(clip, pixels, due)
        assert clip.seconds == pytest.approx([max(0.0, seconds[n] - start) for n in due], abs=0.003)
        few = [due[round(place)] for place in np.linspace(0, len(due) - 1, min(3, len(due)))]
        assert_same(decode_video(media, FEW), pixels, few)


ORIENTATIONS = {
    "upright": (1, 0, 0, 1),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (-1, 0, 0, -1),
    "mirrored, upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "clockwise": (0, 1, -1, 0),
    "transposed, upside down": (0, -1, -1, 0),
    "counterclockwise": (0, -1, 1, 0),
}


def oriented(data, orientation):
    """The same MP4 or MOV with another matrix in its track's header."""
    (right_x, right_y, down_x, down_y), data = (65_536 * np.array(orientation)).tolist(), bytearray(data)
    place = data.find(b"tkhd") + 4 + 4 + 20 + 8 + 8
    matrix = (right_x, right_y, 0, down_x, down_y, 0, 0, 0, 1 << 30)
    assert struct.unpack(">9i", data[place : place + 36]) == (65_536, 0, 0, 0, 65_536, 0, 0, 0, 1 << 30)
    data[place : place + 36] = struct.pack(">9i", *matrix)
    return bytes(data)


@pytest.mark.parametrize(("suffix", "name"), product(("mp4", "mov"), ORIENTATIONS))
def test_frames_stand_as_players_show_them(folder, suffix, name):
    plain = folder / f"plain.{suffix}"
    if not plain.exists():
        made(plain, "-c:v", "mpeg4", "-g", "8")
    path = folder / f"oriented {name}.{suffix}"
    path.write_bytes(oriented(plain.read_bytes(), ORIENTATIONS[name]))
    seconds, pixels = pictures(path)
    assert_same(decode_video(Media("video", path, path.name), EVERY_FRAME), pixels, range(COUNT))
    clip = decode_video(Media("video", path, path.name, 1.05, 1.65), EVERY_FRAME)
    assert_same(clip, pixels, on_screen(seconds, 1.05, 1.65))


def test_orientations_differ_from_one_another(folder):
    """Else the frames would show nothing of them."""
    plain = made(folder / "shown.mp4", "-c:v", "mpeg4").read_bytes()
    media = [Media("video", oriented(plain, matrix), "a.mp4") for matrix in ORIENTATIONS.values()]
    shown = {(frame.shape, bytes(frame.contiguous().numpy())) for frame in (decode_video(one).frames[1] for one in media)}
    assert len(shown) == 8


@pytest.mark.parametrize("codec", ["h264", "hevc", "mpeg2"])
@pytest.mark.parametrize(("begin", "end"), [(0.2, 1.0), (0.45, 1.0), (0.0, 0.83), (0.3, 0.7)])
def test_a_broadcast_may_begin_and_end_anywhere(folder, codec, begin, end):
    """Every frame that FFmpeg makes of what was received, at its time."""
    whole = folder / f"broadcast_{codec}.ts"
    if not whole.exists():
        made(whole, *{"h264": X264, "hevc": HEVC, "mpeg2": MPEG2}[codec])
    data = whole.read_bytes()
    packets = len(data) // 188
    path = folder / f"cut_{codec}_{begin}_{end}.ts"
    path.write_bytes(data[int(packets * begin) * 188 : int(packets * end) * 188])
    seconds, pixels = pictures(path)
    clip = decode_video(Media("video", path, path.name), EVERY_FRAME)
    assert_same(clip, pixels, range(len(seconds)))
    assert clip.seconds == pytest.approx([second - seconds[0] for second in seconds], abs=0.003)


def test_mpeg_ps_with_rare_times_has_all_its_frames(folder):
    """The program lets times of some frames step back; they keep to the rate here."""
    for name, settings in (("h264", X264), ("mpeg1", (*MPEG1, "-r", "25"))):
        path = made(folder / f"{name}.mpg", *settings)
        _, pixels = pictures(path)
        clip = decode_video(Media("video", path, path.name), EVERY_FRAME)
        assert_same(clip, pixels, range(len(pixels)))
        assert clip.seconds == pytest.approx([n / (25 if name == "mpeg1" else RATE) for n in range(len(pixels))], abs=0.101)


@pytest.mark.parametrize("settings", [MPEG4, X264, VP9])
def test_the_end_of_a_file_that_was_never_filled_is_refused(folder, settings):
    """As of a download into a file of full length; its header comes first."""
    data = made(folder / "filled.mp4", *settings, "-movflags", "+faststart").read_bytes()
    with pytest.raises(MediaError):
        decode_video(Media("video", data[: len(data) // 2] + bytes(len(data) - len(data) // 2), "a.mp4"), EVERY_FRAME)
