#!/usr/bin/env bash
# usearch 2.26.6: a batch search that finds fewer than k rows fills `keys` with 0, a key as good as any; recall counts it as found.
#
# For one query the result has as many keys as were found. For a matrix of queries the result is rectangular; the places that are left hold key 0 and the
# distance NaN, and only `counts` tells. So `labels[matches.keys]` names the first document where there is none, which no check of bounds notices
# (faiss pads with -1 and so fails or stands out), and the method mean_recall of the same object, which compares the keys, calls document 0 found, be it not
# even in the index. A small index, k above the number of rows, or rows that were removed are enough. Take to_list(), iterate over the matches (both obey
# counts), or keep 0 out of the keys.
#
# Seen, for keys 5 and 8 and k = 4: one query has 2 keys; two queries have [5, 8, 0, 0] and [8, 5, 0, 0], counts of 2, and a recall of 1.0 for expected
# documents (0, 0), though no key is 0, and 0.0 for (99, 99); iterating gives [5, 8] and [8, 5]. Fails once that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check usearch==2.26.6 numpy==2.4.6
"$folder/venv/bin/python" - <<'END'
import sys
import numpy as np
import usearch
from usearch.index import Index

rows = np.float32([[0, 1], [1, 0]])
index = Index(ndim=2, metric="l2sq", dtype="f32")
index.add(np.array([5, 8]), rows)
single, batch = index.search(rows[0], 4), index.search(rows, 4)
found = {
    "one query": single.keys.tolist(),
    "two queries": batch.keys.tolist(),
    "counts": [int(count) for count in batch.counts],
    "iterated": [match.keys.tolist() for match in batch],
    "recall of 0": float(batch.mean_recall(np.array([0, 0]))),
    "recall of 99": float(batch.mean_recall(np.array([99, 99]))),
}
print("usearch", usearch.__version__, found, "0 in the index:", 0 in index, "distances", batch.distances.tolist())
right = ([5, 8], [[5, 8, 0, 0], [8, 5, 0, 0]], [2, 2], [[5, 8], [8, 5]], 1.0, 0.0)
sys.exit(0 if tuple(found.values()) == right and 0 not in index and np.isnan(batch.distances[:, 2:]).all() else "changed")
END
