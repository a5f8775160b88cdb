"""Routing of pairs, the content of each question, and their number."""

import asyncio
import json

import pytest
from stand_in import text_of

from lightning_conan.items import Item, Media, Pair
from lightning_conan.reasoning.answers import Reply
from lightning_conan.reasoning.cot import Author, Plan, ask_all
from lightning_conan.reasoning.journal import Journal, Outcome
from lightning_conan.reasoning.rules import Rules
from samples import png

ANSWER = (
    "<reasoning>Source: a red star on a plain ground, and the wish is another colour.</reasoning><answer>a blue star</answer>"
)


def picture(seed):
    return Media("image", png(seed=seed), "a.png")


def pair(number=0, task="composed_x", words="make it blue"):
    return Pair(f"k{number}", task, "image", Item((picture(0), words)), Item((picture(1), "a blue star")))


class Asked:
    """Answers each question as told, and keeps what it was asked."""

    def __init__(self, **answers):
        self.answers = {"route": "composed", "composed": ANSWER, "visual": ANSWER, "verify": "yes 1"} | answers
        self.seen = []

    async def ask(self, key, question, messages):
        self.seen.append((key, question, {"messages": messages}))
        if self.answers[question] is None:
            raise OSError(f"nothing about {key}")
        return Reply(self.answers[question], True, 10, 5)


def asked(plan, teacher, pairs, path, most_failed=0):
    journal = Journal(path)
    failed = asyncio.run(ask_all(pairs, Author(plan, teacher), journal, lambda: None, most_failed))
    return journal, failed


LOOSE = Rules(reasoning=(0, 256), repeats=0)


@pytest.mark.parametrize("kinds", [{"ab": "composed", "a": "simple"}, {"a": "simple", "ab": "composed"}])
def test_a_task_has_the_kind_of_the_longest_beginning(kinds):
    assert [Plan(kinds).kind_of(task) for task in ("abc", "ac", "mbeir_abc")] == ["composed", "simple", "composed"]


def test_what_users_say_of_a_task_counts_more_than_what_is_known():
    assert Plan().kind_of("cirr_task7") == "composed"
    assert Plan({"cirr": "logical"}).kind_of("cirr_task7") == "logical"


@pytest.mark.parametrize(("kind", "question"), [("composed", "composed"), ("simple", "visual")])
def test_always_keeps_the_kind_and_reasons_about_simple_pairs_as_visual(tmp_path, kind, question):
    teacher = Asked()
    journal, _ = asked(Plan({"composed_x": kind}, "always", LOOSE), teacher, [pair()], tmp_path / "a.jsonl")
    assert [entry[1] for entry in teacher.seen] == [question, "verify"]
    assert journal.outcomes["k0"].kind == question


def test_each_question_shows_what_it_may(tmp_path):
    """A router that saw the target would choose by it; who answers has to see it, in words too."""
    teacher = Asked()
    asked(Plan(by="teacher", rules=LOOSE), teacher, [pair()], tmp_path / "a.jsonl")
    pictures, texts = {}, {}
    for _, question, body in teacher.seen:
        pictures[question] = sum(part["type"] == "image_url" for part in body["messages"][-1]["content"])
        texts[question] = text_of(body)
    assert pictures == {"route": 1, "composed": 2, "verify": 2}
    assert "a blue star" not in texts["route"]
    assert "a blue star" in texts["composed"]
    assert "the wish is another colour" in texts["verify"]
    assert all("make it blue" in text for text in texts.values())


@pytest.mark.parametrize("most_failed", [0, 2, 5])
def test_no_more_is_asked_once_too_many_have_failed(tmp_path, most_failed):
    teacher = Asked(composed=None)
    plan = Plan({"composed": "composed"}, rules=LOOSE, under_way=1)
    _, failed = asked(plan, teacher, [pair(number) for number in range(20)], tmp_path / "a.jsonl", most_failed)
    assert len(failed) == len(teacher.seen) == most_failed + 1


def test_the_verifier_is_another_where_one_is_named(tmp_path):
    teacher, verifier, journal = Asked(), Asked(), Journal(tmp_path / "a.jsonl")
    author = Author(Plan({"composed": "composed"}, rules=LOOSE), teacher, verifier)
    asyncio.run(ask_all([pair()], author, journal, lambda: None))
    assert [[question for _, question, _ in who.seen] for who in (teacher, verifier)] == [["composed"], ["verify"]]
    found = vars(journal.outcomes["k0"])
    assert [found[f"{whose}{kind}_tokens"] for whose in ("", "verifier_") for kind in ("prompt", "completion")] == [10, 5, 10, 5]


def test_a_pair_is_known_by_all_that_it_says(tmp_path):
    journal = Journal(tmp_path / "a.jsonl")
    with journal:
        journal.add(Outcome("k0", "composed", journal.content(pair())))
    others = [
        pair(task="other"),
        pair(words="make it red"),
        Pair("k0", "composed_x", "image", pair().query, Item((picture(1), "a red star"))),
        Pair("k0", "composed_x", "image", pair().query, Item((picture(2), "a blue star"))),
    ]
    assert Journal(tmp_path / "a.jsonl").knows(pair())
    assert not any(Journal(tmp_path / "a.jsonl").knows(other) for other in others)


def test_attempts_at_a_key_add_up_in_whatever_order(tmp_path):
    """Failures before and after an outcome of another content; read back, they are the same."""
    lines = [
        Outcome("k", "visual", failed="gone", prompt_tokens=1),
        Outcome("k", "composed", "one", verifier_prompt_tokens=20),
        Outcome("k", "visual", failed="gone", completion_tokens=300),
        Outcome("k", "composed", "two", verifier_completion_tokens=4000),
    ]
    for count in range(1, 5):
        path = tmp_path / f"{count}.jsonl"
        with Journal(path) as journal:
            for line in lines[:count]:
                journal.add(line)
        for found in (journal, Journal(path)):
            last = found.last("k")
            total = last.prompt_tokens + last.verifier_prompt_tokens + last.completion_tokens + last.verifier_completion_tokens
            assert total == [1, 21, 321, 4321][count - 1]
            assert bool(last.failed) == (count in (1, 3))
            assert [outcome.content for outcome in found.outcomes.values()] == [[], ["one"], ["one"], ["two"]][count - 1]
    old = {name: value for name, value in vars(lines[1]).items() if name != "failed"}
    (tmp_path / "old.jsonl").write_text(json.dumps(old) + "\n")
    assert Journal(tmp_path / "old.jsonl").outcomes == {"k": lines[1]}
