"""PDFs of one page and what stands on it, written by hand."""

import io

from PIL import Image

FORM = b"/Fields [5 0 R] /DA (/F1 24 Tf 0 g) /DR << /Font << /F1 6 0 R >> >>"
TEXT = b"/Subtype /Widget /FT /Tx /T (name) /V (%s) /DA (/F1 24 Tf 0 g) "
SQUARE, WIDE = b"/Rect [20 100 60 140] ", b"/Rect [20 100 280 140] "
BOX, CORNER, TURNED, NOTHING = b"0 g 5 5 30 30 re f", b"0 g 0 20 20 20 re f", b"0 g 0 20 20 20 re  f", b""
MATRIX = {TURNED: b"/Matrix [0 1 -1 0 40 0]"}
"""A quarter counterclockwise."""


def stream(fields: bytes, body: bytes) -> bytes:
    return b"<< %s /Length %d >>\nstream\n%s\nendstream" % (fields, len(body), body)


def pdf(objects: list[bytes]) -> bytes:
    """A file of numbered objects, the first of which is the catalog."""
    data, table = b"%PDF-1.7\n", b"0000000000 65535 f \n"
    for number, body in enumerate(objects, 1):
        table += b"%010d 00000 n \n" % len(data)
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    size = len(objects) + 1
    end = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(data))
    return b"%sxref\n0 %d\n%s%s" % (data, size, table, end)


def page(
    annotation: bytes = SQUARE,
    *looks: bytes,
    form: bytes = FORM,
    size: bytes = b"[0 0 300 200]",
    more: bytes = b"",
    content: bytes = b"",
    flags: int = 4,
) -> bytes:
    """A page of 300 x 200 points with an annotation, whose appearances are the objects from 7 on.

    Args:
        annotation: The annotation's fields.
        looks: What streams of the appearances draw, in a box of 40 x 40 points.
        form: The catalog's form; with an empty one the catalog has none.
        size: The page's box.
        more: More fields of the page.
        content: What the page itself draws.
        flags: The annotation's: 2 hides it, 4 prints it.
    """
    fonts = b"/Resources << /Font << /F1 6 0 R >> >>"
    return pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R %s >>" % (b"/AcroForm << %s >>" % form if form else b""),
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox %s /Contents 4 0 R %s /Annots [5 0 R] %s >>" % (size, fonts, more),
            stream(b"", content),
            b"<< /Type /Annot /F %d /P 3 0 R %s >>" % (flags, annotation),
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
            *[stream(b"/Type /XObject /Subtype /Form /BBox [0 0 40 40] %s" % MATRIX.get(look, b""), look) for look in looks],
        ]
    )


def filled_form(value: bytes = b"ALPHA", **options: bytes) -> bytes:
    """A page with a field into which something was typed, which has no appearance yet."""
    return page(TEXT % value + WIDE, **options)


def two_pages() -> bytes:
    """A PDF of two pages that differ."""
    sheets = [Image.new("RGB", (60, 80), color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    sheets[0].save(buffer, "PDF", save_all=True, append_images=sheets[1:])
    return buffer.getvalue()
