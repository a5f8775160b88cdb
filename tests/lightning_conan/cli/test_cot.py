"""`conan cot`: whatever the teacher does, counts add up, nothing is lost and nothing unfiltered is kept."""

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from stand_in import completion, server, text_of

from datamodules.shards.read import ShardSet
from datamodules.toy_world import draw_composed
from datamodules.toy_world.write import write_pairs, write_truths
from lightning_conan.cli.main import main
from lightning_conan.items import Item, Pair
from lightning_conan.reasoning.answers import Reply
from lightning_conan.reasoning.cot import Author, Plan, ask_all
from lightning_conan.reasoning.journal import Journal, Outcome
from lightning_conan.reasoning.rules import Rules
from samples import mp4, png

RULES = {"repeats": 0, "keyword": False}
PLAN = json.dumps({"rules": RULES, "under_way": 32})


def world(root, composed=40, simple=10):
    """A manifest of composed and simple pairs with its ground truth."""
    pairs, truths = draw_composed("composed", composed, 0)
    easy, known = draw_composed("simple", simple, 0)
    write_pairs([*pairs, *easy], root, "train")
    write_truths(truths | known, root / "train.truth.jsonl")
    return root / "train.jsonl", truths | known


def run(manifest, out, *words, plan=PLAN):
    return main(["cot", "--source", str(manifest), "--out", str(out), "--plan", plan, *words])


def texts(out):
    shards = ShardSet(out)
    return {shards.samples[number].key: shards.read(number).reasoning for number in range(len(shards))}


def test_the_toy_teacher_tells_the_truth(tmp_path, capsys):
    manifest, truths = world(tmp_path / "world")
    assert run(manifest, tmp_path / "out", "--teacher", "toy") == 0
    assert "50 pairs: 10 simple, 40 kept, 0 dropped" in capsys.readouterr().out
    for key, text in texts(tmp_path / "out").items():
        truth = truths[key]
        assert text == ("" if truth.kind == "simple" else f"{truth.reasoning}\n{truth.answer}")
    assert json.loads((tmp_path / "out" / "cot.json").read_text())["kinds"] == {"composed": 40, "simple": 10}


def test_everything_can_be_reasoned_about_or_routed_by_the_teacher(tmp_path):
    manifest, truths = world(tmp_path / "world", 8, 8)
    loose = {"rules": RULES | {"reasoning": [0, 256]}}
    assert run(manifest, tmp_path / "always", "--teacher", "toy", plan=json.dumps(loose | {"by": "always"})) == 0
    assert all(texts(tmp_path / "always").values())
    assert run(manifest, tmp_path / "asked", "--teacher", "toy", plan=json.dumps(loose | {"by": "teacher"})) == 0
    assert {key for key, text in texts(tmp_path / "asked").items() if not text} == {
        key for key, truth in truths.items() if truth.kind == "simple"
    }


def test_mbeir_is_routed_by_its_tasks_and_asked_with_its_pictures(tmp_path):
    """A composed source (CIRR) and a simple one (COCO), in the layout that UniIR publishes."""
    (tmp_path / "mbeir_images").mkdir()
    for name in ("a", "b"):
        (tmp_path / "mbeir_images" / f"{name}.jpg").write_bytes(png(seed=ord(name), format="JPEG"))
    pool = [
        {"did": "9:10", "txt": None, "img_path": "b.jpg", "modality": "image", "src_content": None},
        {"did": "9:11", "txt": "a dog", "img_path": None, "modality": "text", "src_content": None},
    ]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in pool))
    asked = {"cirr_task7": ("make it blue", "a.jpg", "image,text", "9:10"), "mscoco_task3": (None, "a.jpg", "image", "9:11")}
    answer = GOOD.format(" ".join(f"word{n} of the change that is asked" for n in range(4)), "the picture in blue")
    found = {}
    for name, (text, image, modality, target) in asked.items():
        query = {"qid": "9:1", "query_txt": text, "query_img_path": image, "query_modality": modality}
        query |= {"query_src_content": None, "pos_cand_list": [target], "neg_cand_list": []}
        source = tmp_path / f"mbeir_{name}_train.jsonl"
        source.write_text(json.dumps(query) + "\n")
        how = ["--read.layout", "mbeir", "--read.candidates", str(tmp_path / "pool.jsonl"), "--read.media", "mbeir_images"]
        with server(lambda body, number: (200, "yes 0.9" if "Is every step true" in text_of(body) else answer)) as (url, seen):
            assert run(source, tmp_path / name, *how, "--endpoint.url", url) == 0
        found[name] = texts(tmp_path / name), len(seen)
    assert [list(kept.values()) for kept, _ in found.values()] == [[parsed(answer)], [""]]
    assert found["cirr_task7"][1] == 2  # the teacher and its verifier
    assert found["mscoco_task3"][1] == 0


