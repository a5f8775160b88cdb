"""Journal of a teacher's answers: the outcome of each pair, on disk as soon as it is known."""

import json
import os
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

from lightning_conan.items import Pair
from lightning_conan.writer_lock import lock_writer

Kind = Literal["simple", "visual", "composed", "logical"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TOKENS = ("prompt_tokens", "completion_tokens", "verifier_prompt_tokens", "verifier_completion_tokens")


@dataclass(frozen=True)
class Outcome:
    """Outcome of a pair: a line of the journal.

    Args:
        key: Key of the pair.
        kind: Kind of reasoning that it needs.
        content: Hash of the pair that was asked about: an outcome of other content under the same key is ignored.
        reason: Reason for dropping it; empty for a simple pair, and for one whose reasoning is kept.
        reasoning: Reasoning that passed the filters.
        answer: Answer that passed the filters.
        verified: True if a verifier checked it.
        prompt_tokens: Tokens that the teacher read.
        completion_tokens: Tokens that the teacher generated.
        verifier_prompt_tokens: Tokens that the verifier read, which may be the teacher.
        verifier_completion_tokens: Tokens that the verifier generated.
        failed: Error, if there was no answer. The pair is asked again; its tokens count nevertheless.
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
    failed: str = ""

    @property
    def name(self) -> str:
        """simple, kept or dropped."""
        return "dropped" if self.reason else "simple" if self.kind == "simple" else "kept"

    def plus(self, other: "Outcome") -> "Outcome":
        """Returns this outcome with the tokens of another added."""
        sums: dict[str, Any] = {name: getattr(self, name) + getattr(other, name) for name in TOKENS}
        return replace(self, **sums)


class Journal:
    """Outcomes on disk, one a line as soon as it is known, so that a run that was killed resumes.

    Args:
        path: The file; a line that was cut off is asked for again.

    Attributes:
        outcomes: By key, each with the tokens of all attempts at its key.
        failures: Those without an answer so far, likewise.

    Raises:
        ValueError: A line is no outcome; on entering it: another process writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[str, Outcome] = {}
        self.failures: dict[str, Outcome] = {}
        self.contents: dict[str, str] = {}
        self.read()

    def read(self) -> int:
        """Reads the file; returns how many of its bytes are whole lines.

        Raises:
            ValueError: A whole line is no outcome.
        """
        whole = 0
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                self.learn(Outcome(**json.loads(line)))
            except (ValueError, TypeError) as error:
                where = f"{self.path}:{number}"
                raise ValueError(f"{where} must be an outcome as `conan cot` notes it ({error}). Remove the line.") from error
            whole += len(line)
        return whole

    def learn(self, outcome: Outcome) -> None:
        """Makes an outcome the last one of its key; after a failure, an earlier answer still holds."""
        if outcome.failed:
            self.failures[outcome.key] = outcome
        else:
            self.outcomes[outcome.key] = outcome
            self.failures.pop(outcome.key, None)

    def last(self, key: str) -> Outcome | None:
        """The last outcome or failure of a key, with the tokens of all attempts; None if it was never asked about."""
        return self.failures.get(key) or self.outcomes.get(key)

    def __enter__(self) -> "Journal":
        self.lock = lock_writer(self.path)
        whole = self.read()  # another process may have written since
        if self.path.exists() and self.path.stat().st_size > whole:
            os.truncate(self.path, whole)
        self.file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.file.close()
        finally:
            self.lock.release()

    def content(self, pair: Pair) -> str:
        """Hash of a pair's task and contents, equal for equal ones."""
        if pair.key not in self.contents:
            sides = (pair.task, pair.query.content_hash(), pair.target.content_hash())
            self.contents[pair.key] = sha256(repr(sides).encode()).hexdigest()
        return self.contents[pair.key]

    def knows(self, pair: Pair) -> bool:
        """True if there is an answer for this key and content."""
        outcome = self.outcomes.get(pair.key)
        return outcome is not None and outcome.content == self.content(pair)

    def add(self, outcome: Outcome) -> None:
        """Writes an outcome or a failure, with the tokens of earlier attempts added.

        Raises:
            OSError: It cannot be written.
        """
        before = self.last(outcome.key)
        outcome = outcome if before is None else outcome.plus(before)
        self.learn(outcome)
        try:
            self.file.write(json.dumps(asdict(outcome)) + "\n")
            self.file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
