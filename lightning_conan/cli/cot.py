"""`conan cot`: chain-of-thought data from pairs, for `Trace`."""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from datamodules.sources.layout import Layout
from datamodules.sources.manifest import Fault
from lightning_conan.cli.common.closing import close
from lightning_conan.items import Pair
from lightning_conan.reasoning.cot import Author, Plan
from lightning_conan.reasoning.endpoint import Endpoint
from lightning_conan.reasoning.journal import Journal
from lightning_conan.terminal import Work, plural
from lightning_conan.web import without_secrets


@dataclass(frozen=True)
class CotOptions:
    """Has a teacher write what a model should reason about each query, filters it, and packs the pairs for `Trace`.

    Pairs are routed (by task, or by the teacher), the teacher is asked with a prompt for their kind, and what it says has to pass
    rules and a verifier. What fails is dropped, counted and listed in OUT/dropped.jsonl. Outcomes are noted in OUT.cot as they
    come: the same command again resumes where a killed run stopped.

    Args:
        source: A manifest (JSONL), or what --read.layout names, such as M-BEIR's.
        out: The packed folder to write; it must not exist yet.
        read: How to read the source.
        teacher: A model behind an OpenAI-compatible endpoint, or the toy world's ground truth (MANIFEST.truth.jsonl).
        endpoint: Endpoint of the teacher.
        verifier: Endpoint of the verifier; the teacher's by default.
        plan: How pairs are routed and answers filtered.
        pairs_per_shard: Pairs in one tar file.
        most_failed: Largest number of pairs that may stay without any answer; they are skipped and listed.
    """

    source: Path
    out: Path
    read: Layout = Layout()  # noqa: RUF009  # frozen
    teacher: Literal["endpoint", "toy"] = "endpoint"
    endpoint: Endpoint = Endpoint()  # noqa: RUF009  # frozen
    verifier: Endpoint | None = None
    plan: Plan = Plan()  # noqa: RUF009  # frozen
    pairs_per_shard: int = 1000
    most_failed: int = 0


def cot(options: CotOptions) -> None:
    """Asks about the pairs that no earlier run of the same command asked about, and packs those that pass.

    Raises:
        ValueError: The folder is there, the source or a setting is invalid, or no answer passes.
        OSError: More pairs than ``most_failed`` stay without an answer.
    """
    from datamodules.sources.layout import read_source
    from lightning_conan.reasoning.cot import count, taught
    from lightning_conan.reasoning.rules import check_usable

    source, out = options.source, options.out
    if out.exists():
        raise ValueError(f"{out} exists already. Choose another folder, or remove it first.")
    entries = [unreadable(source, entry) or entry for entry in read_source(source, options.read)]
    pairs, faults = [pair for pair in entries if not isinstance(pair, Fault)], [e for e in entries if isinstance(e, Fault)]
    if options.plan.by != "teacher":
        for task in {pair.task for pair in pairs}:
            options.plan.kind_of(task)
    check_usable(options.plan.rules)  # before anything is asked
    journal = open_journal(options)
    failed = asyncio.run(ask(options, pairs, journal))
    if len(failed) > options.most_failed:
        raise OSError(
            f"{len(failed)} of {len(pairs)} pairs got no answer, such as: {failed[0]}. What was answered is kept: "
            f"run the same command again, or allow it with --most_failed {len(failed)}. Where nothing was answered, look at "
            "--endpoint.url, --endpoint.model and the key in the variable that --endpoint.key names."
        )
    answered = [pair for pair in pairs if journal.knows(pair)]
    kept, dropped = taught(answered, journal.outcomes)
    if not kept:
        reasons = ", ".join(f"{number} {reason}" for reason, number in Counter(dropped.values()).most_common(3))
        first = f" The first of {len(faults)} faults: {faults[0].where}: {faults[0].reason}" if faults else ""
        raise ValueError(f"There must be an answer that passes the filters, got none of {len(answered)}: {reasons}.{first}")
    left = [pair.key for pair in pairs if not journal.knows(pair)]
    faults += [Fault(str(source), key, "sample", "no answer") for key in left]
    summary = count(kept, dropped, journal.outcomes, filter(None, map(journal.last, left)))
    counts = summary | {"faults": len(faults) - len(left), "unanswered": len(left)}
    write(out, [*faults, *kept], dropped, counts, options.pairs_per_shard)
    print_summary(out, summary, options.endpoint, options.verifier or options.endpoint)
    close("cot", [out])


