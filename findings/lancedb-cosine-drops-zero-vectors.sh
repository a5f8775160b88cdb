#!/usr/bin/env bash
# lancedb 0.40.0: rows whose vector is zero are in no result of a cosine search, however large the limit; a zero query has no result at all.
#
# The distance of a zero vector is a division by zero, and rows without a distance are left out of the answer; nothing is raised or logged, on writing or on
# searching. L2 and dot products return the same rows. Zero vectors are what encoders give for a text without known words or an empty one, and what a
# fill value (on_bad_vectors="fill") makes. So a "rank all" search, as evaluation does it, has fewer rows than the table, filters that select such rows alone
# return nothing, and an evaluation that needs k rows for each query fails at some of them. qdrant-client 1.20.0's local mode scores such rows 0.
#
# Seen, for three rows (1, 0), (-1, 0), (0, 0) and limit 10: L2 and dot return three, cosine two, and none for the query (0, 0); qdrant's local mode returns
# three, the zero row with score 0, above the opposite one. Fails once that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check lancedb==0.40.0 pyarrow==26.0.1 qdrant-client==1.20.0
"$folder/venv/bin/python" - "$folder/base" <<'END'
import sys
import lancedb
from qdrant_client import QdrantClient, models

VECTORS = [[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]
table = lancedb.connect(sys.argv[1]).create_table("rows", data=[{"id": id, "vector": vector} for id, vector in enumerate(VECTORS)])

def found(query, measure, where=None):
    search = table.search(query).distance_type(measure).limit(10)
    return [row["id"] for row in (search.where(where) if where else search).to_list()]

counts = {measure: len(found([1.0, 0.0], measure)) for measure in ("l2", "dot", "cosine")}
zero, chosen = found([0.0, 0.0], "cosine"), found([1.0, 0.0], "cosine", "id = 2")
peer = QdrantClient(":memory:")
peer.create_collection("rows", vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE))
peer.upsert("rows", [models.PointStruct(id=id, vector=vector) for id, vector in enumerate(VECTORS)])
scores = [(point.id, point.score) for point in peer.query_points("rows", [1.0, 0.0], limit=10).points]
print(f"lancedb {lancedb.__version__} rows {counts}, of a zero query {zero}, of the zero row alone {chosen}; qdrant {scores}")
expected = counts == {"l2": 3, "dot": 3, "cosine": 2} and zero == chosen == []
sys.exit(0 if expected and scores == [(0, 1.0), (2, 0.0), (1, -1.0)] else "changed")
END
