"""Prompt of an item, piece by piece, before it becomes token ids."""

from dataclasses import dataclass, field
from math import prod

from torch import Tensor

from lightning_conan.embedder.positions import Run


@dataclass
class PromptBuilder:
    """Prompt of an item under construction.

    Args:
        text: Text, and placeholders as token, count and shape (``positions.Run``), in order.
        media: Tensors of each tower's inputs, such as pixels of images and log-mels of audio clips, by tower.
        costs: Tokens that a tower computes, where that is more than there are placeholders.
        opening: Number of entries of ``text`` before the one that the item's own words join.
    """

    text: list[str | tuple[str, int, Run]] = field(default_factory=list)
    media: dict[str, list[Tensor]] = field(default_factory=dict)
    costs: dict[str, int] = field(default_factory=dict)
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
            token: A name among the processor's ``ids``.
            count: Number of placeholders.
        """
        self.text.append((token, count, count))

    def add_grid(self, token: str, rows: int, columns: int) -> None:
        """Appends placeholders that have places in a grid: positions spread over its height and width.

        Args:
            token: A name among the processor's ``ids``.
            rows: Rows of the grid.
            columns: Its columns.
        """
        self.text.append((token, rows * columns, (rows, columns)))

    def add_volume(self, token: str, shape: tuple[int, int, int], step: float, span: int) -> None:
        """Appends the placeholders of a whole video: positions spread over time, height and width.

        Args:
            token: A name among the processor's ``ids``.
            shape: Temporal patches, rows and columns of the grid.
            step: Positions from each temporal patch to the next.
            span: Positions from the video's start to what follows.
        """
        self.text.append((token, prod(shape), (*shape, step, span)))

    def attach(self, tower: str, tensor: Tensor, cost: int = 0) -> None:
        """Appends an input of a tower.

        Args:
            tower: Name of the tower.
            tensor: The input, in the order of its placeholders.
            cost: Tokens that the tower computes for it, if it pads its inputs; 0 if it computes as many as there are
                placeholders.
        """
        self.media.setdefault(tower, []).append(tensor)
        if cost:
            self.costs[tower] = self.costs.get(tower, 0) + cost

    def write(self, words: str) -> None:
        """Appends text, joined to neighbouring text: tokenizers merge across such borders."""
        if self.text and isinstance(self.text[-1], str):
            self.text[-1] += words
        else:
            self.text.append(words)
