#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg 8's libraries): frames decoded from an AVI with B-frames come in the right order, with times that are not.
# AVI stores no presentation times; what the container tells is the packets' order, and a decoded frame's pts is its packet's.
#
# Seen: of 25 frames a second, frames 0 to 7 say 0.04, 0.16, 0.12, 0.2, 0.08, 0.32, 0.28, 0.36 s, and due are 0.0, 0.04, ... 0.28;
# the option fflags=+genpts changes nothing. The same packets in MP4 say the times that are due.
# Fails once that has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3.11}" -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check av==18.1.0 numpy==2.4.6
cd "$place"
"$place/venv/bin/python" - <<'P'
import io
import av
import numpy as np

def movie(container):
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number * 6, np.uint8), format="rgb24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    file.seek(0)
    return file

def times(container, **options):
    with av.open(movie(container), options=options) as found:
        frames = list(found.decode(video=0))
    shades = [int(frame.to_ndarray(format="rgb24").mean()) for frame in frames]
    assert shades == sorted(shades), "the frames come in order"
    return [round(float(frame.pts * frame.time_base), 2) for frame in frames]

due = [round(number / 25, 2) for number in range(40)]
avi, mp4 = times("avi"), times("mp4")
print("PyAV", av.__version__, "avi", avi[:8], "mp4", mp4[:8])
assert mp4 == due
assert avi != sorted(avi), "times of AVI frames rise now"
assert times("avi", fflags="+genpts") == avi, "genpts helps now"
P
