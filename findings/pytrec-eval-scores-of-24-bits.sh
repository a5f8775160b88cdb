#!/usr/bin/env bash
# pytrec_eval-terrier 0.5.11: scores are Python floats at the door and single-precision ones inside; documents whose scores differ beyond 24 bits are tied,
# and a tie is decided by the document's id, the greater one first.
#
# So the measured rank of two near scores depends on what the documents are called, though the run orders them. Nothing is printed. Scores that are large
# and near are concerned: times in seconds as scores (newest first: now some 1.8e9, where the step is 128 s), a bonus plus a small score, and float64
# cosines of near-copies close to 1. Hand over ranks (as -1, -2, ...) in place of such scores.
#
# Seen, for a relevant document scored one minute after another one: reciprocal rank 1 if it is called "b" and the other "a", 0.5 if it is called "a" and
# the other "b"; an hour after: 1 and 1. The same with 1 + 1e-9 against 1, and 1 + 1e-6. Fails once that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pytrec_eval-terrier==0.5.11 numpy==2.4.6 scipy==1.17.1
"$folder/venv/bin/python" - <<'END'
import sys
from importlib.metadata import version
import pytrec_eval

def rank(relevant, other, better, worse):
    evaluator = pytrec_eval.RelevanceEvaluator({"q": {relevant: 1, other: 0}}, {"recip_rank"})
    return evaluator.evaluate({"q": {relevant: better, other: worse}})["q"]["recip_rank"]

NOON = 1_800_000_000.0
PAIRS = {"minute": (NOON + 60, NOON), "hour": (NOON + 3600, NOON), "1e-9": (1 + 1e-9, 1.0), "1e-6": (1 + 1e-6, 1.0)}
found = {name: (rank("b", "a", *pair), rank("a", "b", *pair)) for name, pair in PAIRS.items()}
print("pytrec_eval-terrier", version("pytrec_eval-terrier"), "reciprocal rank of b above a, of a above b:", found)
sys.exit(0 if found == {"minute": (1.0, 0.5), "hour": (1.0, 1.0), "1e-9": (1.0, 0.5), "1e-6": (1.0, 1.0)} else "changed")
END
