#!/usr/bin/env bash
# duckdb 2.0.1: a row whose vector is zero is the best match of every query by array_cosine_similarity, and passes every lower bound.
#
# The similarity with a zero vector is NaN (elsewhere 0, or an error), and DuckDB orders NaN above all numbers. So
# `ORDER BY array_cosine_similarity(...) DESC LIMIT k` begins with the zero rows, `max_by` returns one, `WHERE similarity > 0.5` lets them through, and avg()
# of a column of similarities is NaN. NULLS LAST does not help, NaN being no NULL. Sorting by array_cosine_distance, ascending, puts the same rows
# last: the two forms of one search, which one takes for equal, differ. Zero vectors stand for empty texts and failed decodings in many tables of embeddings.
# Filter with NOT isnan(...), or refuse zero vectors when writing.
#
# Seen, for rows 1 (1, 0), 2 (-1, 0), 3 (0, 0) and the query (1, 0): by similarity 3, 1, 2, by distance 1, 2, 3; max_by gives 3; above 0.5 are 1 and 3; NULLS
# LAST gives 3; the mean is NaN. Fails once that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check duckdb==2.0.1
"$folder/venv/bin/python" - <<'END'
import math
import sys
import duckdb

base = duckdb.connect()
base.execute("CREATE TABLE rows AS SELECT * FROM (VALUES (1, [1, 0]::FLOAT[2]), (2, [-1, 0]::FLOAT[2]), (3, [0, 0]::FLOAT[2])) AS t(id, v)")
SIMILARITY, DISTANCE = ("array_cosine_{}(v, [1, 0]::FLOAT[2])".format(kind) for kind in ("similarity", "distance"))

def column(query):
    return [row[0] for row in base.execute(query).fetchall()]

found = {
    "by similarity": column(f"SELECT id FROM rows ORDER BY {SIMILARITY} DESC"),
    "by distance": column(f"SELECT id FROM rows ORDER BY {DISTANCE}"),
    "max_by": column(f"SELECT max_by(id, {SIMILARITY}) FROM rows"),
    "above 0.5": sorted(column(f"SELECT id FROM rows WHERE {SIMILARITY} > 0.5")),
    "nulls last": column(f"SELECT id FROM rows ORDER BY {SIMILARITY} DESC NULLS LAST LIMIT 1"),
    "not isnan": column(f"SELECT id FROM rows WHERE NOT isnan({SIMILARITY}) ORDER BY {SIMILARITY} DESC"),
}
mean = column(f"SELECT avg({SIMILARITY}) FROM rows")[0]
print("duckdb", duckdb.__version__, found, "mean", mean)
expected = dict(zip(found, ([3, 1, 2], [1, 2, 3], [3], [1, 3], [3], [1, 2])))
sys.exit(0 if found == expected and math.isnan(mean) else "changed")
END