def parsed(answer):
    """The part of an answer that is kept."""
    return answer.replace("<reasoning>", "").replace("</reasoning><answer>", "\n").replace("</answer>", "")


def test_a_truth_that_is_missing_leaves_nothing_behind(tmp_path, capsys):
    manifest, _ = world(tmp_path / "world", 2, 2)
    (tmp_path / "world" / "train.truth.jsonl").unlink()
    assert run(manifest, tmp_path / "out", "--teacher", "toy") == 1
    assert "train.truth.jsonl" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


GOOD = "<reasoning>{0}</reasoning><answer>{1}</answer>"


class Moody:
    """A teacher that answers slowly, wrongly, with refusals, malformed tags, 429 and 500; by the question, always alike."""

    def __init__(self, dies_after=None):
        self.left = dies_after

    def __call__(self, body, number):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                return 503, "gone"
        text = text_of(body)
        rng = random.Random(text)
        if number <= rng.choice((0, 0, 0, 1, 2)):
            return rng.choice((429, 500)), "later"
        if rng.random() < 0.05:
            time.sleep(0.05)
        if "Is every step true" in text:
            return 200, rng.choice(("yes 0.9", "yes 0.9", "yes 0.9", "yes 0.5", "no 0.8", "who knows"))
        words = " ".join(rng.choice("red blue star circle top left moves grows".split()) for _ in range(20))
        good = GOOD.format(f"{words} {rng.random()}", "red star top left")
        bad = ["I'm sorry, I cannot.", good.replace("</answer>", ""), GOOD.format("short", "no"), ""]
        return 200, rng.choice([good, good, good, *bad, GOOD.format(f"As an AI {words}", "red star")])


def allowed(out):
    """Every text that is kept is a good answer of ``Moody``'s, and passed the verifier."""
    for text in texts(out).values():
        if text:
            reasoning, answer = text.split("\n")
            assert len(reasoning.split()) == 21
            assert answer == "red star top left"
            assert "AI" not in text


def test_five_hundred_pairs_and_a_moody_teacher_that_dies_half_way(tmp_path, capsys, monkeypatch):
    manifest, _ = world(tmp_path / "world", 460, 40)
    options = {"prompt_price": 1, "completion_price": 2, "retries": 3, "pause": 0.001}
    price = [word for name, value in options.items() for word in (f"--endpoint.{name}", str(value))]
    with server(Moody(dies_after=500)) as (url, seen):
        assert run(manifest, tmp_path / "out", "--endpoint.url", url, *price) == 1
        assert "got no answer" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    (journal,) = (tmp_path / "out.cot").glob("*.jsonl")
    known = journal.read_text().splitlines()
    assert 40 < len(known) < 500
    with journal.open("a") as file:
        file.write('{"key": "cut off')  # a process that died in the middle of a line
    with server(Moody()) as (url2, again):
        # the same server on another port is another source of answers: the journal is for the same command
        words = [*price, "--endpoint.url", url]
        monkeypatch.setattr("httpx.AsyncClient.stream", redirected(url, url2))
        assert run(manifest, tmp_path / "out", *words) == 0
    summary = json.loads((tmp_path / "out" / "cot.json").read_text())
    assert summary["pairs"] == summary["simple"] + summary["kept"] + summary["dropped"] == 500
    assert summary["simple"] == 40
    assert sum(summary["reasons"].values()) == summary["dropped"]
    assert summary["reasons"].keys() >= {"malformed tags", "refusal", "reasoning too short", "verifier said no"}
    assert len(ShardSet(tmp_path / "out")) == summary["simple"] + summary["kept"]
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in dropped}) == summary["dropped"]
    allowed(tmp_path / "out")
    assert "in all" in capsys.readouterr().err
    answered = {line["key"] for line in map(json.loads, known) if not line["failed"]}
    teachers = {json.dumps(body) for body in again if "Is every step true" not in text_of(body)}
    assert len(teachers) <= 500 - len(answered)
    assert len(seen) + len(again) < 500 * 8


