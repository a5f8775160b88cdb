"""Each rule of TRACE lets the good answer pass and catches what it is for."""

from dataclasses import replace

import pytest

from lightning_conan.reasoning.rules import RuleBroken, Rules, Thought, check, parse, repeated, salient, source_of, verdict

REASONING = (
    "The source shows a red dress with long sleeves and a white belt. The change asks for a blue one, so only its color differs."
)
GOOD = Thought(REASONING, "A blue dress with long sleeves and a white belt.")
ASKED = {"kind": "composed", "instruction": "make the dress blue", "target": ""}


def broken(thought, rules=None, **other):
    try:
        check(thought, rules or Rules(), **(ASKED | other))
    except RuleBroken as error:
        return str(error)
    return None


def test_a_good_answer_passes():
    assert broken(GOOD) is None


@pytest.mark.parametrize(("change", "reason"), [
    ({"reasoning": "It is blue."}, "reasoning too short"),
    ({"reasoning": " ".join(f"word{n}" for n in range(257))}, "reasoning too long"),
    ({"answer": "dress"}, "answer too short"),
    ({"answer": "dress " + " ".join(f"word{n}" for n in range(64))}, "answer too long"),
    ({"reasoning": "I'm sorry, but " + REASONING}, "refusal"),
    ({"reasoning": REASONING + " As instructed, I looked."}, "prompt leaked"),
    ({"reasoning": "the dress is now all blue and " * 5}, "repeats itself"),
    ({"reasoning": "这是 一件 蓝色 的 连衣裙 " * 6, "answer": "这是 dress"}, "not English"),
    ({"answer": "A skirt of wool."}, "no keyword"),
    ({"answer": "The source shows a red dress with long sleeves and a white belt"}, "answer describes the source"),
])  # fmt: skip
def test_each_rule_catches_what_it_is_for(change, reason):
    rules = Rules(repeats=0) if reason in ("not English", "reasoning too long") else Rules()
    assert broken(replace(GOOD, **change), rules) == reason


@pytest.mark.parametrize("name", ["reasoning", "answer"])
def test_the_fewest_and_the_most_tokens_are_allowed(name):
    for count, reason in ((4, f"{name} too short"), (5, None), (9, None), (10, f"{name} too long")):
        thought = replace(GOOD, **{name: " ".join(f"word{n}" for n in range(count))})
        assert broken(thought, replace(Rules(keyword=False), **{name: (5, 9)})) == reason


def test_a_sequence_may_come_as_often_as_is_said():
    """The last one counts, too."""
    for times in range(6):
        assert repeated(["a", "b", "c"] * times, Rules(ngram=3, repeats=2)) == (times > 2)
    assert repeated(["x", *["a", "b", "c"] * 3], Rules(ngram=3, repeats=2))
    assert not repeated(["a", "b", "c"] * 3, Rules(ngram=9, repeats=1))


def test_a_tenth_of_the_letters_may_be_foreign():
    for foreign, reason in ((10, None), (11, "not English")):
        thought = Thought("a" * (100 - foreign - 2) + "ж" * foreign, "bb")
        assert broken(thought, Rules((0, 99), (0, 9), keyword=False)) == reason


def test_a_phrase_may_come_as_often_as_the_rules_say():
    phrase = "one two three four five six. "
    for times, reason in {2: None, 3: "repeats itself"}.items():
        text = " ".join(f"{phrase} then w{n} and v{n}, x{n}." for n in range(times))
        assert broken(replace(GOOD, reasoning=text)) == reason


@pytest.mark.parametrize("words", ["it has an airplane on the left", "it has an aisle seat", "after the prompting of a guide"])
def test_phrases_are_words_of_their_own(words):
    assert broken(replace(GOOD, reasoning=f"{REASONING} Besides, {words}.")) is None


def test_rules_can_be_loosened():
    assert broken(replace(GOOD, answer="A skirt of wool."), Rules(keyword=False)) is None
    assert broken(replace(GOOD, answer="A skirt of wool."), target="a skirt") is None
    assert broken(replace(GOOD, reasoning="the dress is now all blue and " * 5), Rules(repeats=0)) is None


@pytest.mark.parametrize("text", [
    "",
    "blue",
    "<reasoning>a</reasoning>",
    "<answer>b</answer><reasoning>a</reasoning>",
    "<reasoning>a<answer>b</answer></reasoning>",
    "<reasoning>a</reasoning><reasoning>c</reasoning><answer>b</answer>",
    "<reasoning>a</reasoning><answer>b</answer> and more",
    "<reasoning>a <reasoning>c</reasoning></reasoning><answer>b</answer>",
])  # fmt: skip
def test_tags_are_exactly_one_reasoning_before_one_answer(text):
    with pytest.raises(RuleBroken, match="malformed tags"):
        parse(text)


def test_an_answer_holds_whole_characters():
    """Half an emoji, as a cut-off JSON escape leaves it, is no text for a tokenizer."""
    for side in ("<reasoning>a \ud83d</reasoning><answer>c</answer>", "<reasoning>a</reasoning><answer>c \ude00</answer>"):
        with pytest.raises(RuleBroken, match="half a character"):
            parse(side)
    assert parse("<reasoning>é 😀</reasoning><answer>\ud7ff\ue000</answer>") == Thought("é 😀", "\ud7ff\ue000")


@pytest.mark.parametrize("text", ["<reasoning>" * 20_000, "</reasoning><answer>" * 20_000, "</reasoning> " * 20_000])
def test_an_endless_answer_is_filtered_in_a_moment(text):
    with pytest.raises(RuleBroken):
        parse(f"<reasoning>{text}")
    for long in (f"yes {'1' * 200_000}x", f"yes 5{' ' * 200_000}x", f"yes{' ' * 200_000}x", f"{'?' * 200_000}x"):
        with pytest.raises(RuleBroken):
            verdict(long, Rules())


def test_tags_are_stripped():
    assert parse(" <reasoning> a\nb </reasoning>\n<answer>c</answer>\n") == Thought("a\nb", "c")
    assert Thought("a", "c").text == "a\nc"


@pytest.mark.parametrize(("text", "reason"), [
    ("yes 0.85", None), ("Yes, 0.9.", None), ("yes 0.7", "verifier was not sure"), ("no 0.9", "verifier said no"),
    ("maybe", "verifier said neither yes nor no"), ("yes", "verifier said neither yes nor no"),
    ("Yes. 0.85", None), ("No.\n.9", "verifier said no"),
    ("yes .5", "verifier was not sure"), ("yes .75", None), ("yes 5%", "verifier was not sure"), ("yes: 85 %", None),
    ("yes 85", "verifier said neither yes nor no"),
])  # fmt: skip
def test_only_a_sure_yes_counts(text, reason):
    if reason is None:
        verdict(text, Rules())
    else:
        with pytest.raises(RuleBroken, match=reason):
            verdict(text, Rules())


def test_the_source_is_the_first_clause():
    assert source_of("Source: a red dress; then blue") == ["a", "red", "dress"]


def test_limits_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="fewest and the most tokens, got 9 and 2"):
        Rules(reasoning=(9, 2))
    with pytest.raises(ValueError, match="between 0 and 1"):
        Rules(confidence=2.0)


def test_short_things_are_keywords_and_what_is_to_be_done_is_none():
    assert salient("change it to a red car") == {"red", "car"}
    assert salient("Show the same dog, but make it more like a bus.") == {"dog", "like", "bus"}
