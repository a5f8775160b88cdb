#!/usr/bin/env bash
# usearch 2.26.6: an index of dtype "i8" scales every vector to unit length, whatever the metric: "ip" and "l2sq" then rank by direction alone.
#
# One expects 8 bit storage to round values. The conversion from float divides each vector by its own norm and multiplies by 127, so that lengths are gone
# before the metric sees them: the inner product of a long vector is no greater than that of a short one, and the Euclidean neighbour is the one in the same
# direction, however far. Nothing is raised; "f32" and "f16" of the same index are right. The distances are those of the stored integers as well (1 minus a
# product of about 16,000), not scaled back. So maximum inner product search (lengths that carry popularity or confidence), and any L2 search of vectors that
# are not of unit length, become cosine search once one saves memory. The metric "cos" is not concerned. Scale vectors to integers oneself and add them as int8.
#
# Seen, for rows (0.1, 0), (0.9, 0.1), (0, 0.5) and the query (0.2, 0): "ip" gives 1, 0, 2 in f32 and f16, 0, 1, 2 in i8; "l2sq" gives 0, 2, 1 and 0, 1, 2;
# and of the rows (1, 0) and (3, 0) the second is stored as about (127, 0). Fails once that has changed.
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

ROWS = np.float32([[0.1, 0], [0.9, 0.1], [0, 0.5]])
QUERY = np.float32([0.2, 0])

def filled(metric, dtype, rows):
    index = Index(ndim=2, metric=metric, dtype=dtype)
    index.add(np.arange(len(rows)), rows)
    return index

def order(metric, dtype):
    return filled(metric, dtype, ROWS).search(QUERY, 3).keys.tolist()

found = {metric: {dtype: order(metric, dtype) for dtype in ("f32", "f16", "i8")} for metric in ("ip", "l2sq", "cos")}
stored = [filled("ip", "i8", np.float32([[1, 0], [3, 0]])).get(row).tolist() for row in (0, 1)]
print(f"usearch {usearch.__version__} orders {found}\nstored for (1, 0) and (3, 0): {stored}")
expected = {metric: {"f32": right, "f16": right, "i8": [0, 1, 2]} for metric, right in (("ip", [1, 0, 2]), ("l2sq", [0, 2, 1]), ("cos", [0, 1, 2]))}
near = all(abs(first - 127) <= 1 and second == 0 for first, second in stored)
sys.exit(0 if found == expected and near else "changed")
END
