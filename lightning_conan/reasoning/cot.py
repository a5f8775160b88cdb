"""Chain-of-thought data: route each pair, ask a teacher, filter the answers (TRACE, arXiv 2603.02929)."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, Literal

import msgspec

from lightning_conan.items import Item, Pair
from lightning_conan.reasoning.answers import NoAnswerError, Reply
from lightning_conan.reasoning.endpoint import Messages, Teacher, messages_of
from lightning_conan.reasoning.journal import KINDS, TOKENS, Journal, Kind, Outcome
from lightning_conan.reasoning.prompts import read_prompts
from lightning_conan.reasoning.rules import RuleBroken, Rules, Thought, check, parse, pieces, verdict

Spent = list[tuple[str, Reply]]
"""Questions, and the replies to them."""


@dataclass(frozen=True)
class Plan:
    """Routing of pairs, and filtering of answers.

    Args:
        kinds: Kind of reasoning by prefix of the task's name; those of the papers' data sets are known.
        by: ``rule`` uses the task's kind, ``teacher`` asks for each pair, ``always`` reasons about all (simple ones as visual).
        rules: Limits that an answer must keep.
        verify: True to ask a second question, about the answer's correctness.
        under_way: Pairs that are worked on at the same time.
    """

    kinds: Mapping[str, Kind] = field(default_factory=dict)
    by: Literal["rule", "teacher", "always"] = "rule"
    rules: Rules = Rules()  # noqa: RUF009  # frozen
    verify: bool = True
    under_way: int = 64

    def kind_of(self, task: str) -> Kind:
        """Kind of reasoning that the pairs of a task need, by the longest matching prefix.

        Raises:
            ValueError: Nobody said so.
        """
        known: dict[str, Any] = {**read_prompts("routes"), **self.kinds}
        found = [name for name in known if task.removeprefix("mbeir_").startswith(name) or task.startswith(name)]
        if not found:
            raise ValueError(
                f"Every task needs a kind, one of {list(KINDS)}, got none for {task!r}. "
                f"Say --plan.kinds '{{{task}: composed}}', or --plan.by teacher."
            )
        kind = known[max(found, key=len)]
        if kind not in KINDS:
            raise ValueError(f"A kind must be one of {list(KINDS)}, got {kind!r} for {task!r}.")
        return kind  # type: ignore[no-any-return]


def words_of(item: Item) -> str:
    """An item's texts."""
    return " ".join(part for part in item.parts if isinstance(part, str))


def cost_of(spent: Spent) -> dict[str, Any]:
    """Tokens of all answers, by the names of ``TOKENS``."""
    cost = dict.fromkeys(TOKENS, 0)
    for name, reply in spent:
        whose = "verifier_" if name == "verify" else ""
        cost[f"{whose}prompt_tokens"] += reply.prompt_tokens
        cost[f"{whose}completion_tokens"] += reply.completion_tokens
    return cost


class Author:
    """Asks a teacher about pairs, and filters the answers.

    Args:
        plan: Routing and filters.
        teacher: Answers the questions.
        verifier: Checks the answers; the teacher itself by default.
    """

    def __init__(self, plan: Plan, teacher: Teacher, verifier: Teacher | None = None) -> None:
        self.plan, self.teacher, self.verifier = plan, teacher, verifier or teacher
        self.prompts = read_prompts("cot")

    async def __call__(self, pair: Pair, spent: Spent) -> Outcome:
        """Asks about a pair, and returns its outcome.

        Args:
            pair: The pair.
            spent: Receives the questions and replies, also if it raises.

        Raises:
            OSError: Nobody answered.
        """
        kind: Kind = "visual"
        try:
            kind = await self.route(pair, spent)
            if kind == "simple":
                return Outcome(pair.key, kind, **cost_of(spent))
            thought = await self.think(pair, kind, spent)
        except RuleBroken as broken:
            return Outcome(pair.key, kind, reason=str(broken), **cost_of(spent))
        found = Outcome(pair.key, kind, reasoning=thought.reasoning, answer=thought.answer, verified=self.plan.verify)
        return replace(found, **cost_of(spent))

    async def route(self, pair: Pair, spent: Spent) -> Kind:
        """Chooses the kind of reasoning for a pair.

        Args:
            pair: The pair.
            spent: Receives the question and its reply.
        """
        if self.plan.by == "rule":
            return self.plan.kind_of(pair.task)
        if self.plan.by == "always":
            kind = self.plan.kind_of(pair.task)
            return "visual" if kind == "simple" else kind
        reply = await self.question(self.teacher, "route", pair, spent)
        said = pieces(reply.text)
        kinds = [kind for kind in KINDS if kind in said]
        if len(kinds) != 1:
            raise RuleBroken("teacher chose no route")
        return kinds[0]

    async def think(self, pair: Pair, kind: Kind, spent: Spent) -> Thought:
        """Asks for an answer that passes every filter.

        Args:
            pair: The pair.
            kind: Kind of reasoning; not ``simple``.
            spent: Receives the questions and replies.

        Raises:
            RuleBroken: The answer was cut off, breaks a rule, or the verifier refused it.
        """
        reply = await self.question(self.teacher, kind, pair, spent)
        if not reply.finished:
            raise RuleBroken("answer was cut off")
        thought = parse(reply.text)
        asked = words_of(pair.query) or pair.query.instruction or ""
        check(thought, self.plan.rules, kind, asked, words_of(pair.target))
        if self.plan.verify:
            said = await self.question(
                self.verifier, "verify", pair, spent, {"reasoning": thought.reasoning, "answer": thought.answer}
            )
            verdict(said.text, self.plan.rules)
        return thought

    async def question(self, who: Teacher, name: str, pair: Pair, spent: Spent, more: Mapping[str, str] | None = None) -> Reply:
        """Asks one question about a pair.

        Args:
            who: The teacher or the verifier.
            name: Name of the prompt in ``prompts/cot.yaml``.
            pair: The pair.
            spent: Receives the question and its reply.
            more: Further fields of the prompt, by name.

        Raises:
            RuleBroken: It cannot be asked, or its answer was withheld.
            OSError: Nobody answered.
        """
        fields = {"instruction": pair.query.instruction or words_of(pair.query) or "find what belongs to it", **(more or {})}
        fields["target"] = words_of(pair.target) or "the last picture below"
        text = self.prompts[name]
        for field_name, value in fields.items():  # not format(): what users wrote may hold braces
            text = text.replace(f"{{{field_name}}}", value)
        shown = [] if name == "route" else pair.target.media
        try:
            messages: Messages = messages_of(Item((*pair.query.parts, text, *shown)))
        except ValueError as error:
            raise RuleBroken("a medium that endpoints do not take") from error
        try:
            reply = await who.ask(pair.key, name, messages)
        except NoAnswerError as error:
            spent.append((name, error.cost))
            raise
        spent.append((name, reply))
        if reply.withheld:
            raise RuleBroken(reply.withheld)
        return reply


