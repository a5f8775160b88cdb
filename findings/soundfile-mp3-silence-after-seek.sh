#!/usr/bin/env bash
# soundfile 0.14.0 (its wheel's libsndfile 1.2.2): after a seek in an MP3 the first 50 ms or so are silence, and then a fade, where there is sound.
#
# MP3 frames keep part of their bits in the frames before (the bit reservoir). The decoder starts at the frame that holds the sample asked for, without
# those, gives zeros until it has them, and rises over one more frame. `soundfile.read(file, start=..., frames=...)`, SoundFile.seek and blocks that begin
# at a place of their own are concerned; reading from the beginning is not. The position and the number of samples are right. libmpg123 may print a line
# about "part2_3_length" to standard error; nothing is raised. It depends on the content: noise, whose frames leave nothing over, comes out equal; tones
# and chirps do not, and of a voice-like sum of overtones most places (26 of 32). WAV, FLAC, Vorbis and Opus are exact after a seek. So windows cut from
# MP3 recordings for training begin with a gap that the recording has not: begin a tenth of a second earlier and drop that much, or decode the whole file.
#
# Seen, for a tone of 440 Hz and amplitude 0.5 at 44.1 kHz, 4,000 samples read from 50,000: root mean square of the first 1,500 samples 0.000 (0.354 in the
# whole file's reading), equal from the 3,000th on; begun 4,410 samples earlier: equal all over. Noise: equal. FLAC, Vorbis: equal. Fails once that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check soundfile==0.14.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'END'
import io
import sys
import numpy as np
import soundfile

RATE, START, COUNT = 44100, 50_000, 4_000
tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(3 * RATE) / RATE)).astype(np.float32)
noise = (0.1 * np.random.default_rng(0).normal(size=3 * RATE)).astype(np.float32)

def readings(sound, kind, subtype=None, earlier=0):
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, format=kind, subtype=subtype)
    file.seek(0)
    whole = soundfile.read(file, dtype="float32")[0][START:][:COUNT]
    file.seek(0)
    part = soundfile.read(file, start=START - earlier, frames=COUNT + earlier, dtype="float32")[0][earlier:]
    assert len(whole) == len(part) == COUNT
    return whole, part

def same(pair):
    return bool(np.allclose(*pair, atol=1e-3))

whole, part = readings(tone, "MP3")
levels = [round(float(np.sqrt((found[:1500] ** 2).mean())), 3) for found in (whole, part)]
late = same((whole[3000:], part[3000:]))
others = {
    "earlier": same(readings(tone, "MP3", earlier=RATE // 10)),
    "noise": same(readings(noise, "MP3")),
    "FLAC": same(readings(tone, "FLAC")),
    "Vorbis": same(readings(tone, "OGG", "VORBIS")),
}
print("soundfile", soundfile.__version__, soundfile.__libsndfile_version__, "levels of whole and part", levels, "late", late, "equal", others)
sys.exit(0 if levels[0] > 0.34 and levels[1] < 0.001 and late and all(others.values()) else "changed")
END
