"""`conan cot`: chain-of-thought data from pairs, for `Trace`."""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from datamodules.sources.layout import Layout
from datamodules.sources.manifest import Fault
from lightning_conan.items import Pair
from lightning_conan.reasoning.cot import Author, Plan
from lightning_conan.reasoning.endpoint import Endpoint
from lightning_conan.web import without_secrets


def cot(
    source: Path,
    out: Path,
    read: Layout = Layout(),  # noqa: B008  # frozen
    teacher: Literal["endpoint", "toy"] = "endpoint",
    endpoint: Endpoint = Endpoint(),  # noqa: B008  # frozen
    verifier: Endpoint | None = None,
    plan: Plan = Plan(),  # noqa: B008  # frozen
    pairs_per_shard: int = 1000,
    most_failed: int = 0,
) -> None:
    """Has a teacher write what a model should reason about each query, filters it, and packs the pairs for `Trace`.

    Pairs are routed (by task, or by the teacher), the teacher is asked with a prompt for their kind, and what it says has to pass
    rules and a verifier. What fails is dropped, counted and listed in OUT/dropped.jsonl. Outcomes are noted in OUT.cot as they
    come: the same command again goes on where a killed run stopped.

    Args:
        source: A manifest (JSONL), or what --read.layout names, such as M-BEIR's.
        out: The packed folder to write; it must not exist yet.
        read: How to read the source.
        teacher: A model behind an OpenAI-compatible endpoint, or the toy world's ground truth (MANIFEST.truth.jsonl).
        endpoint: The teacher's.
        verifier: The verifier's; the teacher's by default.
        plan: How pairs are routed and answers filtered.
        pairs_per_shard: Pairs in one tar file.
        most_failed: So many pairs may stay without any answer; they are left out and listed.
    """
    from tqdm import tqdm

    from datamodules.sources.layout import read_source
    from lightning_conan.reasoning.cot import ask_all, count, taught
    from lightning_conan.reasoning.journal import Journal
    from lightning_conan.reasoning.prompts import read_prompts

    if out.exists():
        raise ValueError(f"{out} exists already. Choose another folder, or remove it first.")
    entries = [unreadable(source, entry) or entry for entry in read_source(source, read)]
    pairs, faults = [pair for pair in entries if not isinstance(pair, Fault)], [e for e in entries if isinstance(e, Fault)]
    if plan.by != "teacher":
        for task in {pair.task for pair in pairs}:
            plan.kind_of(task)
    asked = {name: value for name, value in asdict(plan).items() if name != "under_way"}
    who = [each and (without_secrets(each.url), each.model, each.max_tokens, each.temperature) for each in (endpoint, verifier)]
    settings = [str(source.resolve()), asked, teacher, who, read_prompts("cot"), read_prompts("refusals")]
    work = out.with_name(f"{out.name}.cot")
    journal = Journal(work / f"{sha256(json.dumps(settings, default=str).encode()).hexdigest()[:16]}.jsonl")
    todo = sum(not journal.knows(pair) for pair in pairs)

    async def ask() -> list[str]:
        async with AsyncExitStack() as stack:
            author = await make_author(stack, source, teacher, endpoint, verifier, plan)
            with tqdm(total=todo, desc="asking", unit="pair", disable=None) as bar:
                return await ask_all(pairs, author, journal, bar.update, most_failed)

    failed = asyncio.run(ask())
    if len(failed) > most_failed:
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
    silent = [Fault(str(source), key, "sample", "no answer") for key in left]
    summary = count(kept, dropped, journal.outcomes, filter(None, map(journal.last, left)))
    write(out, kept, [*faults, *silent], dropped, summary | {"faults": len(faults), "unanswered": len(silent)}, pairs_per_shard)
    print_summary(out, summary, endpoint, verifier or endpoint)


def unreadable(source: Path, entry: Pair | Fault) -> Fault | None:
    """A pair whose media are not there, as the fault that it is: it would look like a teacher who does not answer."""
    if isinstance(entry, Pair):
        for side, item in entry.sides():
            for medium in item.media:
                if isinstance(medium.source, Path):
                    try:
                        medium.source.open("rb").close()
                    except OSError as error:
                        return Fault(str(source), entry.key, side, str(error))
    return None


async def make_author(
    stack: AsyncExitStack, source: Path, teacher: str, endpoint: Endpoint, verifier: Endpoint | None, plan: Plan
) -> Author:
    """Who asks whom, their connections open."""
    from lightning_conan.reasoning.endpoint import Client
    from lightning_conan.reasoning.toy_teacher import TruthTeacher

    if teacher == "toy":
        return Author(plan, TruthTeacher(source.with_suffix(".truth.jsonl")))
    second = await stack.enter_async_context(Client(verifier)) if verifier is not None else None
    return Author(plan, await stack.enter_async_context(Client(endpoint)), second)


def write(
    out: Path, kept: Sequence[Any], faults: Sequence[Any], dropped: dict[str, str], summary: dict[str, Any], pairs_per_shard: int
) -> None:
    """The packed folder, with the counts and what was dropped beside its shards."""
    from datamodules.shards.write import write_shards

    lines = "".join(json.dumps({"key": key, "reason": reason}) + "\n" for key, reason in dropped.items())
    files = {"cot.json": json.dumps(summary, indent=2) + "\n", "dropped.jsonl": lines}
    write_shards([*faults, *kept], out, pairs_per_shard, files)


def print_summary(out: Path, summary: dict[str, Any], endpoint: Endpoint, verifier: Endpoint) -> None:
    """What became of the pairs, and what it cost."""
    parts = ", ".join(f"{summary[name]} {name}" for name in ("simple", "kept", "dropped"))
    print(f"{out}: {summary['pairs']} pairs: {parts}")
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

    auto_cli(cot, args=list(args), prog="conan cot", as_positional=False)
