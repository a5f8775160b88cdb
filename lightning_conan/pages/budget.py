"""Room for the media of one display: however many items it has, its HTML stays small."""

from collections.abc import Iterable

from markupsafe import Markup

from lightning_conan.pages.showing import DEFAULT, Bounds, Shown, label, show_parts

ROOM = 6_000_000
"""Letters of a display, from which on media are named and not shown."""


class Budget:
    """Shows items until their HTML fills the room, and names the media of the rest.

    Args:
        room: Letters of HTML.
        bounds: Limits of each medium.
    """

    def __init__(self, room: int = ROOM, bounds: Bounds = DEFAULT) -> None:
        self.left, self.bounds = room, bounds

    def show(self, parts: Iterable[str | Shown]) -> Markup:
        """Shows texts and media in order; from the part on that finds no room, media are named.

        Args:
            parts: Strings and media, such as the parts of an item.
        """
        shown = Markup("").join(self.one(part) for part in parts)
        return Markup("<div class='conan-item'>{}</div>").format(shown)

    def one(self, part: str | Shown) -> Markup:
        """Shows one part, and takes its length from the room."""
        if self.left <= 0:
            name = "…" if isinstance(part, str) else f"{part.modality} {label(part)}, not shown: the display is full"
            return Markup("<small>{}</small>").format(name)
        html = show_parts((part,), self.bounds)
        self.left -= len(html)
        return html
