"""A file just within a limit is read, and one just over it is not."""

import io
import pickle

import pypdfium2
import pytest
import torch

from lightning_conan.items import Media
from lightning_conan.media import Limits, MediaError, decode_audio, decode_document, decode_image, encode_audio
from samples import png


def test_bytes(tmp_path):
    data = png()
    (tmp_path / "a.png").write_bytes(data)
    for source in (data, tmp_path / "a.png"):
        media = Media("image", source, "a.png")
        assert Limits(max_bytes=len(data)).read(media) == data
        with pytest.raises(MediaError, match=rf"{len(data)} bytes, must be 1 to {len(data) - 1}"):
            Limits(max_bytes=len(data) - 1).read(media)
    with pytest.raises(MediaError, match="0 bytes"):
        Limits().read(Media("image", b"", "a.png"))


@pytest.mark.parametrize("kind", ["image", "document"])
def test_pixels(kind):
    media, decode = Media(kind, png(40, 56), "a.png"), {"image": decode_image, "document": decode_document}[kind]
    assert decode(media, Limits(max_pixels=2240)).shape == (3, 40, 56)
    with pytest.raises(MediaError, match="56x40 pixels, must be 1 to 2239"):
        decode(media, Limits(max_pixels=2239))
    with pytest.raises(MediaError, match="0x5 pixels"):
        Limits().check_pixels(media, 0, 5)


def test_pixels_of_a_page_count_as_it_is_drawn():
    """A side of 200.4 pixels is drawn as 201."""
    with pypdfium2.PdfDocument.new() as pdf:
        pdf.new_page(100.2, 50.1)
        pdf.save(buffer := io.BytesIO())
    media = Media("document", buffer.getvalue(), "a.pdf")
    assert decode_document(media, Limits(max_pixels=201 * 101)).shape == (3, 101, 201)
    with pytest.raises(MediaError, match="201x101 pixels"):
        decode_document(media, Limits(max_pixels=201 * 101 - 1))
    with pytest.raises(MediaError, match="page 0 does not exist"):
        decode_document(Media("document", buffer.getvalue(), "a.pdf", page=0))


def test_seconds():
    media = Media("audio", encode_audio(torch.zeros(16_000), format="wav"), "a.wav")
    assert len(decode_audio(media, Limits(max_seconds=1.0))) == 16_000
    with pytest.raises(MediaError, match="s long, must be at most"):
        decode_audio(media, Limits(max_seconds=0.999))


def test_the_error_names_its_file_in_another_process_too():
    error = pickle.loads(pickle.dumps(MediaError(Media("image", b"", "a.png"), "is cut")))
    assert type(error) is ValueError
    assert str(error) == "image 'a.png': is cut"
