#!/usr/bin/env bash
# Pillow 13.0.0 compares the transparent shade of a gray PNG of 2 or 4 bits (tRNS, in the file's own range) with samples that it
# has scaled to 8 bits: nothing becomes transparent, or another shade does.
#
# Seen: of a 4-bit image whose shade 15 is transparent, converted to RGBA, no pixel has alpha 0; of the same at 8 bits, half have.
# Fails once that has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3.11}" -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check pillow==13.0.0
cd "$place"
"$place/venv/bin/python" - <<'P'
import io, struct, zlib, PIL
from PIL import Image

def png(bits, rows, shade):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    head = struct.pack(">IIBBBBB", 2, len(rows), bits, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = chunk(b"IHDR", head) + chunk(b"tRNS", struct.pack(">H", shade)) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts

four = Image.open(io.BytesIO(png(4, [b"\x0f", b"\x0f"], 15))).convert("RGBA").getchannel("A").tobytes()
eight = Image.open(io.BytesIO(png(8, [b"\x00\xff", b"\x00\xff"], 255))).convert("RGBA").getchannel("A").tobytes()
print("Pillow", PIL.__version__, "alpha at 4 bits", list(four), "at 8 bits", list(eight))
assert list(eight) == [255, 0, 255, 0]
assert 0 not in four, "Pillow scales the shade now"
P
