"""Filters of chain-of-thought data, on answers whose mistakes are known."""

import asyncio
from dataclasses import asdict, replace

import pytest

from datamodules.toy_world.composed import draw_composed
from lightning_conan.embedder import Provenance, save_folder, tiny_embedder
from lightning_conan.reasoning.cot import Author, Plan
from lightning_conan.reasoning.faulty_teacher import MISTAKES, FaultyTeacher, Mistakes
from lightning_conan.reasoning.filter_quality import Quality, answer_reasons, measure_filters, quality
from lightning_conan.reasoning.prompts import read_prompts
from lightning_conan.reasoning.rules import Rules, Thought, check, parse, pieces, token_count

PLAN = Plan(rules=Rules(reasoning=(2, 256), repeats=0, keyword=False))
TRUTH = {"kind": "composed", "reasoning": "a red circle; it turns blue", "answer": "a blue circle"}
OFTEN = Mistakes(wrong=0.2, source=0.1, leak=0.15, refusal=0.15, long=0.15, language=0.15, false_yes=0.2, false_no=0.2)


@pytest.fixture(scope="module")
def drawn():
    """Pairs, and the truth about each."""
    pairs, truths = draw_composed("composed", 60, "quality")
    return pairs, {key: asdict(truth) for key, truth in truths.items()}


def test_mistakes_come_at_their_rates_whatever_else_is_asked():
    keys = [f"k{number}" for number in range(4000)]
    teacher = FaultyTeacher(dict.fromkeys(keys, TRUTH), OFTEN)
    found = [teacher.planted(key) for key in keys]
    for mistake in MISTAKES:
        rate = getattr(OFTEN, mistake)
        assert found.count(mistake) / 4000 == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 4000) ** 0.5)
    fewer = FaultyTeacher(dict.fromkeys(keys[:2], TRUTH), OFTEN)
    assert [fewer.planted(key) for key in keys[:2]] == found[:2]
    assert [FaultyTeacher({"a": TRUTH, "b": TRUTH}, replace(OFTEN, seed=1)).planted(key) for key in keys] != found


def test_each_mistake_is_what_it_is_called(drawn):
    """Each made on purpose about every pair."""
    pairs, truths = drawn
    foreign = read_prompts("mistakes")["languages"].splitlines()
    for mistake in MISTAKES:
        only = Mistakes(**(dict.fromkeys(MISTAKES, 0.0) | {mistake: 1.0}))
        teacher = FaultyTeacher(truths, only)
        for pair in pairs[:20]:
            thought = parse(asyncio.run(teacher.ask(pair.key, "composed", [])).text)
            right = Thought(truths[pair.key]["reasoning"], truths[pair.key]["answer"])
            assert thought != right
            match mistake:
                case "wrong":
                    others = [Thought(truth["reasoning"], truth["answer"]) for key, truth in truths.items() if key != pair.key]
                    assert thought in others
                case "long":
                    assert len(pieces(thought.reasoning)) > 256 or len(pieces(thought.answer)) > 64
                case "leak":
                    assert right.reasoning in thought.reasoning
                case "source":
                    assert thought == Thought(right.reasoning, right.reasoning.split(";")[0])
                case "refusal":
                    assert right.reasoning not in thought.reasoning
                case "language":
                    assert any(f"{thought.answer}\n" in f"{line}\n" for line in foreign)
                    assert thought.reasoning == right.reasoning or f"{thought.reasoning}|{thought.answer}" in foreign


def test_dropped_is_what_the_builder_drops(drawn):
    pairs, truths = drawn
    teacher = FaultyTeacher(truths, OFTEN)
    author = Author(PLAN, teacher)

    async def both():
        for pair in pairs:
            assert bool((await author(pair, [])).reason) == bool(await answer_reasons(pair, teacher, PLAN))

    asyncio.run(both())
    by_filter, by_mistake = asyncio.run(measure_filters(pairs, teacher, PLAN))
    assert by_filter["lengths"].recall == 1.0
    assert by_filter["lengths"].precision == 1.0
    assert by_filter["answer is the source"].recall == 1.0
    assert sum(found.planted for found in by_mistake.values()) == by_filter["all filters"].planted
    assert sum(found.found for found in by_mistake.values()) == by_filter["all filters"].bad
    assert not by_filter.keys() & {"repetition", "keyword"}  # which the plan does not use


def test_the_verifiers_errors_are_measured_as_they_were_planted():
    """Its recall is 1 - false_yes, and of the others it drops false_no."""
    keys = [f"k{number}" for number in range(3000)]
    teacher = FaultyTeacher(dict.fromkeys(keys, TRUTH), replace(OFTEN, wrong=0.3, leak=0.0, long=0.0, language=0.0))
    dropped = {key for key in keys if asyncio.run(teacher.ask(key, "verify", [])).text.startswith("no")}
    found = quality({key: teacher.planted(key) for key in keys}, dropped, {"wrong", "source", "refusal"})
    assert found.recall == pytest.approx(0.8, abs=0.04)
    assert (found.dropped - found.bad) / (3000 - found.planted) == pytest.approx(0.2, abs=0.04)


def test_precision_and_recall_of_a_small_case():
    planted = {"a": "wrong", "b": "leak", "c": None, "d": "wrong"}
    found = quality(planted, {"a", "b", "c"}, {"wrong"})
    assert found == Quality(planted=2, found=1, dropped=3, bad=2)
    assert (found.precision, found.recall) == (2 / 3, 0.5)
    assert quality(planted, set(), {"long"}) == Quality(0, 0, 0, 0)
    assert Quality(0, 0, 0, 0).precision is Quality(0, 0, 0, 0).recall is None


def test_tokens_are_those_of_the_models_tokenizer(tmp_path):
    model, processor = tiny_embedder()
    folder = save_folder(tmp_path / "model", model, processor, Provenance("base"))
    text = "Unbelievably blue."
    count = len(processor.tokenizer.encode(text, add_special_tokens=False))
    assert token_count(text, folder) == count > token_count(text) == 3
    rules = Rules(reasoning=(0, 99), answer=(count, count), keyword=False, tokenizer=folder)
    check(Thought("", text), rules, "visual", "", "")
    with pytest.raises(ValueError, match="answer too long"):
        check(Thought("", text + " Red."), rules, "visual", "", "")
    with pytest.raises(ValueError, match="must be a folder with a tokenizer"):
        token_count(text, tmp_path)


def test_impossible_rates_are_refused():
    with pytest.raises(ValueError, match="at most 1 together"):
        Mistakes(wrong=0.9, leak=0.2)
    with pytest.raises(ValueError, match="two pairs or more, got 1"):
        FaultyTeacher({"a": TRUTH}, Mistakes())
