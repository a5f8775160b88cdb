import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from datamodules.shards.check import Report
from lightning_conan.cli.main import plain
from lightning_conan.cli.search import table
from lightning_conan.terminal import printable

HARMFUL = {"Cc", "Cs", "Zl", "Zp"}
TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
ODD = st.text(st.characters() | st.sampled_from("\x1b\n\r\t\x07\x9b\x7f\u2028\u202e\u2066\udce9\ud83d") | st.sampled_from("aé漢"))


def harmful(text: str) -> bool:
    """By Unicode's own tables."""
    return any(unicodedata.category(char) in HARMFUL or unicodedata.bidirectional(char) in TURNING for char in text)


@given(ODD)
def test_nothing_that_a_terminal_obeys_is_left_and_nothing_else_changes(text):
    shown = printable(text)
    assert not harmful(shown)
    assert harmful(text) or shown == text
    shown.encode()  # no half of a character


def test_escapes_say_what_was_there():
    assert printable("a\x1b[2J\n\u202eb\udce9\x9b\u2028") == r"a\x1b[2J\n\u202eb\udce9\x9b\u2028"
    assert printable("żółw 漢字 \u200d\u0645\u200c 👩\u200d🚀") == "żółw 漢字 \u200d\u0645\u200c 👩\u200d🚀"


@given(st.lists(ODD, min_size=1, max_size=4), st.lists(ODD, max_size=2))
def test_each_hit_is_one_line(keys, titles):
    """Whatever files are called, and whatever a query or the model's text about it holds."""
    shown = table(titles, [{"score": 0.5, "modality": "image", "key": key} for key in keys])
    lines = shown.split("\n")
    assert len(lines) == len(keys) + len(titles)
    assert not any(map(harmful, lines))


def test_errors_do_not_steer_the_terminal():
    assert (
        plain(ValueError("Keys must be unique, a\x1b]0;x\x07\tb stands\ntwice."))
        == r"Keys must be unique, a\x1b]0;x\x07\tb stands twice."
    )


def test_a_report_of_packed_pairs_is_one_line_a_finding():
    """Whatever somebody else's keys hold."""
    report = Report("folder", 2, queries={"digest": ["a\x1b[2J", "b\nforged"]}, broken=["that of c\x9b: cut"])
    lines = report.text().split("\n")
    assert len(lines) == 3
    assert not any(map(harmful, lines))
