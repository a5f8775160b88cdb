"""What became of each pair that a teacher was asked about, on disk as soon as it is known."""

import json
import os
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, get_args

from filelock import FileLock, Timeout

from lightning_conan.items import Pair

Kind = Literal["simple", "visual", "composed", "logical"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TOKENS = ("prompt_tokens", "completion_tokens", "verifier_prompt_tokens", "verifier_completion_tokens")


@dataclass(frozen=True)
class Outcome:
    """What became of a pair: a line of the journal.

    Args:
        key: The pair's.
        kind: What it asks for.
        content: Of the pair that was asked about: what it says of another under the same key is no answer.
        reason: Why it was dropped; empty for a simple pair, and for one whose reasoning stands.
        reasoning: What passed the filters.
        answer: Likewise.
        verified: Whether a verifier looked at it.
        prompt_tokens: Read by the teacher.
        completion_tokens: Written by it.
        verifier_prompt_tokens: Read by the verifier, which may be the teacher.
        verifier_completion_tokens: Written by it.
    """

    key: str
    kind: Kind
    content: str = ""
    reason: str = ""
    reasoning: str = ""
    answer: str = ""
    verified: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    verifier_prompt_tokens: int = 0
    verifier_completion_tokens: int = 0

    @property
    def name(self) -> str:
        """simple, kept or dropped."""
        return "dropped" if self.reason else "simple" if self.kind == "simple" else "kept"


class Journal:
    """Outcomes on disk, one a line as soon as it is known, so that a run that was killed goes on.

    Args:
        path: The file; a line that was cut off is asked for again.

    Raises:
        ValueError: On entering it: another process writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[str, Outcome] = {}
        self.contents: dict[str, str] = {}
        self.lock = FileLock(path.with_suffix(".lock"), timeout=0)
        self.read()

    def read(self) -> int:
        """Learns what stands in the file; returns how many of its bytes are whole lines."""
        whole = 0
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []:
            if not line.endswith(b"\n"):
                break
            outcome = Outcome(**json.loads(line))
            self.outcomes[outcome.key] = outcome
            whole += len(line)
        return whole

    def __enter__(self) -> "Journal":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire()
        except Timeout as error:
            raise ValueError(f"{self.path} must be written by one process, and another one asks already. Wait for it.") from error
        whole = self.read()  # another process may have written since
        if self.path.exists() and self.path.stat().st_size > whole:
            os.truncate(self.path, whole)
        self.file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        self.lock.release()

    def content(self, pair: Pair) -> str:
        """Equal for pairs that say the same."""
        if pair.key not in self.contents:
            sides = (pair.task, pair.query.content_hash(), pair.target.content_hash())
            self.contents[pair.key] = sha256(repr(sides).encode()).hexdigest()
        return self.contents[pair.key]

    def knows(self, pair: Pair) -> bool:
        """Whether this very pair was asked about."""
        outcome = self.outcomes.get(pair.key)
        return outcome is not None and outcome.content == self.content(pair)

    def add(self, outcome: Outcome) -> None:
        """Notes an outcome."""
        self.outcomes[outcome.key] = outcome
        self.file.write(json.dumps(asdict(outcome)) + "\n")
        self.file.flush()
