"""The listed faults fit the code of today; `tests/mutations.py` puts them in."""

import yaml
from mutations import ROOT, TABLE


def test_each_fault_stands_once_in_its_file_and_its_tests_are_there():
    for fault in yaml.safe_load(TABLE.read_text(encoding="utf-8")):
        assert (ROOT / fault["file"]).read_text(encoding="utf-8").count(fault["old"]) == 1, fault["fault"]
        for test in fault["tests"]:
            path, _, name = test.partition("::")
            held = (ROOT / path).read_text(encoding="utf-8")
            assert f"def {name.partition('[')[0]}(" in held or not name, f"{fault['fault']}: {test}"
