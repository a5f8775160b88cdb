"""A teacher that makes mistakes at known rates, to measure the filters of chain-of-thought data."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_conan.reasoning.answers import Reply
from lightning_conan.reasoning.endpoint import Messages
from lightning_conan.reasoning.prompts import read_prompts

Mistake = Literal["wrong", "source", "leak", "refusal", "long", "language"]
MISTAKES: tuple[Mistake, ...] = get_args(Mistake)
AGAIN = "Let me look at that once more, step by step, to be sure that nothing is missing"
MOST_WORDS = {"reasoning": 300, "answer": 80}
"""Words that a text is padded to, above the default limits of ``Rules``."""


@dataclass(frozen=True)
class Mistakes:
    """Rates of a teacher's mistakes, and of its verifier's.

    Args:
        wrong: Reasons about another pair.
        source: Concludes with what the source shows: the first clause of the reasoning.
        leak: Gives the prompt away.
        refusal: Refuses to answer.
        long: Pads its reasoning or its answer far beyond the limits.
        language: Answers in another language than English; in a third of these cases it reasons in English.
        false_yes: Share of the wrong answers, sources and refusals that the verifier accepts.
        false_no: Share of the other answers that the verifier rejects.
        seed: Seed of all choices.

    Raises:
        ValueError: A rate is outside of 0 to 1, or the teacher's add up to more than 1.
    """

    wrong: float = 0.1
    source: float = 0.05
    leak: float = 0.05
    refusal: float = 0.05
    long: float = 0.05
    language: float = 0.05
    false_yes: float = 0.1
    false_no: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        rates = {name: getattr(self, name) for name in (*MISTAKES, "false_yes", "false_no")}
        if any(not 0 <= rate <= 1 for rate in rates.values()) or sum(rates[name] for name in MISTAKES) > 1:
            raise ValueError(f"Rates of mistakes must be 0 to 1, and those of the teacher at most 1 together, got {rates}.")


class FaultyTeacher:
    """Answers from ground truth, but for some pairs with a mistake; which one depends on the seed and the pair's key alone.

    Args:
        truths: ``kind``, ``reasoning`` and ``answer`` of each pair, by key.
        mistakes: Rates of mistakes.

    Raises:
        ValueError: There are fewer than two pairs: a wrong answer is another pair's.
    """

    def __init__(self, truths: Mapping[str, Mapping[str, str]], mistakes: Mistakes) -> None:
        if len(truths) < 2:
            raise ValueError(f"A teacher that errs needs two pairs or more, got {len(truths)}. Give more pairs.")
        self.truths, self.mistakes, self.keys = truths, mistakes, sorted(truths)
        self.phrases = {name: text.splitlines() for name, text in read_prompts("mistakes").items()}

    def planted(self, key: str) -> Mistake | None:
        """Returns the mistake about a pair, if any."""
        number = self.random(key, "mistake").random()
        for mistake in MISTAKES:
            number -= getattr(self.mistakes, mistake)
            if number < 0:
                return mistake
        return None

    async def ask(self, key: str, question: str, messages: Messages) -> Reply:
        """Answers a question about a pair.

        Args:
            key: Key of the pair.
            question: ``route``, ``verify`` or a kind of reasoning.
            messages: Unused.
        """
        if question == "route":
            return Reply(self.truths[key]["kind"])
        mistake = self.planted(key)
        if question == "verify":
            false = mistake in ("wrong", "source", "refusal")
            errs = self.random(key, "verify").random() < (self.mistakes.false_yes if false else self.mistakes.false_no)
            return Reply("yes 0.9" if false == errs else "no 0.9")
        reasoning, answer = self.answer(key, mistake)
        return Reply(f"<reasoning>{reasoning}</reasoning><answer>{answer}</answer>")

    def answer(self, key: str, mistake: Mistake | None) -> tuple[str, str]:
        """Returns a reasoning and an answer about a pair.

        Args:
            key: Key of the pair.
            mistake: The mistake to make, if any.
        """
        rng, truth = self.random(key, "answer"), self.truths[key]
        reasoning, answer = truth["reasoning"], truth["answer"]
        if mistake == "wrong":
            other = self.truths[rng.choice([name for name in rng.sample(self.keys, 2) if name != key])]
            return other["reasoning"], other["answer"]
        if mistake == "source":
            return reasoning, reasoning.split(";")[0]
        if mistake == "refusal":
            refusal = rng.choice(self.phrases["refusals"])
            return (refusal, answer) if rng.random() < 0.5 else (refusal, refusal)
        if mistake == "leak":
            leak = rng.choice(self.phrases["leaks"])
            return rng.choice([f"{leak} {reasoning}", f"{reasoning}. {leak}"]), answer
        if mistake == "language":
            first, second = rng.choice(self.phrases["languages"]).split("|")
            return (first, second) if rng.random() < 2 / 3 else (reasoning, second)
        if mistake == "long":
            side = rng.choice([*MOST_WORDS])
            return (padded(reasoning, side), answer) if side == "reasoning" else (reasoning, padded(answer, side))
        return reasoning, answer

    def random(self, key: str, what: str) -> random.Random:
        """Returns random numbers of a pair.

        Args:
            key: Its key.
            what: Choice that they are for.
        """
        return random.Random(f"{self.mistakes.seed} {key} {what}")


def padded(text: str, side: str) -> str:
    """Repeats a text until it is too long.

    Args:
        text: The text.
        side: ``reasoning`` or ``answer``.
    """
    parts: Sequence[str] = [text]
    while sum(len(part.split()) for part in parts) < MOST_WORDS[side]:
        parts = [*parts, AGAIN, text]
    return ". ".join(parts)
