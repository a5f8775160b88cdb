"""A teacher for tests and demos, which answers from a file of ground truth, offline."""

import json
from pathlib import Path

from lightning_conan.reasoning.answers import Reply
from lightning_conan.reasoning.endpoint import Messages


class TruthTeacher:
    """Answers from a file of ground truth.

    Args:
        path: JSONL of ``key``, ``reasoning`` and ``answer``.

    Raises:
        ValueError: The file is missing.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"The toy teacher needs the ground truth {path}, which is not there. Only the toy world writes one.")
        lines = path.read_text(encoding="utf-8").split("\n")
        self.truths = {line["key"]: line for line in map(json.loads, filter(str.strip, lines))}

    async def ask(self, key: str, question: str, messages: Messages) -> Reply:
        """Looks up the truth about a pair.

        Args:
            key: Key of the pair.
            question: ``route``, ``verify`` or a kind of reasoning.
            messages: Unused.

        Raises:
            OSError: The file says nothing about it.
        """
        truth = self.truths.get(key)
        if truth is None:
            raise OSError(f"nothing is known about {key}")
        if question == "route":
            return Reply(truth["kind"])
        if question == "verify":
            return Reply("yes 1.0")
        return Reply(f"<reasoning>{truth['reasoning']}</reasoning><answer>{truth['answer']}</answer>")