def redirected(old, new):
    """Requests that go to another port."""
    import httpx

    stream = httpx.AsyncClient.stream
    return lambda self, method, url, **options: stream(self, method, url.replace(old, new), **options)


def test_pictures_travel_with_the_question_and_nothing_else_does(tmp_path, capsys):
    manifest, _ = world(tmp_path / "world", 2, 0)
    with server(lambda body, number: (200, "no idea")) as (url, seen):
        assert run(manifest, tmp_path / "out", "--endpoint.url", url) == 1
    assert "got none of 2: 2 malformed tags" in capsys.readouterr().err
    for body in seen:
        (message,) = body["messages"]
        pictures = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
        assert len(pictures) == 2
        assert all(picture.startswith("data:image/png;base64,") for picture in pictures)


def test_a_picture_that_is_not_there_is_listed_and_no_silence(tmp_path):
    manifest, _ = world(tmp_path / "world", 4, 4)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for line in lines[1::4]:  # one composed, one simple
        (manifest.parent / line["target"]["image"]).unlink()
    assert run(manifest, tmp_path / "out", "--teacher", "toy") == 0
    assert len(texts(tmp_path / "out")) == 6
    listed = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [(fault["key"], fault["field"]) for fault in listed] == [(line["key"], "target") for line in lines[1::4]]


def test_equal_texts_are_kept_once(tmp_path, capsys):
    manifest, _ = world(tmp_path / "world", 6, 0)
    same = GOOD.format(" ".join(f"word{number}" for number in range(16)), "red star")
    with server(lambda body, number: (200, "yes 1" if "Is every step" in text_of(body) else same)) as (url, _):
        assert run(manifest, tmp_path / "out", "--endpoint.url", url) == 0
    assert "1 kept, 5 dropped" in capsys.readouterr().out


def test_an_error_that_stays_is_told_at_once(tmp_path, capsys):
    manifest, _ = world(tmp_path / "world", 2, 0)
    with server(lambda body, number: (401, "who are you")) as (url, seen):
        assert run(manifest, tmp_path / "out", "--endpoint.url", url) == 1
    assert "HTTP 401" in capsys.readouterr().err
    assert len(seen) == 2


def test_a_server_that_is_gone_is_not_asked_about_everything(tmp_path, capsys):
    manifest, _ = world(tmp_path / "world", 120, 0)
    plan = json.dumps({"rules": RULES, "under_way": 4})
    with server(lambda body, number: (503, "gone")) as (url, seen):
        assert run(manifest, tmp_path / "out", "--endpoint.url", url, "--endpoint.retries", "0", plan=plan) == 1
    assert len(seen) < 12
    assert "got no answer" in capsys.readouterr().err


def test_a_task_that_nobody_knows_is_refused_before_anything_is_asked(tmp_path, capsys):
    pairs, _ = draw_composed("composed", 2, 0)
    write_pairs([msgspec.structs.replace(pair, task="mystery") for pair in pairs], tmp_path / "world", "train")
    assert run(tmp_path / "world" / "train.jsonl", tmp_path / "out", "--teacher", "toy") == 1
    assert "got none for 'mystery'" in capsys.readouterr().err


def test_a_truth_that_is_missing_is_named(tmp_path, capsys):
    manifest, _ = world(tmp_path / "world", 2, 0)
    manifest.with_suffix(".truth.jsonl").unlink()
    assert run(manifest, tmp_path / "out", "--teacher", "toy") == 1
    assert "train.truth.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["cirr_task7", "mscoco_task0", "infoseek_task6"])
def test_the_papers_data_sets_have_routes(task):
    from lightning_conan.reasoning.cot import Plan

    wanted = {"cirr_task7": "composed", "mscoco_task0": "simple", "infoseek_task6": "logical"}
    assert Plan().kind_of(task) == wanted[task]


