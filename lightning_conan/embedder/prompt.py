"""Prompt of an item, piece by piece, before it becomes token ids."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class PromptBuilder:
    """Prompt of an item under construction.

    Args:
        text: Text, and placeholders as token and count, in order.
        grids: Rows and columns of each image's, or pair of frames', tokens.
        pixels: Images, and the frames of videos, uint8.
        mels: Log-mel of each audio clip.
        padded_audio_tokens: Audio tokens after padding each clip to a whole encoder window.
        opening: Number of entries of ``text`` before the one that the item's own words join.
    """

    text: list[str | tuple[str, int]] = field(default_factory=list)
    grids: list[tuple[int, int]] = field(default_factory=list)
    pixels: list[Tensor] = field(default_factory=list)
    mels: list[Tensor] = field(default_factory=list)
    padded_audio_tokens: int = 0
    opening: int = 0

    def add(self, token: str, count: int = 1) -> None:
        """Appends placeholders.

        Args:
            token: A name in ``SPECIAL_TOKENS``.
            count: Number of placeholders.
        """
        self.text.append((token, count))

    def write(self, words: str) -> None:
        """Appends text, joined to neighbouring text: tokenizers merge across such borders."""
        if self.text and isinstance(self.text[-1], str):
            self.text[-1] += words
        else:
            self.text.append(words)
