#!/usr/bin/env bash
# pytest-xdist 3.8.0 with pytest 9.2.0: `--dist loadgroup` takes no notice of `xdist_group` marks, without a word. Tests of one
# group run in all workers; a module's or a session's fixture that a group was to share is made once in each. (xdist appends the
# group to the item's private node id, which pytest's `nodeid` no longer returns.)
#
# Seen: eight tests of one group, two workers: with pytest 9.1.0 one of them runs all eight, with 9.2.0 both run some.
# Fails once that has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
cat > test_group.py <<'P'
import os
import time
import pytest

@pytest.mark.xdist_group("same")
@pytest.mark.parametrize("number", range(8))
def test_it(number):
    time.sleep(0.2)
    with open("workers.txt", "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
P
"${PYTHON:-python3.11}" -m venv venv
workers() {
    venv/bin/pip install -q --disable-pip-version-check "pytest==$1" pytest-xdist==3.8.0
    rm -f workers.txt
    venv/bin/python -m pytest -q -n 2 --dist loadgroup test_group.py > /dev/null
    sort -u workers.txt | wc -l
}
before=$(workers 9.1.0)
now=$(workers 9.2.0)
echo "workers that ran tests of the one group: $before with pytest 9.1.0, $now with pytest 9.2.0"
[ "$before" -eq 1 ] && [ "$now" -eq 2 ]
