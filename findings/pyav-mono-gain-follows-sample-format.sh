#!/usr/bin/env bash
# av (PyAV) 18.1.0 with the FFmpeg of its wheel (libswresample 6.3): mixing down to mono is louder by 3 dB for float samples than for 16 bit ones.
#
# Two channels that both hold 0.5 become 0.5 if AudioResampler(format="s16", layout="mono") mixes them, whatever the input's format, and 0.7071 for
# "flt" or "fltp"; six channels (5.1) of 0.5 become 0.5 and 1.7071, beyond full scale. libswresample scales its mixing matrix so that nothing clips for
# integer output alone; for float output it leaves the coefficients (0.7071 a channel) as they are. So the same file has another level by the sample
# format that a loader asks for, and a mean over the channels gives a third result for 5.1. A loader that decodes to float and one that decodes to int16
# and divides by 32768 feed a model inputs that differ by a factor of 1.41 (stereo) or 3.41 (5.1), without any message.
# Take the channels apart and mix by hand, or resample to 16 bit first.
#
# Seen: the eight levels below. Fails once that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check av==18.1.0 numpy==2.2.6
"$folder/venv/bin/python" - <<'END'
import sys
import av
import numpy as np

def level(source, target, layout, channels):
    values = np.full((channels, 4800), 0.5)
    samples = (values * 32767).astype(np.int16) if source == "s16p" else values.astype(np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format=source, layout=layout)
    frame.sample_rate = 48000
    mixer = av.AudioResampler(format=target, layout="mono", rate=48000)
    mixed = np.concatenate([part.to_ndarray() for part in [*mixer.resample(frame), *mixer.resample(None)]], axis=1)
    return round(float(mixed.mean()) / (32767 if target == "s16" else 1), 2)

found = {
    (layout, source, target): level(source, target, layout, channels)
    for layout, channels in (("stereo", 2), ("5.1", 6))
    for source in ("s16p", "fltp")
    for target in ("s16", "fltp")
}
for (layout, source, target), value in found.items():
    print(f"{layout} of 0.5, {source} to mono {target}: {value}")
right = {("stereo", "s16"): 0.5, ("stereo", "fltp"): 0.71, ("5.1", "s16"): 0.5, ("5.1", "fltp"): 1.71}
changed = [place for place, value in found.items() if value != right[place[0], place[2]]]
sys.exit(f"changed: {changed}" if changed else 0)
END
