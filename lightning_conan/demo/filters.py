"""`conan demo --study filters`: precision and recall of the filters of chain-of-thought data, where mistakes are known."""

import asyncio
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning_conan.reasoning.cot import Plan
from lightning_conan.reasoning.faulty_teacher import FaultyTeacher, Mistakes
from lightning_conan.reasoning.filter_quality import FILTERS, Quality, measure_filters
from lightning_conan.reasoning.rules import Rules

Measured = tuple[dict[str, Quality], dict[str, Quality]]
"""Results by filter, and by mistake."""
RULES = Rules(reasoning=(2, 256), repeats=0, keyword=False)
"""Those of the demo, and a detector of languages: a scene that hardly changes repeats its words, and the words of a change are
not those of a picture. Tokens are counted by the tiny model's tokenizer."""


def study_filters(seeds: Sequence[int], pairs: int, out: Path) -> str:
    """Measures the filters on composed queries of the toy world, and writes ``filters.json`` and ``filters.md``.

    Args:
        seeds: Seeds of the pairs and of the mistakes.
        pairs: Pairs a seed.
        out: Folder of the files.

    Returns:
        The text to print.
    """
    from lightning_conan.embedder import Provenance, save_folder, tiny_embedder
    from lightning_conan.reasoning.rules import check_usable

    with TemporaryDirectory() as root:
        rules = replace(RULES, tokenizer=save_folder(Path(root) / "tiny", *tiny_embedder(), Provenance("base")))
        check_usable(rules)
        found = {str(seed): measure(seed, pairs, rules) for seed in seeds}
    records = {seed: [{name: asdict(value) for name, value in part.items()} for part in parts] for seed, parts in found.items()}
    (out / "filters.json").write_text(json.dumps(records, indent=2) + "\n")
    rates = ", ".join(f"{name} {rate:.0%}" for name, rate in asdict(Mistakes()).items() if name != "seed")
    said = f"{pairs} pairs, mean and standard deviation over seeds {', '.join(found)}; {rates}."
    text = f"{filter_table(found)}\n\n{mistake_table(found)}\n\n{said}\n"
    (out / "filters.md").write_text(text)
    return f"{text}\n{out / 'filters'}.json holds each seed's counts."


def measure(seed: int, pairs: int, rules: Rules) -> Measured:
    """Measures the filters on one seed's pairs.

    Args:
        seed: Of pairs and mistakes.
        pairs: Their number.
        rules: Limits of the filters.
    """
    from datamodules.toy_world.composed import draw_composed

    drawn, truths = draw_composed("composed", pairs, f"{seed} filters")
    teacher = FaultyTeacher({key: asdict(truth) for key, truth in truths.items()}, Mistakes(seed=seed))
    return asyncio.run(measure_filters(drawn, teacher, Plan(rules=rules)))


def filter_table(found: Mapping[str, Measured]) -> str:
    """Formats each filter's counts, precision and recall as Markdown."""
    lines = ["| filter | for | answers with it | dropped | precision, % | recall, % |", "|---|---|---|---|---|---|"]
    for name in next(iter(found.values()))[0]:
        rows = [by_filter[name] for by_filter, _ in found.values()]
        mistake = FILTERS[name][0] if name in FILTERS else "any mistake"
        counts = [f"{statistics.mean(values):.0f}" for values in ([row.planted for row in rows], [row.dropped for row in rows])]
        cells = [str(mistake), *counts, spread([row.precision for row in rows]), spread([row.recall for row in rows])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def mistake_table(found: Mapping[str, Measured]) -> str:
    """Formats the share of each mistake that all filters let through as Markdown."""
    lines = ["| mistake | answers with it | let through, % |", "|---|---|---|"]
    for name in sorted({name for _, by_mistake in found.values() for name in by_mistake}):
        rows = [by_mistake[name] for _, by_mistake in found.values() if name in by_mistake]
        passed = [None if row.recall is None else 1 - row.recall for row in rows]
        lines.append(f"| {name} | {statistics.mean(row.planted for row in rows):.0f} | {spread(passed)} |")
    return "\n".join(lines)


def spread(shares: Sequence[float | None]) -> str:
    """Formats the mean and standard deviation of shares in per cent; a dash if there is none."""
    known = [100 * share for share in shares if share is not None]
    if not known:
        return "-"
    return f"{statistics.mean(known):.1f} ± {statistics.stdev(known) if len(known) > 1 else 0:.1f}"
