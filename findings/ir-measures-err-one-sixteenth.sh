#!/usr/bin/env bash
# ir_measures 0.4.3: ERR@10 of a perfect ranking with binary labels is 0.0625, and the same call fails for a query called "q1" or a grade of 5.
#
# ERR@k and nDCG(dcg="exp-log2")@k are computed by gdeval, a Perl program in the wheel (so that a machine without perl has neither), which is made for TREC's
# web tracks: it takes grades from 0 to 4, and a gain is (2^grade - 1) / 2^4 whatever the greatest grade in the labels is. With labels of 0 and 1 the best
# possible ERR is thus 1/16, where the formula with the greatest grade that the labels have gives 1/2. Query ids have to be digits; ids
# such as "q1", which many sets have and RR, nDCG@10 and others take, end in CalledProcessError with "format error" on standard error. The
# interface, one call for all measures, lets none of this be seen.
#
# Seen, for one relevant document at the first place: RR 1 and ERR@10 0.0625, 0.9375 with grade 4; query "q1": RR 1 alone, CalledProcessError with ERR@10;
# grade 5: the same error. Fails once that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check ir_measures==0.4.3 pytrec_eval-terrier==0.5.11 numpy==2.4.6 scipy==1.17.1 setuptools==80.9.0
"$folder/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version
import ir_measures
from ir_measures import ERR, RR

def measured(query, grade, *measures):
    labels, run = {query: {"good": grade, "bad": 0}}, {query: {"good": 1.0, "bad": 0.5}}
    try:
        return {str(measure): float(value) for measure, value in ir_measures.calc_aggregate(measures, labels, run).items()}
    except Exception as error:
        return type(error).__name__

found = {
    "1, grade 1": measured("1", 1, RR, ERR @ 10),
    "1, grade 4": measured("1", 4, ERR @ 10),
    "q1, RR": measured("q1", 1, RR),
    "q1, both": measured("q1", 1, RR, ERR @ 10),
    "1, grade 5": measured("1", 5, ERR @ 10),
}
print("ir_measures", version("ir_measures"), found)
right = ({"RR": 1.0, "ERR@10": 0.0625}, {"ERR@10": 0.9375}, {"RR": 1.0}, "CalledProcessError", "CalledProcessError")
sys.exit(0 if tuple(found.values()) == right else "changed")
END