def good(asked):
    """An answer that passes, and says what it was asked about."""
    return GOOD.format(" ".join(f"word{n} of the change that is asked" for n in range(4)), f"a picture of {asked}")


def one_pair(root, words, **more):
    root.mkdir(exist_ok=True)
    (root / "a.png").write_bytes(png())
    query = {"image": "a.png", "text": words} | more
    line = {"key": "k", "task": "t", "modality": "image", "query": query, "target": {"text": words}}
    (root / "pairs.jsonl").write_text(json.dumps(line) + "\n")
    return root / "pairs.jsonl"


def test_an_answer_about_another_pair_of_the_same_key_is_not_taken(tmp_path):
    """The manifest was corrected and its folder removed: what was paid for the old line says nothing of the new one."""
    plan = json.dumps({"rules": RULES, "verify": False, "kinds": {"t": "composed"}})
    with server(lambda body, number: (200, good("fruit and fish"))) as (url, seen):
        for words in ("red apple", "blue whale", "blue whale"):
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            assert run(one_pair(tmp_path / "w", words), tmp_path / "out", "--endpoint.url", url, plan=plan) == 0
        assert len(seen) == 2  # the third time nothing was new
        shutil.rmtree(tmp_path / "out")
        concurrent = json.dumps(json.loads(plan) | {"under_way": 3})
        assert run(tmp_path / "w" / "pairs.jsonl", tmp_path / "out", "--endpoint.url", url, plan=concurrent) == 0
        assert len(seen) == 2
        shutil.rmtree(tmp_path / "out")
        words = ["--endpoint.url", url, "--endpoint.max_tokens", "77"]
        assert run(tmp_path / "w" / "pairs.jsonl", tmp_path / "out", *words, plan=plan) == 0
        assert len(seen) == 3  # who may write more may say something else


def test_a_medium_that_no_endpoint_takes_is_dropped_and_counted(tmp_path, capsys):
    plan = json.dumps({"rules": RULES, "verify": False, "kinds": {"t": "composed"}})
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "a.mp4").write_bytes(mp4())
    span = {"video": {"path": "a.mp4", "start": 0.5, "end": 1.0}}
    lines = [
        {"key": "span", "task": "t", "modality": "video", "query": span, "target": {"text": "a fish"}},
        {"key": "whole", "task": "t", "modality": "video", "query": {"video": "a.mp4"}, "target": {"text": "a fish"}},
    ]
    (tmp_path / "w" / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with server(lambda body, number: (200, good("a fish"))) as (url, seen):
        assert run(tmp_path / "w" / "pairs.jsonl", tmp_path / "out", "--endpoint.url", url, plan=plan) == 0
    assert len(seen) == 1
    assert "1  a medium that endpoints do not take" in capsys.readouterr().out


def test_a_journal_is_not_rewritten_and_belongs_to_one_process(tmp_path):
    path = tmp_path / "a.jsonl"
    with Journal(path) as journal:
        journal.add(Outcome("a", "simple"))
        code = "import sys, pathlib, lightning_conan.reasoning.journal as j\nwith j.Journal(pathlib.Path(sys.argv[1])): pass"
        other = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False, timeout=60)
        assert f"a.jsonl must have one writer, and process {os.getpid()} on" in other.stderr
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "b", "ki')
    again = Journal(path)
    assert path.read_bytes() != whole  # looking at it changes nothing
    with again:
        assert path.read_bytes() == whole
    assert list(again.outcomes) == ["a"]


def test_what_another_process_wrote_meanwhile_is_kept(tmp_path):
    """A second one looks at the journal, waits long (for hashes of media) and opens it when the first one is done."""
    path = tmp_path / "a.jsonl"
    second = Journal(path)
    with Journal(path) as first:
        first.add(Outcome("a", "simple"))
    with second:
        second.add(Outcome("b", "simple"))
    assert list(second.outcomes) == list(Journal(path).outcomes) == ["a", "b"]


