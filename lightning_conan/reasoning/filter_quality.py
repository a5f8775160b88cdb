"""Precision and recall of the filters of chain-of-thought data, on answers whose mistakes are known."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lightning_conan.items import Pair
from lightning_conan.reasoning.cot import Plan, words_of
from lightning_conan.reasoning.faulty_teacher import FaultyTeacher, Mistake
from lightning_conan.reasoning.rules import RuleBroken, parse, verdict, violations

FILTERS: dict[str, tuple[Mistake | None, tuple[str, ...]]] = {
    "refusals": ("refusal", ("refusal",)),
    "leaked prompts": ("leak", ("prompt leaked",)),
    "lengths": ("long", ("reasoning too short", "reasoning too long", "answer too short", "answer too long")),
    "repetition": ("long", ("repeats itself",)),
    "language": ("language", ("not English",)),
    "keyword": ("wrong", ("no keyword",)),
    "answer is the source": ("source", ("answer describes the source",)),
    "verifier": ("wrong", ("verifier said no", "verifier was not sure")),
}
"""The mistake that a filter is for, and its reasons."""


@dataclass(frozen=True)
class Quality:
    """Result of one filter, or of all.

    Args:
        planted: Answers with the mistake that it is for.
        found: Those of them that it drops.
        dropped: All answers that it drops.
        bad: Those of them that hold any mistake.
    """

    planted: int
    found: int
    dropped: int
    bad: int

    @property
    def precision(self) -> float | None:
        """Share of the dropped answers that hold a mistake; None if it drops nothing."""
        return self.bad / self.dropped if self.dropped else None

    @property
    def recall(self) -> float | None:
        """Share of the answers with its mistake that it drops; None if there is none."""
        return self.found / self.planted if self.planted else None


async def answer_reasons(pair: Pair, teacher: FaultyTeacher, plan: Plan) -> set[str]:
    """Asks about a pair, and returns every reason to drop the answer, each filter looking at it by itself.

    Args:
        pair: The pair.
        teacher: Answers, and verifies.
        plan: Kinds of tasks, and the rules.
    """
    kind = plan.kind_of(pair.task)
    reply = await teacher.ask(pair.key, kind, [])
    asked = words_of(pair.query) or pair.query.instruction or ""
    try:
        found = set(violations(parse(reply.text), plan.rules, kind, asked, words_of(pair.target)))
    except RuleBroken as broken:
        found = {str(broken)}
    if plan.verify:
        try:
            verdict((await teacher.ask(pair.key, "verify", [])).text, plan.rules)
        except RuleBroken as broken:
            found.add(str(broken))
    return found


async def measure_filters(
    pairs: Sequence[Pair], teacher: FaultyTeacher, plan: Plan
) -> tuple[dict[str, Quality], dict[str, Quality]]:
    """Measures each filter alone and all together.

    Args:
        pairs: Pairs to ask about.
        teacher: Knows which mistake it made about each.
        plan: Kinds of tasks, and the rules.

    Returns:
        By filter that the plan uses, and ``all filters`` for any mistake; and all filters by mistake.
    """
    off = {
        name
        for name, on in (("repetition", plan.rules.repeats), ("keyword", plan.rules.keyword), ("verifier", plan.verify))
        if not on
    }
    reasons = {pair.key: await answer_reasons(pair, teacher, plan) for pair in pairs}
    planted = {key: teacher.planted(key) for key in reasons}
    by_filter = {
        name: quality(planted, {key for key, found in reasons.items() if found & {*of}}, {mistake})
        for name, (mistake, of) in FILTERS.items()
        if name not in off
    }
    dropped = {key for key, found in reasons.items() if found}
    kinds = {mistake for mistake in planted.values() if mistake}
    by_filter["all filters"] = quality(planted, dropped, kinds)
    return by_filter, {kind: quality(planted, dropped, {kind}) for kind in sorted(kinds)}


def quality(planted: Mapping[str, Mistake | None], dropped: set[str], mistakes: Collection[Mistake | None]) -> Quality:
    """Counts what a filter drops.

    Args:
        planted: Mistake of each answer, by key.
        dropped: Keys of the dropped answers.
        mistakes: What the filter is for.
    """
    own = {key for key, mistake in planted.items() if mistake in mistakes}
    return Quality(len(own), len(own & dropped), len(dropped), sum(planted[key] is not None for key in dropped))
