"""Figures inside the page."""

import base64

from markupsafe import Markup

SVG, PNG = b"<", b"\x89PNG"


def data_uri(data: bytes, kind: str) -> str:
    """Returns bytes as a ``data:`` URI.

    Args:
        data: The bytes.
        kind: MIME type.
    """
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def figure(image: bytes | Markup, alt: str, caption: str = "") -> Markup:
    """Returns a plot or drawing.

    Args:
        image: A PNG, an SVG file, or an ``<svg>`` as ``Markup``, which then follows the page's colours.
        alt: Its content in words, for those who do not see it.
        caption: Shown below.

    Raises:
        ValueError: The bytes are neither a PNG nor an SVG, or there are no words.
    """
    if not alt.strip():
        raise ValueError(f"A figure needs words for those who do not see it (alt), got {alt!r}.")
    below = Markup("<figcaption>{}</figcaption>").format(caption) if caption else ""
    if isinstance(image, Markup):
        drawn = Markup("<div role='img' aria-label='{}'>{}</div>").format(alt, image)
        return Markup("<figure>{}{}</figure>").format(drawn, below)
    if not image.startswith((SVG, PNG)):
        raise ValueError(f"A figure must be a PNG or an SVG, got bytes that begin with {image[:8]!r}.")
    source = data_uri(image, "image/png" if image.startswith(PNG) else "image/svg+xml")
    return Markup("<figure><img class='conan-plot' alt='{}' src='{}'>{}</figure>").format(alt, source, below)