def test_the_verifier_has_a_price_of_its_own(tmp_path, capsys):
    manifest, _ = world(tmp_path / "world", 4, 0)
    answer = GOOD.format(" ".join(f"word{n} of the change that is asked" for n in range(4)), "the picture in blue")
    with server(lambda body, number: (200, "yes 0.9" if "Is every step true" in text_of(body) else answer)) as (url, seen):
        words = ["--endpoint.url", url, "--endpoint.prompt_price", "1e6", "--verifier.url", url, "--verifier.prompt_price", "2e6"]
        assert run(manifest, tmp_path / "out", *words) == 0
    summary = json.loads((tmp_path / "out" / "cot.json").read_text())
    assert len(seen) == 8  # each costs 10 to read and 5 to write
    assert [summary[f"{whose}prompt_tokens"] for whose in ("", "verifier_")] == [40, 40]
    assert [summary[f"{whose}completion_tokens"] for whose in ("", "verifier_")] == [20, 20]
    assert "tokens: 80 read, 40 written, 120.00 in all" in capsys.readouterr().err


FILTERED = {
    "by the answer's end": (200, completion(None, "content_filter")),
    "by the question's refusal": (400, {"error": {"code": "content_filter"}}),
}


@pytest.mark.parametrize("status", FILTERED)
@pytest.mark.parametrize("question", ["teacher", "verifier", "router"])
def test_an_answer_that_a_filter_withheld_is_dropped_and_counted_and_not_asked_again(tmp_path, capsys, status, question):
    """It is an answer: the run ends, and a second one has nothing to ask."""
    manifest, _ = world(tmp_path / "world", 3, 0)
    withheld, counts = [], []

    def answer(body, number):
        text = text_of(body)
        who = "verifier" if "Is every step" in text else "teacher" if "<reasoning>" in text else "router"
        if who == question and not withheld:
            withheld.append(body)
            return FILTERED[status]
        return 200, {"teacher": good(f"picture {len(seen)}"), "verifier": "yes 0.9", "router": "composed"}[who]

    plan = json.dumps({"rules": RULES, "by": "teacher" if question == "router" else "rule", "under_way": 1})
    with server(answer) as (url, seen):
        for _ in range(2):
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            assert run(manifest, tmp_path / "out", "--endpoint.url", url, plan=plan) == 0
            assert json.loads((tmp_path / "out" / "cot.json").read_text())["reasons"] == {"withheld by a filter": 1}
            counts.append(len(seen))
    assert counts[0] == counts[1]
    assert seen.count(withheld[0]) == 1
    assert "1  withheld by a filter" in capsys.readouterr().out


def spend(out):
    summary = json.loads((out / "cot.json").read_text())
    return summary["prompt_tokens"] + summary["verifier_prompt_tokens"]


def test_what_was_paid_counts_also_where_the_verifier_gave_no_answer(tmp_path):
    """Its pairs are asked again, and their teacher is paid once more."""
    manifest, paid, down = one_pair(tmp_path / "w", "red apple"), [], [True]
    plan = json.dumps({"rules": RULES, "kinds": {"t": "composed"}})

    def answer(body, number):
        if "Is every step" in text_of(body) and down[0]:
            return 503, "gone"
        paid.append(10)
        return 200, "yes 0.9" if "Is every step" in text_of(body) else good("fruit")

    with server(answer) as (url, _):
        words = ["--endpoint.url", url, "--endpoint.retries", "0"]
        for _ in range(2):
            assert run(manifest, tmp_path / "out", *words, plan=plan) == 1
        down[0] = False
        assert run(manifest, tmp_path / "out", *words, plan=plan) == 0
    assert spend(tmp_path / "out") == sum(paid) == 40
    (journal,) = (tmp_path / "out.cot").glob("*.jsonl")
    assert sum(vars(Journal(journal).outcomes["k"])[f"{whose}completion_tokens"] for whose in ("", "verifier_")) == 20


