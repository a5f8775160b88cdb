"""M-BEIR's layout in miniature; its definitions as a plain loop."""

import json

import pytest
import torch

from lightning_conan.boards.cache import EmbeddingCache
from lightning_conan.boards.embedding import embed_missing, hash_tasks
from lightning_conan.boards.m_beir import CELLS, MODALITIES, Cell, read_board, sentence
from lightning_conan.boards.scoring import score_task
from lightning_conan.cli.main import main
from lightning_conan.embedder.checkpoint import embeds_as
from lightning_conan.items import Item, Media
from lightning_conan.retrieval.trec import read_run
from lightning_conan.training import Stage
from samples import png

PROMPTS = ["find the picture that fits these words", "Show what is meant."]


def entry(number, modality, prefix):
    """Text and image of a query or a candidate, as upstream has them."""
    text = f'  "{prefix} number {number}\r' if "text" in modality else None
    return text, f"images/{number % 7}.png" if "image" in modality else None


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four cells: text to image, image to text, both to image (fashion), both to both; six queries and nine candidates each."""
    root = tmp_path_factory.mktemp("m_beir")
    (root / "images").mkdir()
    for number in range(7):
        (root / f"images/{number}.png").write_bytes(png(seed=number))
    lines, union = ["query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2\tprompt_3"], []
    for name in ("mscoco_task0", "visualnews_task3", "fashioniq_task7", "infoseek_task8"):
        data_set = {"mscoco": 9, "visualnews": 0, "fashioniq": 7, "infoseek": 6}[name.partition("_")[0]]
        asked, found = MODALITIES[int(name[-1])]
        swapped = ",".join(reversed(found.split(",")))
        lines.append(f"{asked}\t{swapped}\t{name}\t{data_set}\t{PROMPTS[0]}\t\t{PROMPTS[1]}")
        pool = []
        for number in range(9):
            text, image = entry(number, found, "candidate")
            pool.append({"did": f"{data_set}:{number}", "txt": text, "img_path": image, "modality": found, "src_content": None})
        queries = []
        for number in range(6):
            text, image = entry(number, asked, "query")
            queries.append(
                {
                    "qid": f"{data_set}:{number}",
                    "query_txt": text,
                    "query_img_path": image,
                    "query_modality": asked,
                    "query_src_content": None,
                    "pos_cand_list": [f"{data_set}:{number}"],
                    "neg_cand_list": [],
                }
            )
        write(root / f"query/test/mbeir_{name}_test.jsonl", queries)
        own = "_test" if name == "mscoco_task0" else ""
        write(root / f"cand_pool/local/mbeir_{name}{own}_cand_pool.jsonl", pool)
        judged = [
            f"{data_set}:{n} 0 {data_set}:{(n + more) % 9} {grade} {name[-1]}"
            for n in range(6)
            for more, grade in ((0, 1), (2, 1), (3, 0))
        ]
        (root / "qrels/test").mkdir(parents=True, exist_ok=True)
        (root / f"qrels/test/mbeir_{name}_test_qrels.txt").write_text("\n".join(judged) + "\n")
        union += pool
    write(root / "cand_pool/global/mbeir_union_test_cand_pool.jsonl", union)
    (root / "instructions").mkdir()
    (root / "instructions/query_instructions.tsv").write_text("\n".join(lines) + "\n")
    return root


SOME = ("mscoco_task0", "visualnews_task3", "fashioniq_task7", "infoseek_task8")


def by_hand(root, base, name, union):
    """Hit@k of a cell by upstream's definition: every item embedded alone, a plain loop over queries."""
    from lightning_conan.embedder import load_folder

    model, processor, _ = load_folder(base)

    def vector(text, image):
        parts = (*([Media("image", root / image, image)] if image else []), *([text] if text else []))
        with torch.no_grad():
            return model.embed([processor(Item(parts))])[0]

    def formatted(text):
        text = (text or "").replace("\r", "").strip().strip('"')
        return (text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")) if text else ""

    cell = Cell(root, name)
    pool = map(
        json.loads,
        ((root / "cand_pool/global/mbeir_union_test_cand_pool.jsonl") if union else cell.pool).read_text().splitlines(),
    )
    vectors = {one["did"]: vector(formatted(one["txt"]), one["img_path"]) for one in pool}
    positives = {}
    for line in cell.qrels.read_text().splitlines():
        query, _, candidate, grade, _ = line.split()
        if int(grade) > 0:
            positives.setdefault(query, set()).add(candidate)
    hits = {k: [] for k in (1, 5, 10, 20, 50)}
    for line in cell.queries.read_text().splitlines():
        query = json.loads(line)
        own = vector(formatted(f"{formatted(PROMPTS[0])} {query['query_txt'] or ''}"), query["query_img_path"])
        good = positives[query["qid"]]
        order = sorted(vectors, key=lambda did: (-round(float(own @ vectors[did]), 5), did in good))
        for k, found in hits.items():
            found.append(bool(good & set(order[:k])))
    return {f"hit@{k}": 100 * sum(found) / len(found) for k, found in hits.items()}


def test_cells_score_as_upstream_defines_them(root, base, tmp_path):
    tasks = read_board(root, SOME)
    assert [task.name for task in tasks] == [f"{name}{end}" for name in SOME for end in ("", "_union")]
    stage = Stage(base)
    cache = EmbeddingCache(tmp_path, embeds_as(stage.provenance, stage.processor))
    hashed = list(hash_tasks(tasks, stage.processor.config.tells_sides))
    assert len({id(corpus) for task, (_, corpus) in zip(tasks, hashed, strict=True) if task.name.endswith("_union")}) == 1
    embedded = embed_missing(stage, [each for pair in hashed for each in pair], cache, {"accelerator": "cpu"})
    assert embedded == len({content for pair in hashed for each in pair for content in each.contents})
    for task, pair in zip(tasks, hashed, strict=True):
        union = task.name.endswith("_union")
        expected = by_hand(root, base, task.name.removesuffix("_union"), union)
        found = score_task(task, *pair, cache).means
        assert found == pytest.approx({name: expected[name] for name in task.settings.measures}, abs=1e-6), task.name
        assert task.settings.measures[0] == ("hit@10" if task.name.startswith("fashioniq") else "hit@5")
        assert len(task.corpus) == (36 if union else 9)


def test_names_and_modalities_are_upstreams():
    assert len(CELLS) == len(set(CELLS)) == 16
    assert {int(name[-1]) for name in CELLS} == set(MODALITIES)


def test_each_instruction_makes_a_query_of_its_own(root, base, tmp_path):
    """The mean over them is what a draw at random gives on average; rankings are those of the instruction alone."""
    (task,) = read_board(root, SOME[:1], union=False, all_prompts=True)
    assert task.name == SOME[0]
    assert len(task.qrels) == len(task.queries) == 12
    assert task.queries.item(0) == Item(('Find the picture that fits these words.   "query number 0.',))
    assert task.queries.item(1) == Item(('Show what is meant.   "query number 0.',))
    assert [task.queries.key(number) for number in range(3)] == ["9:0#0", "9:0#1", "9:1#0"]
    assert task.qrels["9:0#1"] == read_board(root, SOME[:1], union=False)[0].qrels["9:0"]
    words = ["evaluate", "--folder", str(base), "--board", "m-beir", "--data", str(root), "--cells", json.dumps(SOME[:1])]
    words += ["--union", "false", "--accelerator", "cpu"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    assert main([*words, "--out", str(tmp_path / "all"), "--all_prompts", "true"]) == 0
    one, both = (read_run(tmp_path / name / SOME[0] / "run.txt") for name in ("one", "all"))
    for query, found in one.items():
        assert both[f"{query}#0"] == pytest.approx(found)
    scores = json.loads((tmp_path / "all" / "scores.json").read_text())["tasks"][SOME[0]]["scores"]
    values = json.loads((tmp_path / "all" / SOME[0] / "queries.json").read_text())["hit@5"]
    halves = [[value for query, value in values.items() if query.endswith(end)] for end in ("#0", "#1")]
    assert scores["hit@5"] == pytest.approx(100 * sum(sum(half) / 6 for half in halves) / 2)
    assert main([*words, "--out", str(tmp_path / "one"), "--all_prompts", "true"]) == 1  # another contract


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a dog", "A dog."), ('"a dog"', "A dog."), (" a\r dog? ", "A dog?"), ("", ""), (None, ""), ('""', ""), ("été!", "Été!")],
)
def test_texts_are_formatted_as_upstream_does(text, shown):
    assert sentence(text) == shown


def test_missing_files_are_all_named(root):
    with pytest.raises(ValueError, match=r"lacks 3 of M-BEIR's files: query/test/mbeir_cirr_task7_test.jsonl, qrels/test/"):
        read_board(root, ("cirr_task7",))
    with pytest.raises(ValueError, match="M-BEIR's cells are"):
        read_board(root, ("cirr",))


def test_the_command_reports_the_means_of_both_pools(root, base, tmp_path, capsys):
    words = ["evaluate", "--folder", str(base), "--board", "m-beir", "--data", str(root), "--out", str(tmp_path / "out")]
    cells = ["--cells", json.dumps(["visualnews_task3", "fashioniq_task7"])]
    assert main([*words, *cells, "--accelerator", "cpu"]) == 0
    report = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert set(report["means"]) == {"all", "M-BEIR local", "M-BEIR union"}
    files = {path.name: path for path in (tmp_path / "out" / "run_files").iterdir()}
    stems = [f"visualnews_task3_{pool}_pool_test_k10" for pool in ("single", "union")]
    stems += [f"fashioniq_task7_{pool}_pool_test_k50" for pool in ("single", "union")]
    assert set(files) == {f"mbeir_{stem}_run.txt" for stem in stems}  # as UniIR's retriever names them
    found = read_run(tmp_path / "out" / "visualnews_task3" / "run.txt")
    for line in files[f"mbeir_{stems[0]}_run.txt"].read_text().splitlines():
        query, q0, entry, rank, score, run, task = line.split()
        assert (q0, run, task) == ("Q0", f"mbeir_{stems[0]}", "3")
        assert float(score) == pytest.approx(sorted(found[query].values(), reverse=True)[int(rank) - 1])
        assert float(score) == pytest.approx(found[query][entry])
    headlines = [report["tasks"][name]["scores"][k] for name, k in (("visualnews_task3", "hit@5"), ("fashioniq_task7", "hit@10"))]
    assert report["means"]["M-BEIR local"] == pytest.approx(sum(headlines) / 2)
    assert main([*words, "--accelerator", "cpu"]) == 1
    assert "lacks 36 of M-BEIR's files" in capsys.readouterr().err
    assert main([*words[:3], "--out", str(tmp_path / "none")]) == 1
    assert "evaluate needs --tasks, or --board with --data, got tasks [], board None" in capsys.readouterr().err
    assert main([*words[:3], "--board", "m-bier", "--out", str(tmp_path / "none")]) == 1
    assert "A board must be one of m-beir" in capsys.readouterr().err
    assert main([*words[:3], "--board", "m-beir", "--out", str(tmp_path / "none")]) == 1
    assert "--board m-beir needs --data" in capsys.readouterr().err
