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

    @classmethod
    def begin(cls, instruction: str, role: str = "user") -> "PromptBuilder":
        """Writes the chat template up to the first turn's content.

        Args:
            instruction: System instruction; an empty one makes no system turn.
            role: Role of the first turn.
        """
        prompt = cls()
        if instruction:
            prompt.add("im_start")
            prompt.write(f"system\n{instruction}")
            prompt.add("im_end")
            prompt.write("\n")
        prompt.add("im_start")
        prompt.opening = len(prompt.text)
        prompt.write(f"{role}\n")
        return prompt

    def next_turn(self, role: str) -> None:
        """Ends a turn and begins the next."""
        self.add("im_end")
        self.write("\n")
        self.add("im_start")
        self.write(f"{role}\n")

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