def test_what_was_paid_for_pairs_without_an_answer_counts(tmp_path):
    lines = [
        json.loads(one_pair(tmp_path / "w", words).read_text()) | {"key": words[:3]} for words in ("red apple", "blue whale")
    ]
    (tmp_path / "w" / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plan = json.dumps({"rules": RULES, "kinds": {"t": "composed"}})

    def answer(body, number):
        if "Is every step" in text_of(body):
            return (200, "yes 0.9") if "red apple" in text_of(body) else (503, "gone")
        return 200, good("fruit")

    with server(answer) as (url, _):
        words = ["--endpoint.url", url, "--endpoint.retries", "0", "--most_failed", "1"]
        assert run(tmp_path / "w" / "pairs.jsonl", tmp_path / "out", *words, plan=plan) == 0
    assert list(texts(tmp_path / "out")) == ["red"]
    assert spend(tmp_path / "out") == 30


@pytest.mark.parametrize("how", ["Ctrl-C", "a fault of ours"])
def test_what_was_paid_counts_where_the_run_is_stopped(tmp_path, how):
    """The teacher has answered, and the verifier is being asked."""

    class Stopped:
        async def ask(self, key, question, messages):
            if question != "verify":
                return Reply(good("fruit"), True, 100, 10)
            if key == "k1":
                raise KeyboardInterrupt if how == "Ctrl-C" else AttributeError("oops")
            return await asyncio.sleep(60)

    pairs = [Pair(f"k{n}", "t", "text", Item((f"fruit {n}",)), Item(("fruit",))) for n in range(2)]
    author = Author(Plan({"t": "composed"}, rules=Rules(repeats=0, keyword=False)), Stopped())
    with pytest.raises(KeyboardInterrupt if how == "Ctrl-C" else AttributeError):
        asyncio.run(ask_all(pairs, author, Journal(tmp_path / "a.jsonl"), lambda: None))
    again = Journal(tmp_path / "a.jsonl")
    assert not again.outcomes
    assert {key: failure.prompt_tokens for key, failure in again.failures.items()} == {"k0": 100, "k1": 100}
    assert not any(again.knows(pair) for pair in pairs)


def test_a_signature_that_was_renewed_is_the_same_endpoint_and_stands_nowhere(tmp_path, capsys, caplog):
    """In no file, no message and no log."""
    manifest, plan = (
        one_pair(tmp_path / "w", "red apple"),
        json.dumps({"rules": RULES, "verify": False, "kinds": {"t": "composed"}}),
    )
    with server(lambda body, number: (200, good("fruit"))) as (url, seen), caplog.at_level("DEBUG"):
        for signature in ("made-up-1", "made-up-2"):
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            signed = f"{url.replace('//', '//me:made-up-0@')}?sig={signature}"
            assert run(manifest, tmp_path / "out", "--endpoint.url", signed, plan=plan) == 0
    assert len(seen) == 1
    with caplog.at_level("DEBUG"):
        assert run(manifest, tmp_path / "other", "--endpoint.url", signed, "--endpoint.retries", "0", plan=plan) == 1
    told = capsys.readouterr()
    assert "gave no answer about k" in told.err
    written = (
        b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        + (told.out + told.err + caplog.text).encode()
    )
    assert b"made-up" not in written


def test_a_line_of_a_journal_that_is_none_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    for line in ("nonsense", "[]", '{"key": "k"}', '{"key": "k", "kind": "simple", "more": 1}', "\x00"):
        path.write_text('{"key": "a", "kind": "simple"}\n' + line + "\n")
        with pytest.raises(ValueError, match=r"a\.jsonl:2 must be an outcome"):
            Journal(path)


def test_a_disk_that_is_full_is_no_silence_of_the_endpoint(tmp_path):
    """Nothing more is asked, since no answer could be kept."""
    asked = []

    class Counting:
        async def ask(self, key, question, messages):
            asked.append(key)
            return Reply("simple")

    class Full(Journal):
        def __enter__(self):
            super().__enter__()
            self.file = Path("/dev/full").open("w")
            return self

        def __exit__(self, *error):
            self.lock.release()

    pairs = [Pair(f"k{n}", "t", "text", Item((f"fruit {n}",)), Item(("fruit",))) for n in range(9)]
    with pytest.raises(OSError, match=r"No space left on device.*a\.jsonl"):
        asyncio.run(
            ask_all(pairs, Author(Plan(by="teacher", under_way=1), Counting()), Full(tmp_path / "a.jsonl"), lambda: None, 99)
        )
    assert asked == ["k0"]
