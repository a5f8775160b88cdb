"""Rules for an answer to become training data: the rule filter of TRACE (arXiv 2603.02929)."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lightning_conan.reasoning.language import is_foreign, read_detector
from lightning_conan.reasoning.prompts import read_prompts

TAGGED = re.compile(r"\s*<reasoning>(.*?)</reasoning>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
PIECE = re.compile(r"\w+|[^\w\s]")
COMMON = frozenset(
    "about above after all also and any are before below but can change find for from had has have how image instead into its "
    "just less make more not one only other out photo picture put replace same should show some than that the then there these "
    "this those very video was were what which who why will with would you your".split()
)
"""Words that say nothing of what is to be found, and what an editing instruction begins with."""


@dataclass(frozen=True)
class Rules:
    """Limits of what a teacher may answer.

    Args:
        reasoning: Fewest and most tokens of a reasoning.
        answer: Fewest and most tokens of an answer.
        ngram: Length of the n-grams that are counted, in tokens.
        repeats: Times that one may occur; 0 for any number.
        latin: Least share of letters that are ASCII, without accents: the rest of the data is English.
        foreign: A detector's confidence, above which a reasoning or an answer in another language than English is dropped. Needs
            ``pip install "lightning-conan[cot]"``; 1 leaves the detector out.
        keyword: True if an answer must hold a word of the instruction or of the target's text, if these have any.
        confidence: A verifier's yes counts above this.
        tokenizer: A checkpoint folder whose tokenizer counts the tokens of ``reasoning`` and ``answer``; by default words and
            punctuation marks are counted, of which a text has fewer.
    """

    reasoning: tuple[int, int] = (16, 256)
    answer: tuple[int, int] = (2, 64)
    ngram: int = 6
    repeats: int = 2
    latin: float = 0.9
    foreign: float = 0.5
    keyword: bool = True
    confidence: float = 0.7
    tokenizer: Path | None = None

    def __post_init__(self) -> None:
        for name in ("reasoning", "answer"):
            least, most = getattr(self, name)
            if not 0 <= least <= most:
                raise ValueError(f"rules.{name} must be the fewest and the most tokens, got {least} and {most}.")
        shares = (self.latin, self.foreign, self.confidence)
        if self.ngram < 1 or self.repeats < 0 or not all(0 <= share <= 1 for share in shares):
            raise ValueError(
                "rules.ngram must be positive, repeats not negative, latin, foreign and confidence between 0 and 1, "
                f"got {self.ngram}, {self.repeats} and {', '.join(map(str, shares))}."
            )


@dataclass(frozen=True)
class Thought:
    """A teacher's answer, its tags stripped."""

    reasoning: str
    answer: str

    @property
    def text(self) -> str:
        """Target text before ``<|emb|>``."""
        return f"{self.reasoning}\n{self.answer}"


class RuleBroken(ValueError):
    """An answer that cannot be used; its text is the reason, the same for all answers that fail in this way."""


def pieces(text: str) -> list[str]:
    """Words and punctuation marks, in lower case."""
    return PIECE.findall(text.lower())


def parse(text: str) -> Thought:
    """Splits a reply into exactly one reasoning before exactly one answer, neither within the other.

    Raises:
        RuleBroken: Anything else.
    """
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise RuleBroken("half a character")  # of an emoji, which no tokenizer knows
    once = all(text.count(tag) == 1 for tag in ("<reasoning>", "</reasoning>", "<answer>", "</answer>"))
    found = TAGGED.fullmatch(text) if once else None  # the pattern takes long on many tags
    if found is None:
        raise RuleBroken("malformed tags")
    return Thought(found[1].strip(), found[2].strip())


def check(thought: Thought, rules: Rules, kind: str, instruction: str, target: str) -> None:
    """Checks an answer against the rules.

    Args:
        thought: The answer.
        rules: The limits.
        kind: What was asked for; a composed answer must not be the source's description.
        instruction: The query's words.
        target: The target's words, if it has any.

    Raises:
        RuleBroken: The first rule that it breaks.
    """
    for reason in violations(thought, rules, kind, instruction, target):
        raise RuleBroken(reason)


