"""PDF pages with what was filled into them and put upon them."""

import io

import numpy as np
import pypdfium2
import pytest
import torch
from pages import BOX, CORNER, FORM, NOTHING, SQUARE, TEXT, TURNED, WIDE, filled_form, page
from pypdfium2 import raw

from lightning_conan.items import Media
from lightning_conan.media import Limits, MediaError, decode_document

LOOK = b"/AP << /N 7 0 R >> "
CHECK = b"/Subtype /Widget /FT /Btn /T (box) /V /%s /AS /%s /AP << /N << /Yes 7 0 R /Off 8 0 R >> >>"
RADIO = b"/Subtype /Widget /FT /Btn /Ff 32768 /T (box) /V /Yes /AS /Yes /AP << /N << /Yes 7 0 R /Off 8 0 R >> >>"


def decoded(data: bytes, **options) -> torch.Tensor:
    return decode_document(Media("document", data, "a.pdf", **options))


def dark(pixels: torch.Tensor) -> list[int] | None:
    """The box of dark pixels: left, top, right, bottom."""
    down, across = np.nonzero((pixels < 128).all(0).numpy())
    return [across.min(), down.min(), across.max() + 1, down.max() + 1] if len(down) else None


# 144 dots an inch are 2 a point, from above: the annotation's points 20 to 60 and 100 to 140 are pixels 40 to 120 and 120 to 200.
WHOLE, LEFT_ABOVE, LEFT_BELOW = [50, 130, 110, 190], [40, 120, 80, 160], [40, 160, 80, 200]
FIELD, STAMP = TEXT % b"x" + LOOK, b"/Subtype /Stamp " + LOOK
MARKS = {
    "text field": (FIELD, [BOX], {}, WHOLE),
    "text field that is not for printing": (FIELD, [BOX], {"flags": 0}, WHOLE),
    "hidden text field": (FIELD, [BOX], {"flags": 2}, None),
    "signature": (b"/Subtype /Widget /FT /Sig /T (s) " + LOOK, [BOX], {}, WHOLE),
    "checked box": (CHECK % (b"Yes", b"Yes"), [BOX, NOTHING], {}, WHOLE),
    "box that is not checked": (CHECK % (b"Off", b"Off"), [BOX, NOTHING], {}, None),
    "radio button": (RADIO, [BOX, NOTHING], {}, WHOLE),
    "upright widget": (FIELD, [CORNER], {}, LEFT_ABOVE),
    "widget on its side": (FIELD + b"/MK << /R 90 >>", [TURNED], {}, LEFT_BELOW),
    "widget on a page on its side": (FIELD, [CORNER], {"more": b"/Rotate 90"}, [240, 40, 280, 80]),
    "widget on a page with a crop box": (FIELD, [CORNER], {"more": b"/CropBox [10 0 300 150]"}, [20, 20, 60, 60]),
    "field that its form does not list": (FIELD, [BOX], {"form": b"/Fields []"}, WHOLE),
    "field of a page that was merged into a file without a form": (FIELD, [BOX], {"form": b""}, WHOLE),
    "stamp": (STAMP, [BOX], {}, WHOLE),
    "stamp in a file without a form": (STAMP, [BOX], {"form": b""}, WHOLE),
    "hidden stamp": (STAMP, [BOX], {"flags": 2}, None),
    "square without an appearance": (b"/Subtype /Square /IC [0 0 0] /C [0 0 0] /BS << /W 0 >>", [], {}, [40, 120, 120, 200]),
    "words that pop up": (b"/Subtype /Popup /Contents (words) " + LOOK, [BOX], {}, None),
}


@pytest.mark.parametrize("name", MARKS)
def test_what_stands_upon_a_page_is_seen_where_it_stands(name):
    annotation, looks, options, place = MARKS[name]
    assert dark(decoded(page(SQUARE + annotation, *looks, **options))) == place


FIELDS = {
    "typed": (TEXT % b"ALPHA", TEXT % b"OMEGA"),
    "typed in several lines": (TEXT % b"A\nB" + b"/Ff 4096", TEXT % b"A\nC" + b"/Ff 4096"),
    "typed in another script": (
        TEXT.replace(b"(%s)", b"<FEFF00C4>"),
        TEXT.replace(b"(%s)", b"<FEFF00D6>"),
    ),
    "chosen": tuple(b"/Subtype /Widget /FT /Ch /Ff 131072 /T (c) /V (%s) /Opt [(one) (two)]" % word for word in (b"one", b"two")),
    "chosen from a list": tuple(
        b"/Subtype /Widget /FT /Ch /T (c) /V (%s) /Opt [(one) (two)]" % word for word in (b"one", b"two")
    ),
}


@pytest.mark.parametrize("form", [FORM, FORM + b" /NeedAppearances true", b"/Fields [5 0 R]"])
@pytest.mark.parametrize("name", FIELDS)
def test_a_field_without_an_appearance_shows_what_it_holds(name, form):
    one, other = (decoded(page(field + WIDE, form=form)) for field in FIELDS[name])
    assert not torch.equal(one, other)
    left, top, right, bottom = dark(one)
    assert (left >= 40) & (top >= 120) & (right <= 560) & (bottom <= 200)


def by_pdfium(data: bytes) -> torch.Tensor:
    """As pypdfium2's documentation has it."""
    with pypdfium2.PdfDocument(io.BytesIO(data)) as pdf:
        pdf.init_forms()
        return torch.from_numpy(np.array(pdf[0].render(scale=2).to_pil())).permute(2, 0, 1)


@pytest.mark.parametrize("data", [filled_form(), page(content=b"BT /F1 14 Tf 20 160 Td (Name:) Tj ET", form=b"")])
def test_pages_are_those_of_pypdfium2(data):
    assert torch.equal(decoded(data), by_pdfium(data))


def test_a_field_on_a_later_page_is_seen():
    with pypdfium2.PdfDocument.new() as both, pypdfium2.PdfDocument(filled_form()) as form:
        both.new_page(100, 100)
        both.import_pages(form)
        both.save(buffer := io.BytesIO())
    assert dark(decoded(buffer.getvalue())) is None
    assert dark(decoded(buffer.getvalue(), page=2)) == dark(decoded(filled_form()))


def test_an_xfa_form_is_seen_as_readers_without_xfa_show_it(caplog):
    assert torch.equal(decoded(filled_form(form=FORM + b" /XFA (<xdp/>)")), decoded(filled_form()))
    assert not caplog.records, "one line a page would fill the log"


def test_a_page_in_larger_units_has_as_many_pixels():
    """PDFium does not tell them, and what is as large is shrunk for the model anyway (decision 027)."""
    assert torch.equal(decoded(filled_form(more=b"/UserUnit 10")), decoded(filled_form()))


def test_a_page_over_the_limit_is_refused_before_it_is_drawn(monkeypatch):
    monkeypatch.setattr(pypdfium2.PdfPage, "render", lambda *_, **__: pytest.fail("rendered"))
    monkeypatch.setattr(raw, "FPDF_FFLDraw", lambda *_: pytest.fail("drawn"))
    with pytest.raises(MediaError, match="600x400 pixels, must be 1 to 200000"):
        decode_document(Media("document", filled_form(), "a.pdf"), Limits(max_pixels=200_000))
