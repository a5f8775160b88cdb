#!/usr/bin/env bash
# PyAV 18.1.0: `container.seek(pts, stream=video)` goes back to a key frame at or before pts, says its manual. In MPEG-TS with
# B-frames, asked for the very pts of a key frame, it goes behind it: the next frame that is decoded is the next key frame, a
# whole group of pictures later, and after the last key frame there is none.
#
# Seen: key frames at 7200, 97200, 187200, 277200 (90 kHz); seeking to each gives 97200, 187200, 277200 and no frame. In Matroska
# and MP4 each seek gives the frame that it was asked for.
# Fails once that has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3.11}" -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check av==18.1.0 numpy==2.4.6
cd "$place"
"$place/venv/bin/python" - <<'P'
import av
import numpy as np

def seeks(container):
    path = f"movie.{container}"
    with av.open(path, "w", format=container) as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.options = {"x264-params": "keyint=25:min-keyint=25:scenecut=0:bframes=2"}
        for number in range(100):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number * 2, np.uint8), format="rgb24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with av.open(path) as found:
        keys = [packet.pts for packet in found.demux(video=0) if packet.is_keyframe]
    reached = []
    for key in keys:
        with av.open(path) as found:
            stream = found.streams.video[0]
            found.seek(key, stream=stream)
            frame = next(found.decode(stream), None)
            reached.append(None if frame is None else frame.pts)
    return keys, reached

for container in ("matroska", "mp4"):
    keys, reached = seeks(container)
    assert keys == reached, (container, keys, reached)
keys, reached = seeks("mpegts")
print("PyAV", av.__version__, "asked for", keys, "reached", reached)
assert reached == [*keys[1:], None], "seeking in MPEG-TS changed"
P