async def ask_all(
    pairs: Iterable[Pair], author: Author, journal: Journal, tick: Callable[[], Any], most_failed: int = 0
) -> list[str]:
    """Asks about every pair that the journal does not know, some at the same time; ends once more than ``most_failed`` failed.

    Args:
        pairs: The pairs.
        author: Asks about one pair.
        journal: Knows earlier outcomes, and receives new ones.
        tick: Called after each pair, for a progress bar.
        most_failed: Failures to tolerate.

    Returns:
        Messages of the failures, which a later run asks about again.
    """
    failed: list[str] = []
    todo = (pair for pair in pairs if not journal.knows(pair))

    async def one(pair: Pair) -> None:
        spent: Spent = []
        try:
            found = replace(await author(pair, spent), content=journal.content(pair))
        except BaseException as error:  # also where the run is stopped
            paid = cost_of(spent)
            if any(paid.values()):
                journal.add(Outcome(pair.key, "visual", failed=str(error) or type(error).__name__, **paid))
            if not isinstance(error, OSError):
                raise
            failed.append(str(error))
        else:
            journal.add(found)
        tick()

    with journal:
        async for _ in spread(
            (one(pair) for pair in takewhile(lambda _: len(failed) <= most_failed, todo)), author.plan.under_way
        ):
            pass
    return failed


async def spread(jobs: Iterator[Any], under_way: int) -> AsyncIterator[Any]:
    """Runs jobs as they are drawn, and yields each result as it comes.

    Args:
        jobs: Coroutines; one is drawn when it can start.
        under_way: Number of jobs that run at the same time.
    """
    running: set[asyncio.Future[Any]] = set()
    try:
        for job in jobs:
            running.add(asyncio.ensure_future(job))
            if len(running) >= under_way:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        for task in asyncio.as_completed(running):
            yield await task
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)  # they may have something to note


def taught(pairs: Iterable[Pair], outcomes: Mapping[str, Outcome]) -> tuple[list[Pair], dict[str, str]]:
    """Adds the reasoning to pairs; of equal texts only the first stays.

    Args:
        pairs: The pairs.
        outcomes: Outcome of each, by key.

    Returns:
        The pairs to train on, and for each dropped key the reason.
    """
    kept: list[Pair] = []
    dropped: dict[str, str] = {}
    seen: set[tuple[str, ...]] = set()
    for pair in pairs:
        outcome = outcomes[pair.key]
        if outcome.name == "simple":
            kept.append(msgspec.structs.replace(pair, reasoning=""))
            continue
        text = Thought(outcome.reasoning, outcome.answer).text
        reason = outcome.reason or ("duplicate" if tuple(pieces(text)) in seen else "")
        if reason:
            dropped[pair.key] = reason
            continue
        seen.add(tuple(pieces(text)))
        kept.append(msgspec.structs.replace(pair, reasoning=text))
    return kept, dropped


def count(
    pairs: Sequence[Pair], dropped: Mapping[str, str], outcomes: Mapping[str, Outcome], unanswered: Iterable[Outcome] = ()
) -> dict[str, Any]:
    """Counts outcomes: simple, kept and dropped add up to all.

    Args:
        pairs: Pairs that were kept.
        dropped: Reason of each dropped pair, by key.
        outcomes: All outcomes, by key.
        unanswered: Failures, whose tokens count too.
    """
    keys = {pair.key for pair in pairs} | set(dropped)
    reasoned = sum(bool(pair.reasoning) for pair in pairs)
    return {
        "pairs": len(keys),
        "simple": len(pairs) - reasoned,
        "kept": reasoned,
        "dropped": len(dropped),
        "reasons": dict(Counter(dropped.values()).most_common()),
        "kinds": dict(Counter(outcomes[key].kind for key in keys)),
        **{name: sum(getattr(outcome, name) for outcome in (*map(outcomes.__getitem__, keys), *unanswered)) for name in TOKENS},
    }