def open_journal(options: CotOptions) -> Journal:
    """Outcomes of the same command so far, in OUT.cot: other settings have another file."""
    from lightning_conan.reasoning.prompts import read_prompts

    asked = {name: value for name, value in asdict(options.plan).items() if name != "under_way"}
    asked["rules"] = {name: value for name, value in asked["rules"].items() if value is not None}
    both = (options.endpoint, options.verifier)
    who = [each and (without_secrets(each.url), each.model, each.max_tokens, each.temperature) for each in both]
    source, prompts = str(options.source.resolve()), (read_prompts("cot"), read_prompts("refusals"))
    settings = [source, asked, options.teacher, who, *prompts]
    work = options.out.with_name(f"{options.out.name}.cot")
    return Journal(work / f"{sha256(json.dumps(settings, default=str).encode()).hexdigest()[:16]}.jsonl")


async def ask(options: CotOptions, pairs: Sequence[Pair], journal: Journal) -> list[str]:
    """Asks about the pairs that the journal does not know.

    Args:
        options: The verb's.
        pairs: All pairs.
        journal: Takes the outcomes.

    Returns:
        Errors of the pairs that got no answer.
    """
    from lightning_conan.reasoning.cot import ask_all

    todo = sum(not journal.knows(pair) for pair in pairs)
    async with AsyncExitStack() as stack:
        author = await make_author(stack, options)
        with Work("asking", todo, "pair", ticks=True) as work:
            return await ask_all(pairs, author, journal, work.advance, options.most_failed)


def unreadable(source: Path, entry: Pair | Fault) -> Fault | None:
    """Returns a fault for a pair with a missing media file, else None; the teacher would seem not to answer it.

    Args:
        source: The manifest, named by the fault.
        entry: A pair; None is returned for a fault.
    """
    if isinstance(entry, Pair):
        for side, item in entry.sides():
            for medium in item.media:
                if isinstance(medium.source, Path):
                    try:
                        medium.source.open("rb").close()
                    except OSError as error:
                        return Fault(str(source), entry.key, side, str(error))
    return None


async def make_author(stack: AsyncExitStack, options: CotOptions) -> Author:
    """Makes the teacher and the verifier, their connections open.

    Args:
        stack: Closes the connections.
        options: The verb's.
    """
    from lightning_conan.reasoning.endpoint import Client
    from lightning_conan.reasoning.toy_teacher import TruthTeacher

    if options.teacher == "toy":
        return Author(options.plan, TruthTeacher(options.source.with_suffix(".truth.jsonl")))
    second = await stack.enter_async_context(Client(options.verifier)) if options.verifier is not None else None
    return Author(options.plan, await stack.enter_async_context(Client(options.endpoint)), second)


def write(
    out: Path, entries: Sequence[Pair | Fault], dropped: dict[str, str], summary: dict[str, Any], pairs_per_shard: int
) -> None:
    """Writes the packed folder, with the counts and the dropped pairs beside its shards.

    Args:
        out: The packed folder to write.
        entries: Faults, and the pairs that are kept.
        dropped: Reasons by the keys of dropped pairs.
        summary: Counts, for cot.json.
        pairs_per_shard: Pairs in one tar file.
    """
    from datamodules.shards.write import write_shards

    lines = "".join(json.dumps({"key": key, "reason": reason}) + "\n" for key, reason in dropped.items())
    files = {"cot.json": json.dumps(summary, indent=2) + "\n", "dropped.jsonl": lines}
    write_shards(entries, out, pairs_per_shard, files)


def print_summary(out: Path, summary: dict[str, Any], endpoint: Endpoint, verifier: Endpoint) -> None:
    """Prints the counts of pairs, tokens and the cost.

    Args:
        out: The packed folder.
        summary: Counts.
        endpoint: The teacher's, with its prices.
        verifier: The verifier's.
    """
    parts = ", ".join(f"{summary[name]} {name}" for name in ("simple", "kept", "dropped"))
    print(f"{out}: {summary['pairs']} {plural(summary['pairs'], 'pair')}: {parts}")
    for reason, number in summary["reasons"].items():
        print(f"  {number:>6}  {reason}")
    read, written, cost = 0, 0, 0.0
    for whose, asked in {"": endpoint, "verifier_": verifier}.items():
        read_here, written_here = summary[f"{whose}prompt_tokens"], summary[f"{whose}completion_tokens"]
        read, written = read + read_here, written + written_here
        cost += (read_here * asked.prompt_price + written_here * asked.completion_price) / 1e6
    priced = f", {cost:.2f} in all" if cost else ""
    if read or written:
        print(f"tokens: {read} read, {written} written{priced}", file=sys.stderr)


def run(args: Sequence[str]) -> None:
    """Parses the options and asks."""
    from jsonargparse import auto_cli

    cot(auto_cli(CotOptions, args=list(args), prog="conan cot", as_positional=False, exit_on_error=False))
