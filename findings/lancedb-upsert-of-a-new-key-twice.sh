#!/usr/bin/env bash
# lancedb 0.40.0: an upsert whose batch has a new key twice adds both rows, where a batch that has a known key twice is refused.
#
# `merge_insert("id")` with when_matched_update_all() and when_not_matched_insert_all() compares the batch with the table and not with itself. Two rows of
# one key that the table already has are an error ("Ambiguous merge inserts are prohibited"), which leads one to think that keys stay unique; two rows of
# a new key are both added, and from then on each upsert of that key, of one row, changes both and leaves two equal rows: searches return the document
# twice, and k=10 has nine documents. A crawl that lists a page twice is enough, and whether it fails or doubles depends on whether the page was known.
# Remove doubles from the batch.
#
# Seen: a batch of ids 7, 7 into a table without 7: two rows added; again, now that it is known: ValueError or RuntimeError; one row with id 7: two
# rows updated, two rows with id 7 in the table, both among the two nearest. Fails once that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check lancedb==0.40.0 pyarrow==26.0.1
"$folder/venv/bin/python" - "$folder/base" <<'END'
import sys
import lancedb

table = lancedb.connect(sys.argv[1]).create_table("pages", data=[{"id": 1, "vector": [1.0, 0.0]}, {"id": 2, "vector": [0.6, 0.8]}])

def upserted(*vectors):
    merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
    done = merge.execute([{"id": 7, "vector": list(vector)} for vector in vectors])
    return done.num_inserted_rows, done.num_updated_rows

new = upserted((0.0, 1.0), (0.0, 0.9))
try:
    known = upserted((0.0, 1.0), (0.0, 0.9))
except (ValueError, RuntimeError) as error:
    known = type(error).__name__
    print(known, str(error)[:120])
one = upserted((0.0, 0.8))
nearest = [row["id"] for row in table.search([0.0, 1.0]).limit(2).to_list()]
print(f"lancedb {lancedb.__version__} added, updated: new twice {new}, known twice {known}, known once {one}; nearest two {nearest}")
sys.exit(0 if (new, one, nearest) == ((2, 0), (0, 2), [7, 7]) and known in ("ValueError", "RuntimeError") else "changed")
END
