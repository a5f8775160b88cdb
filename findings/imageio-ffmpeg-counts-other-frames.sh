#!/usr/bin/env bash
# imageio-ffmpeg 0.8.1 (its wheel's FFmpeg 9.0): of a video with a variable frame rate, read_frames gives more frames than count_frames_and_secs counts, and
# another number by the container.
#
# The docstring of read_frames sends readers to count_frames_and_secs for the number of frames. That function counts the stored pictures; read_frames lets
# ffmpeg fill a constant rate, so that pictures are repeated (or left out) to keep time. The rate is the container's guess: the mean one in MP4, the one
# that the encoder noted in Matroska. So an array made by the counted number overflows, "frame 5" is another picture by the container, and a sampler that
# takes every n-th frame sees copies. Screen recordings, phones and conference tools write such videos. Asking for
# output_params=["-fps_mode", "passthrough"] gives each picture once.
#
# Seen, for ten pictures at 0, 0.04, 0.08, 1.08, 2, 2.04, 2.05, 2.06, 2.07 and 3 s: counted 10 and 10; read 15 from MP4 and 76 from Matroska; 10 and 10 with
# passthrough. Fails once that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check imageio-ffmpeg==0.8.1 av==18.1.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'END'
import sys
from fractions import Fraction
import av
import imageio_ffmpeg
import numpy as np

TIMES = [0, 40, 80, 1080, 2000, 2040, 2050, 2060, 2070, 3000]  # ms

def written(path):
    with av.open(path, "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(TIMES):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number * 20, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path

def frames(path, **options):
    reader = imageio_ffmpeg.read_frames(path, **options)
    next(reader)  # the description
    return sum(1 for _ in reader)

found = {}
for suffix in ("mp4", "mkv"):
    path = written(f"{sys.argv[1]}/clip.{suffix}")
    counted = imageio_ffmpeg.count_frames_and_secs(path)[0]
    found[suffix] = (counted, frames(path), frames(path, output_params=["-fps_mode", "passthrough"]))
print("imageio-ffmpeg", imageio_ffmpeg.__version__, imageio_ffmpeg.get_ffmpeg_version(), "counted, read, passed through:", found)
sys.exit(0 if found == {"mp4": (10, 15, 10), "mkv": (10, 76, 10)} else "changed")
END
