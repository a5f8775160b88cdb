#!/usr/bin/env bash
# torchmetrics 1.9.0: a relevant document whose score is zero or less counts as irrelevant in four of the retrieval metrics, and as relevant in the others.
#
# The classes ask for "a float tensor" of scores. RetrievalMRR, RetrievalMAP, RetrievalPrecision and RetrievalRecall clear the label of each document that
# is not scored above zero before they rank; RetrievalNormalizedDCG, RetrievalHitRate and RetrievalRPrecision rank by the order alone. So cosines,
# logits, negated distances and scores that a scaler has centred give values that are too low, without a word, and the metrics of one table contradict one
# another: a perfect ranking has nDCG 1 and MRR 0. Adding a constant to all scores, which changes no rank, changes the result. The functional forms
# speak of probabilities; nothing checks for them. Map scores to above zero (a sigmoid, say, in enough precision) before these classes see them.
#
# Seen, for two documents scored (-0.1, -0.2) of which the first is relevant: MRR, MAP, precision and recall at 1 are 0; nDCG, hit rate at 1 and
# R-precision are 1; all seven are 1 for (0.9, 0.8). Negated L2 distances of a query to itself (0) and to another (-1): MRR 0 again. Fails once that has
# changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 torchmetrics==1.9.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'END'
import sys
import torch
import torchmetrics
from torchmetrics import retrieval

METRICS = {
    "MRR": retrieval.RetrievalMRR(),
    "MAP": retrieval.RetrievalMAP(),
    "precision": retrieval.RetrievalPrecision(top_k=1),
    "recall": retrieval.RetrievalRecall(top_k=1),
    "nDCG": retrieval.RetrievalNormalizedDCG(),
    "hit rate": retrieval.RetrievalHitRate(top_k=1),
    "R-precision": retrieval.RetrievalRPrecision(),
}

def measured(scores):
    given = (torch.tensor(scores), torch.tensor([1, 0]), torch.tensor([0, 0]))
    return {name: float(metric(given[0], given[1], indexes=given[2])) for name, metric in METRICS.items()}

above, below, distances = measured([0.9, 0.8]), measured([-0.1, -0.2]), measured([0.0, -1.0])
print(f"torchmetrics {torchmetrics.__version__}\nabove zero: {above}\nbelow zero: {below}\ndistances:  {distances}")
expected = {name: float(name in ("nDCG", "hit rate", "R-precision")) for name in METRICS}
sys.exit(0 if set(above.values()) == {1.0} and below == distances == expected else "changed")
END
