"""Prompts as VLM2Vec writes them, blanks and line feeds included: text behind the placeholder of the medium."""

PLACEHOLDER = "<|image_1|>"
"""Stands in the annotations for the image, which comes first in each prompt."""


def behind(instruction: str, text: str = "") -> str:
    """Text behind a medium: upstream joins placeholder, instruction and text by blanks.

    Args:
        instruction: The task's.
        text: The query's or candidate's; empty for none.
    """
    return f" {instruction} {text}" if text else f" {instruction}"


def tidy(prompt: str) -> str:
    """Text behind an image as MMEB's first version had it: no blank before a line feed."""
    return prompt.replace(" \n", "\n")


def without_placeholder(instruction: str | None) -> str:
    """An annotation's instruction without the placeholder; empty if there is none."""
    return (instruction or "").replace(PLACEHOLDER, "")


def lettered(options: list[str]) -> list[str]:
    """Options of a question as ``(A) first``."""
    return [f"({chr(ord('A') + number)}) {option}" for number, option in enumerate(options)]