def violations(thought: Thought, rules: Rules, kind: str, instruction: str, target: str) -> Iterator[str]:
    """Yields the reasons not to use an answer, one for each rule that it breaks.

    Args:
        thought: The answer.
        rules: The limits.
        kind: What was asked for.
        instruction: The query's words.
        target: The target's words, if it has any.
    """
    both = f"{thought.reasoning} {thought.answer}".lower()
    phrases = read_prompts("refusals")
    if any(says(both, phrase) for phrase in phrases["refusals"].splitlines()):
        yield "refusal"
    if any(says(both, phrase) for phrase in phrases["leaks"].splitlines()):
        yield "prompt leaked"
    for name in ("reasoning", "answer"):
        least, most = getattr(rules, name)
        count = token_count(getattr(thought, name), rules.tokenizer)
        if count < least:
            yield f"{name} too short"
        if count > most:
            yield f"{name} too long"
    if repeated(pieces(both), rules):
        yield "repeats itself"
    if not is_english(thought, rules):
        yield "not English"
    wanted = salient(instruction) | salient(target)
    if rules.keyword and wanted and not wanted & set(pieces(thought.answer)):
        yield "no keyword"
    if kind == "composed" and pieces(thought.answer) == source_of(thought.reasoning):
        yield "answer describes the source"


def is_english(thought: Thought, rules: Rules) -> bool:
    """True if enough letters are ASCII, and a detector takes neither the reasoning nor the answer for another language.

    Args:
        thought: The answer.
        rules: ``latin`` and ``foreign``.
    """
    letters = [letter for letter in thought.text.lower() if letter.isalpha()]
    if letters and sum(letter.isascii() for letter in letters) < rules.latin * len(letters):
        return False
    return not any(is_foreign(text, rules.foreign) for text in (thought.reasoning, thought.answer, thought.text))


def token_count(text: str, tokenizer: Path | None = None) -> int:
    """Returns the number of tokens of a text.

    Args:
        text: The text.
        tokenizer: A checkpoint folder or tokenizer folder; by default words and punctuation marks are counted.
    """
    return len(pieces(text)) if tokenizer is None else len(read_tokenizer(tokenizer).encode(text, add_special_tokens=False))


@cache
def read_tokenizer(folder: Path) -> Any:
    """Loads the tokenizer of a folder, once.

    Raises:
        ValueError: The folder holds none.
    """
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        raise ValueError(f"plan.rules.tokenizer must be a folder with a tokenizer, {folder} has no tokenizer_config.json.")
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def check_usable(rules: Rules) -> None:
    """Loads what the rules need, before anything is asked.

    Raises:
        ValueError: The tokenizer's folder holds none, or the detector of languages is not installed.
    """
    if rules.tokenizer is not None:
        read_tokenizer(rules.tokenizer)
    if rules.foreign < 1:
        read_detector()


def says(text: str, phrase: str) -> bool:
    """True if a text holds a phrase as words of its own: "has an airplane" does not say "as an ai".

    Args:
        text: In lower case.
        phrase: In lower case.
    """
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None


def repeated(words: list[str], rules: Rules) -> bool:
    """True if an n-gram occurs too often.

    Args:
        words: Words and punctuation marks.
        rules: Length of the n-gram, and how often it may occur.
    """
    if not rules.repeats:
        return False
    counts = Counter(tuple(words[start : start + rules.ngram]) for start in range(len(words) - rules.ngram + 1))
    return any(count > rules.repeats for count in counts.values())


def salient(text: str) -> set[str]:
    """Words that carry meaning: longer than two letters and not common."""
    return {word for word in pieces(text) if len(word) > 2 and word not in COMMON}


def source_of(reasoning: str) -> list[str]:
    """The first clause of a reasoning, which describes the source."""
    first = re.split(r"[.;\n]", reasoning.strip(), maxsplit=1)[0]
    return pieces(re.sub(r"(?i)^source( state)?:", "", first))


def verdict(text: str, rules: Rules) -> None:
    """Accepts a verifier's yes of sufficient confidence.

    Args:
        text: The verifier's reply, such as ``yes 0.9`` or ``no, 80%``.
        rules: Least confidence.

    Raises:
        RuleBroken: A no, a doubtful yes, or neither.
    """
    found = re.fullmatch(r"\W*+(yes|no)\W*?[^\w.](\d*+\.\d++|\d++)\s*+(%?)\W*+", text.strip().lower())
    sure = 2.0 if found is None else float(found[2]) / (100 if found[3] else 1)
    if found is None or sure > 1:
        raise RuleBroken("verifier said neither yes nor no, or not how sure")
    if found[1] == "no":
        raise RuleBroken("verifier said no")
    if not sure > rules.confidence:
        raise RuleBroken("verifier was not sure")
