#!/usr/bin/env bash
# faiss-cpu 1.15.1: of documents with equal inner products, which one IndexFlatIP puts first depends on k; IndexFlatL2 keeps them in the order of adding.
#
# The exact search keeps the k first of a tie and returns them in reverse order, so that the first hit of k=1, 5 and 10 are three different documents, and a
# longer list does not begin with the shorter one. IndexFlatL2 breaks ties by the smaller number, at any k: the same unit vectors, ranked alike by both
# measures, come back in opposite orders. Copies of a passage, of a boilerplate page or of a stock picture make such ties in nearly every corpus, and so do
# embeddings of few bits. MRR, nDCG and the hit rate at 1 then change with the k that was searched, and a page-wise result (k=10, then k=20) repeats
# some documents and loses others. Sort by (score, number) after the search.
#
# Seen, for one query and ten equal unit vectors: the first hit is 0, 4 and 9 for k = 1, 5 and 10 by IndexFlatIP, 0 each time by IndexFlatL2; k=5 gives
# [4, 3, 2, 1, 0] and [0, 1, 2, 3, 4]. Fails once that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'END'
import sys
import faiss
import numpy as np

vectors = np.tile(np.float32([0.5, 0.5, 0.5, 0.5]), (10, 1))

def hits(kind):
    index = kind(4)
    index.add(vectors)
    return {k: index.search(vectors[:1], k)[1][0].tolist() for k in (1, 5, 10)}

product, distance = hits(faiss.IndexFlatIP), hits(faiss.IndexFlatL2)
print(f"faiss {faiss.__version__}\ninner product: {product}\nL2 distance:   {distance}")
expected = all(found == list(range(k)) for k, found in distance.items())
sys.exit(0 if expected and all(found == list(range(k))[::-1] for k, found in product.items()) else "changed")
END
