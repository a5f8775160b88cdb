"""The demo's report: numbers as JSON, a table in Markdown, a page with plots."""

import json
from pathlib import Path
from typing import Any

from lightning_conan.cli.common.pair_sets import read_pairs, read_sets
from lightning_conan.demo.compute import compute_cells, compute_of
from lightning_conan.demo.found import examples
from lightning_conan.demo.page import page
from lightning_conan.demo.trace import DEPTHS, TASKS, collect_trace, trace_table
from lightning_conan.drift import DriftReport, measure_drift
from lightning_conan.items import Modality

STATES = ("base", "image", "video", "document", "audio", "fused", "recovered", "final")
MODALITIES: tuple[Modality, ...] = ("image", "video", "document", "audio")
KEPT = ("recall@1", "recall@5", "recall@10", "ndcg@10", "mrr", "forth/recall@1", "back/recall@1")
ROWS = {
    "base": "base",
    "image": "image specialist",
    "video": "video specialist",
    "document": "document specialist",
    "audio": "audio specialist",
    "fused": "direct fusion",
    "recovered": "+ projector recovery",
    "final": "+ rehearsal (full)",
}

COUNTED = "Steps and TFLOP are those of all stages since the base; how they are counted: callbacks.ComputeCount."


def collect(out: Path, seconds: dict[str, float], seed: int) -> dict[str, Any]:
    """Collects what the report says from the demo's output folder; measures the drift.

    Args:
        out: The output folder.
        seconds: Time of each step.
        seed: Of the run.

    Returns:
        The content of ``report.json``; its ``checks`` are still empty.
    """
    stages = {}
    for state in STATES:
        scores = json.loads((out / "scores" / f"{state}.json").read_text())
        stages[state] = {modality: {name: scores[modality][name] for name in KEPT} for modality in MODALITIES}
    drift = drift_of(out)
    fusion = json.loads((out / "fused" / "fusion.json").read_text())
    return {
        "seed": seed,
        "stages": stages,
        "compute": {state: compute_of(out, state) for state in STATES},
        "fusion": {name: fusion[name] for name in ("alphas", "norms", "cosines")},
        "drift": drift.layers,
        "drift_by_step": {name: json.loads((out / "work" / name / "drift.json").read_text()) for name in ("recovered", "final")},
        "verdicts": {name: verdict.to_dict() for name, verdict in drift.verdicts.items()},
        "visual_embeddings_identical": visual_embeddings_identical(out),
        "trace": collect_trace(out),
        "checks": {},
        "seconds": seconds,
    }


def drift_of(out: Path) -> DriftReport:
    """Measures the drift of every modality on its diagnostic pairs."""
    sets = read_sets({name: out / "packed" / f"{name}.diagnostic" for name in MODALITIES}, out / "audio", 256)
    states = {name: out / name for name in ("fused", "recovered", "final")}
    return measure_drift({name: out / name for name in MODALITIES}, states, sets)


def visual_embeddings_identical(out: Path, count: int = 64) -> bool:
    """True if recovery left the embeddings of visual queries unchanged, bit for bit.

    Args:
        out: The demo's output folder.
        count: Test queries of each modality that are compared.
    """
    import torch

    from lightning_conan.embedder import load_folder

    fused, processor, _ = load_folder(out / "fused")
    recovered, _, _ = load_folder(out / "recovered")
    with torch.no_grad():
        for modality in ("image", "video", "document"):
            items = [processor(pair.query) for pair in read_pairs(out / "packed" / f"{modality}.test", count)]
            if not torch.equal(fused.embed(items), recovered.embed(items)):
                return False
    return True


def checks(report: dict[str, Any]) -> dict[str, bool]:
    """Compares a run with the paper's claims."""
    stages, found = report["stages"], {}

    def recall(state: str, modality: str) -> float:
        return float(stages[state][modality]["recall@1"])

    for modality in MODALITIES:
        own, base = recall(modality, modality), recall("base", modality)
        found[f"{modality} specialist scores at least 10 points above the base, and at least 60"] = own >= base + 10 and own >= 60
        found[f"{modality} keeps at least 92 % of its specialist's score after rehearsal"] = (
            recall("final", modality) >= 0.92 * own
        )
    audio = recall("audio", "audio")
    found["audio falls by at least 20 % at fusion"] = recall("fused", "audio") <= 0.8 * audio
    found["recovery brings audio to at least 95 % of its specialist"] = recall("recovered", "audio") >= 0.95 * audio
    same = all(stages["fused"][name] == stages["recovered"][name] for name in ("image", "video", "document"))
    found["recovery leaves every visual score and embedding unchanged"] = same and report["visual_embeddings_identical"]
    return found | trace_checks(report["trace"])


def trace_checks(found: dict[str, Any]) -> dict[str, bool]:
    """Compares a run with TRACE's claims."""
    plain, trace = found["trace_plain"], found["trace"]
    gain = {(task, k): trace[task][f"forth/recall@{k}"] - plain[task][f"forth/recall@{k}"] for task in TASKS for k in DEPTHS}
    return {
        "TRACE: at least 5 points above the plain embedder on composed queries": gain["composed", 1] >= 5,
        "TRACE: not below it at recall@5 and @10 either": min(gain["composed", 5], gain["composed", 10]) >= 0,
        "TRACE: at most 1 point below it on simple ones": min(gain["simple", k] for k in DEPTHS) >= -1,
        "TRACE: at least 90 % of simple queries are embedded directly": trace["simple"]["reasoned"] <= 10,
        "TRACE: at least 60 % of composed queries are reasoned about": trace["composed"]["reasoned"] >= 60,
    }


def table(report: dict[str, Any]) -> str:
    """Formats recall@1 of every state on every modality, and the compute, as Markdown (Table 3 of the paper, in small)."""
    lines = ["| recall@1, % | image | video | document | audio | steps | TFLOP |", "|---|---|---|---|---|---|---|"]
    for state, label in ROWS.items():
        cells = [f"{report['stages'][state][modality]['recall@1']:.1f}" for modality in MODALITIES]
        lines.append(f"| {label} | {' | '.join([*cells, *compute_cells(report['compute'][state])])} |")
    return "\n".join(lines)


def verdicts(report: dict[str, Any]) -> str:
    """Formats the checks as a Markdown list; a shortened demo trains too little to pass them."""
    rows = (f"- {'passed' if held else 'NOT PASSED'}: {what}" for what, held in report["checks"].items())
    return "\n".join(("Criteria, which hold for the full demo only (3,072 pairs, `--steps_scale 1`):", "", *rows))


def write_report(out: Path, seconds: dict[str, float], seed: int) -> str:
    """Writes ``report.json``, ``report.md`` and ``report.html``, and returns the text to print.

    Args:
        out: The demo's output folder; its stages have been scored.
        seconds: Time of each step.
        seed: Of the run.
    """
    report = collect(out, seconds, seed)
    report["checks"] = checks(report)
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    total = sum(seconds.values())
    tables = f"{table(report)}\n\n{trace_table(report['trace'])}"
    tables += f"\n\n{COUNTED}"
    summary = f"{tables}\n\n{verdicts(report)}\n\n{total:.0f} seconds in all.\n"
    (out / "report.md").write_text(f"# Conan-embedding-v3 and TRACE in small\n\n{summary}")
    (out / "report.html").write_text(page(report, ROWS, examples(out, MODALITIES)), encoding="utf-8")
    return f"{summary}\nThe page with the plots: {out / 'report.html'}"
