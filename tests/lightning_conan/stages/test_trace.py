"""TRACE as a stage: what is asked for, where the embedding stands, what moves, and one folder for all verbs."""

import io
import json
from dataclasses import replace

import msgspec
import pytest
import torch
from PIL import Image
from scenarios import Gradients
from sentence_transformers import SentenceTransformer
from torch.nn import functional as F

from datamodules import TraceData
from datamodules.shards.read import ShardSet
from datamodules.shards.write import write_shards
from datamodules.toy_world import draw_composed
from lightning_conan.cli.main import main
from lightning_conan.embedder import IGNORED, Encoded, OmniProcessor, load_folder, pack, save_folder
from lightning_conan.items import Item, Media, Pair
from lightning_conan.objectives import generation_loss, one_pass_backward
from lightning_conan.reasoning import Decoding, Reasoner, encode_queries, hints
from lightning_conan.retrieval import EmbeddingStore, PairSet
from lightning_conan.stages import Trace
from lightning_conan.training import Lora, Stage, Training, stage
from runs import Record, Stop, state, trainer
from samples import png

QUICK = Training(lr=1e-3, warmup_steps=2, temperature=0.05)
LORA = Lora(rank=4, alpha=8)


@pytest.fixture(scope="module")
def reasoned(tmp_path_factory):
    """Packed composed and simple pairs, with what should be written about them."""
    root = tmp_path_factory.mktemp("reasoned")
    for task in ("composed", "simple"):
        pairs, truths = draw_composed(task, 16, 0)
        known = {key: f"{truth.reasoning}\n{truth.answer}" if task == "composed" else "" for key, truth in truths.items()}
        write_shards([msgspec.structs.replace(pair, reasoning=known[pair.key]) for pair in pairs], root / task)
    return root


def data(root, batch=6, tasks=("composed", "simple"), **options):
    return TraceData({task: root / task for task in tasks}, batch_size=batch, num_workers=0, **options)


def trace(folder, training=QUICK, **options):
    return Trace(folder, training, **{"lora": LORA, "query_hint": "", "target_hint": ""} | options)


def test_what_is_asked_for_by_hand(tiny):
    """Each token but the last of the prompt's is left alone; then each word predicts the next, and the last one ``<|emb|>``."""
    _, processor = tiny
    processor = OmniProcessor(processor.tokenizer, replace(processor.config, ends=False))
    query = processor(Item(("a red star",)))
    words = processor.tokenizer("blue star")["input_ids"]
    taught = processor.teach(query, "blue star")
    emb = processor.ids["emb"]
    assert taught.input_ids.tolist() == [*query.input_ids.tolist(), *words]
    assert taught.labels.tolist() == [IGNORED] * (len(query) - 1) + [*words, emb]
    assert taught.positions[0].tolist() == list(range(len(query) + len(words)))
    assert processor.teach(query, "").labels.tolist() == [IGNORED] * (len(query) - 1) + [emb]
    assert processor.tokenizer.decode(query.input_ids).endswith("assistant\n")


def test_the_embedding_is_the_state_that_predicts_emb(tiny, base):
    """And the loss is the plain cross-entropy of the next token, which a shift by one would not be."""
    model, processor = tiny
    processor = OmniProcessor(processor.tokenizer, replace(processor.config, ends=False))
    taught = processor.teach(processor(Item(("a red star",))), "blue star")
    (chunk,) = pack([taught], 1000)
    with torch.no_grad():
        states = model.hidden_states(chunk)[0]
        found = model(chunk, writing=generation_loss)
    logits = states @ model.get_input_embeddings().weight.T
    tokens = [*taught.input_ids.tolist(), processor.ids["emb"]]
    start = len(tokens) - 1 - 3  # two words and <|emb|> are predicted from here on
    losses = [F.cross_entropy(logits[place], torch.tensor(tokens[place + 1])) for place in range(start, len(tokens) - 1)]
    assert len(losses) == 3
    torch.testing.assert_close(found.generation_losses[0], torch.stack(losses).mean())
    torch.testing.assert_close(found.embeddings[0], F.normalize(states[-1], dim=0))


def test_lessons_of_unlike_length_are_embedded_where_each_ends(tiny):
    """Not where the longest one does."""
    model, processor = tiny
    processor = OmniProcessor(processor.tokenizer, replace(processor.config, ends=False))
    taught = [processor.teach(processor(Item(("a red star",))), words) for words in ("blue", "a blue star at the top", "")]
    with torch.no_grad():
        together = model(*pack(taught, 1000), writing=generation_loss)
        alone = {row: model(*pack([item], 1000), writing=generation_loss) for row, item in enumerate(taught)}
    (chunk,) = pack(taught, 1000)
    for place, row in enumerate(chunk.rows):
        for whole, part in zip(together[:2], alone[row][:2], strict=True):
            torch.testing.assert_close(whole[place], part[0], atol=1e-5, rtol=1e-4)


def test_two_states_stand_before_and_after_the_reasoning(tiny):
    """The prompt's is the vector that the query alone has, and the weights are those of directions, whatever the lengths."""
    model, processor = tiny
    processor = OmniProcessor(processor.tokenizer, replace(processor.config, ends=False))
    query, other = (processor(Item((text,))) for text in ("a red star", "a large green circle"))
    chunk = replace(*pack([processor.teach(query, "blue star"), other], 1000))
    with torch.no_grad():
        model.config.prompt_weight = 2.0
        try:
            found = model(chunk, writing=generation_loss)
            last, prompt = model.hidden_states(chunk)[0, [len(query) + 1, len(query) - 1]]
            both = model.pooled(7 * last, prompt)
        finally:
            model.config.prompt_weight = 0.0
        assert model(chunk, writing=generation_loss).prompts is None
        torch.testing.assert_close(model.pooled(last, prompt), found.embeddings[0])
        torch.testing.assert_close(found.prompts, model.embed([query, other]), atol=1e-6, rtol=0)
        torch.testing.assert_close(
            found.embeddings, model.embed([replace(processor.teach(query, "blue star"), labels=None), other]), atol=1e-6, rtol=0
        )
    wanted = last / last.norm() + 2 * prompt / prompt.norm()
    torch.testing.assert_close(both, wanted / wanted.norm())


def gradients(folder, reasoned, root, budget, one_pass=False, dropout=0.0, **options):
    """Loss and gradients of one joint step."""

    record, found = Record(), Gradients()
    with pytest.MonkeyPatch.context() as patch:
        if one_pass:
            patch.setattr(stage, "cached_backward", lambda step, chunks, items: one_pass_backward(step, chunks))
        module = trace(folder, replace(QUICK, token_budget=budget, clip_norm=1e6), lora=replace(LORA, dropout=dropout), **options)
        trainer(root, 1, record, found).fit(module, data(reasoned, tasks=("composed",)))
    return record.losses[0], found.found


@pytest.mark.parametrize(("budget", "dropout", "prompt"), [(1, 0.0, 0.0), (150, 0.0, 0.0), (150, 0.3, 0.0), (150, 0.0, 0.5)])
def test_the_cached_joint_step_is_the_one_pass(base, reasoned, tmp_path, budget, dropout, prompt):
    """All losses, through the adapters, the mergers and the rows of ``<|emb|>``."""
    expected, wanted = gradients(base, reasoned, tmp_path / "a", budget, one_pass=True, dropout=dropout, lambda_prompt=prompt)
    loss, found = gradients(base, reasoned, tmp_path / "b", budget, dropout=dropout, lambda_prompt=prompt)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert found.keys() == wanted.keys()
    assert any("emb_rows" in name and bool(tensor.any()) for name, tensor in found.items())
    floor = 1e-5 * max(tensor.abs().max() for tensor in wanted.values())
    assert all((found[name] - tensor).abs().max() <= floor for name, tensor in wanted.items())


@pytest.fixture(scope="module")
def folder(base, reasoned, tmp_path_factory):
    """The folder that a few steps write."""
    out = tmp_path_factory.mktemp("trace") / "reasoning"
    module = trace(base)
    trainer(out.parent, 4).fit(module, data(reasoned))
    module.write_folder(out)
    return out


def test_what_moves_is_the_language_model_the_mergers_and_one_row(base, folder):
    (before, _, _), (after, processor, provenance) = load_folder(base), load_folder(folder)
    assert (provenance.state, processor.config.reasons, processor.config.ends) == ("reasoning", True, False)
    old, new = before.state_dict(), after.state_dict()
    moved = {name for name, tensor in old.items() if not tensor.equal(new[name])}
    assert old.keys() == new.keys()
    assert any("self_attn" in name for name in moved)
    assert all("merger" in name for name in moved if ".visual." in name)
    assert not any(name.startswith("audio_") for name in moved)
    table = "backbone.language_model.embed_tokens.weight"
    rows = (old[table] != new[table]).any(dim=1).nonzero()[:, 0].tolist()
    assert rows == [processor.ids["emb"]]


def test_resuming_is_bit_exact(base, reasoned, tmp_path):
    one, other, third = trace(base), trace(base), trace(base)
    trainer(tmp_path / "a", 4).fit(one, data(reasoned))
    trainer(tmp_path / "b", 4, Stop(2)).fit(other, data(reasoned))
    trainer(tmp_path / "b", 4).fit(third, data(reasoned), ckpt_path="last")
    again = state(third)
    assert all(torch.equal(tensor, again[name]) for name, tensor in state(one).items())


def test_losses_are_weighed(base, reasoned, tmp_path):
    """lambda_gen and lambda_ret scale what they stand for."""
    found, seen = {}, []
    for weights in ((1.0, 0.0), (1.0, 1.0), (2.0, 0.5)):
        record, module = Record(), trace(base, lambda_gen=weights[0], lambda_ret=weights[1])
        runner = trainer(tmp_path / str(weights), 1, record)
        runner.fit(module, data(reasoned))
        seen.append(module.seen)
        logged = {name: float(runner.callback_metrics[f"train/{name}_loss"]) for name in ("generation", "retrieval")}
        assert record.losses[0] == pytest.approx(weights[0] * logged["generation"] + weights[1] * logged["retrieval"], rel=1e-5)
        found[weights] = logged
    assert seen[0] == seen[1] == seen[2] != {}
    assert found[1.0, 0.0]["retrieval"] == 0
    assert found[1.0, 1.0]["retrieval"] > 0


def test_the_route_is_a_term_of_its_own(base, reasoned, tmp_path):
    """The loss grows by the same cross-entropy, that of first tokens, with each unit of lambda_route."""
    losses = []
    for weight in (1.0, 2.0, 3.0):
        record = Record()
        runner = trainer(tmp_path / str(weight), 1, record)
        runner.fit(trace(base, lambda_ret=0.0, lambda_route=weight), data(reasoned))
        losses.append(record.losses[0])
    assert losses[1] - losses[0] > 1  # an untrained model knows nothing of routes
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-4)


def test_a_plain_embedder_learns_from_the_queries_alone(base, reasoned, tmp_path):
    module = trace(base, lambda_gen=0.0)
    trainer(tmp_path, 1).fit(module, data(reasoned, teach=False))
    module.write_folder(tmp_path / "plain")
    settings = load_folder(tmp_path / "plain")[1].config
    assert (settings.reasons, settings.ends) == (False, False)


def test_a_folder_knows_that_it_pools_two_states(base, reasoned, tmp_path):
    """Until it is trained without."""
    for name, weight, start in (("two", 0.2, base), ("one", 0.0, tmp_path / "two")):
        module = trace(start, lambda_prompt=weight, prompt_weight=3.0)
        trainer(tmp_path / f"work_{name}", 1).fit(module, data(reasoned, batch=2, tasks=("composed",)))
        module.write_folder(tmp_path / name)
        assert load_folder(tmp_path / name)[0].config.prompt_weight == (3.0 if weight else 0.0)


def test_refuses_lessons_that_do_not_fit_and_weights_that_teach_nothing(base, reasoned, tmp_path):
    with pytest.raises(ValueError, match=r"got lambda_gen=0.0 and queries with it"):
        trainer(tmp_path, 1).fit(trace(base, lambda_gen=0.0), data(reasoned))
    with pytest.raises(ValueError, match=r"got lambda_gen=1.0 and queries without it"):
        trainer(tmp_path, 1).fit(trace(base), data(reasoned, teach=False))
    for weights in (
        {"lambda_prompt": -0.1},
        {"lambda_gen": 0.0, "lambda_prompt": 0.2},
        {"lambda_ret": 0.0, "lambda_prompt": 0.2},
    ):
        with pytest.raises(ValueError, match="lambda_prompt must not be negative"):
            trace(base, **weights)
    with pytest.raises(ValueError, match="prompt_weight must be positive"):
        trace(base, lambda_prompt=0.2, prompt_weight=0.0)
    for weights in ({"lambda_route": 0.0}, {"lambda_gen": 0.0, "lambda_route": 1.0}):
        with pytest.raises(ValueError, match="lambda_route must be positive"):
            trace(base, **weights)
    with pytest.raises(ValueError, match="nor both 0"):
        trace(base, lambda_gen=0.0, lambda_ret=0.0)


def test_scores_come_with_what_was_written(folder, reasoned, tmp_path):
    """Each route by the same folder; queries of a test never carry the answer."""
    for route, reasoned_share in (("direct", 0.0), ("always", 100.0)):
        runner = trainer(tmp_path, 1)
        sets = TraceData(test={"composed": reasoned / "composed"}, batch_size=7, num_workers=0)
        runner.test(Stage(folder, decoding=Decoding(route, max_new_tokens=3)), sets, verbose=False)
        scores = {name.removeprefix("test/composed/"): float(value) for name, value in runner.callback_metrics.items()}
        assert scores["reasoned"] == reasoned_share
        assert scores["tokens"] <= 3
        assert scores["queries_per_second"] > 0


def test_the_same_verbs_take_a_reasoning_folder(folder, reasoned, tmp_path, capsys):
    """doctor, embed of either side, search; queries are embedded after reasoning, what is searched never is."""
    model, processor, _ = load_folder(folder)
    pairs = [ShardSet(reasoned / "simple").read(number) for number in range(5)]
    manifest = tmp_path / "items.jsonl"
    lines = [{"key": pair.key, "text": pair.query.parts[0]} for pair in pairs]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["doctor", str(folder)]) == 0
    for side in ("query", "target"):
        words = ["embed", "--folder", str(folder), "--source", str(manifest), "--out", str(tmp_path / side), "--side", side]
        assert main([*words, "--precision", "float32", "--accelerator", "cpu"]) == 0
    from lightning_conan.retrieval.store import EmbeddingStore

    found = {side: torch.cat(list(EmbeddingStore(tmp_path / side).blocks())) for side in ("query", "target")}
    reasoner = Reasoner(model, processor)
    items = [Item((line["text"],)) for line in lines]
    torch.testing.assert_close(found["query"], reasoner.encode_queries(items).embeddings, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["target"], reasoner.encode_candidates(items), atol=1e-5, rtol=0)
    capsys.readouterr()
    words = [
        "search",
        "--folder",
        str(folder),
        "--index",
        str(tmp_path / "target"),
        "--text",
        lines[2]["text"],
        "--format",
        "jsonl",
    ]
    assert main([*words, "--k", "5"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    score = {hit["key"]: hit["score"] for hit in hits}[lines[2]["key"]]
    assert score == pytest.approx(float(found["query"][2] @ found["target"][2]), abs=1e-4)


def test_exports_reason_about_queries_or_embed_them_at_once(folder, tmp_path):
    """With the package's module as `Reasoner` does, with stock ones directly; candidates are the same in both."""
    model, processor, provenance = load_folder(folder)
    hinted = OmniProcessor(processor.tokenizer, replace(processor.config, query_hint="Think first.", target_hint="Just look."))
    save_folder(tmp_path / "hinted", model, hinted, provenance)
    for name, stock in (("whole", "false"), ("stock", "true")):
        words = ["export", str(tmp_path / "hinted"), "--to", "sentence-transformers", str(tmp_path / name), "--stock", stock]
        assert main(words) == 0
        assert "encode_query(" in (tmp_path / name / "README.md").read_text()
    whole = SentenceTransformer(str(tmp_path / "whole"), trust_remote_code=True)
    stock = SentenceTransformer(str(tmp_path / "stock"))
    picture = Image.open(io.BytesIO(png()))
    inputs = [{"image": picture, "text": "make it blue"}, "a red star", {"image": picture}]
    items = [
        Item((Media("image", png(), "a.png"), "make it blue")),
        Item(("a red star",)),
        Item((Media("image", png(), "a.png"),)),
    ]
    candidates = Reasoner(model, hinted).encode_candidates(items)
    for exported in (whole, stock):
        torch.testing.assert_close(exported.encode_document(inputs, convert_to_tensor=True), candidates, atol=1e-5, rtol=0)
    for exported, route in ((stock, "direct"), (whole, "always"), (whole, "adaptive")):
        decoding = Decoding(route, max_new_tokens=4)
        if exported is whole:
            whole[0].decoding = decoding
        expected = Reasoner(model, hinted, decoding).encode_queries(items).embeddings
        torch.testing.assert_close(exported.encode_query(inputs, convert_to_tensor=True), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="call encode_query or encode_document"):
        whole.encode(["a red star"])


def test_a_blank_prompt_can_be_reasoned_about(folder):
    """The least that there is to ask, in a model that never stops by itself."""
    model, processor, _ = load_folder(folder)
    alone = Encoded(torch.tensor([processor.ids["im_start"]]), torch.zeros(3, 1, dtype=torch.long))
    from lightning_conan.reasoning import encode_queries

    written = encode_queries(model, [alone], Decoding("always", max_new_tokens=2))
    assert written.embeddings.isfinite().all()


def test_untied_heads_train_both_rows(tmp_path, reasoned, base):
    """If input and output have tables of their own, ``<|emb|>`` has a row in each."""
    model, processor, provenance = load_folder(base)
    model.config.output_head = True
    model.lm_head = torch.nn.Linear(128, model.get_input_embeddings().weight.shape[0], bias=False)
    save_folder(tmp_path / "untied", model, processor, provenance)
    module = trace(tmp_path / "untied")
    trainer(tmp_path, 2).fit(module, data(reasoned))
    module.write_folder(tmp_path / "out")
    old, new = (load_folder(tmp_path / name)[0] for name in ("untied", "out"))
    rows = (old.lm_head.weight != new.lm_head.weight).any(dim=1).nonzero()[:, 0].tolist()
    assert rows == [processor.ids["emb"]]


def test_a_lesson_after_a_picture_stands_where_decoding_writes(tiny, items):
    """A picture's tokens are many and its positions few: the next word comes after the last position, not the last token."""
    model, processor = tiny
    processor = OmniProcessor(processor.tokenizer, replace(processor.config, ends=False, reasons=True))
    query = processor(items["image and text"])
    assert int(query.positions.max()) + 1 < len(query)
    lesson = processor.teach(query, "it is red")
    count = len(lesson) - len(query)
    assert lesson.positions[:, len(query)].tolist() == [int(query.positions.max()) + 1] * 3
    with torch.no_grad():
        written = encode_queries(model, [query], Decoding("always", max_new_tokens=count))
        (words,) = written.tokens
        assert len(words) == count
        same = replace(lesson, input_ids=torch.cat([query.input_ids, torch.tensor(words)]), labels=None)
        torch.testing.assert_close(model.embed([same]), written.embeddings, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("back", "prompt"), [(False, 0.0), (True, 0.0), (True, 0.5)])
def test_targets_find_their_queries_only_if_asked(base, reasoned, tmp_path, back, prompt):
    """L_ret against plain cross-entropies of the same embeddings."""
    module, found = trace(base, back=back, lambda_prompt=prompt), []
    loss = module.loss

    def noted(batch, output):
        found.append((output, loss(batch, output).detach()))
        return loss(batch, output)

    module.loss = noted
    trainer(tmp_path, 1).fit(module, data(reasoned, tasks=("composed",)))
    output, value = found[0]
    wanted = 0.0
    for weight, embeddings in [(1.0, output.embeddings), (prompt, output.prompts)][: 2 if prompt else 1]:
        query, target = embeddings.detach().chunk(2)
        scores, rows = query @ target.T / QUICK.temperature, torch.arange(len(query))
        forth = F.cross_entropy(scores, rows)
        wanted = wanted + weight * ((forth + F.cross_entropy(scores.T, rows)) / 2 if back else forth)
    assert module.seen.total() == 2 * len(query)
    assert float(value) == pytest.approx(float(wanted + output.generation_losses[: len(query)].detach().mean()), rel=1e-4)


def test_hints_of_both_sides_reach_every_embedding(base, tmp_path, items):
    """By default those of the prompts; `conan embed` and scoring take each for its side."""
    stage = Trace(base, QUICK, LORA)
    assert (stage.processor.config.query_hint, stage.processor.config.target_hint) == hints()
    model, processor, provenance = load_folder(base)
    hinted = OmniProcessor(processor.tokenizer, replace(processor.config, query_hint="Ask.", target_hint="Be found."))
    save_folder(tmp_path / "hinted", model, hinted, provenance)
    (tmp_path / "m.jsonl").write_text(json.dumps({"key": "a", "text": "a red star"}) + "\n")
    item = Item(("a red star",))
    with torch.no_grad():
        wanted = {side: model.embed([hinted(item, side)])[0] for side in ("query", "target")}
    assert float(wanted["query"] @ wanted["target"]) < 0.9999
    for side, vector in wanted.items():
        words = ["embed", "--folder", str(tmp_path / "hinted"), "--source", str(tmp_path / "m.jsonl"), "--side", side]
        assert main([*words, "--out", str(tmp_path / side), "--accelerator", "cpu", "--precision", "float32"]) == 0
        torch.testing.assert_close(next(EmbeddingStore(tmp_path / side).blocks())[0], vector, atol=1e-5, rtol=0)
    pair = Pair("a", "t", "text", item, item)
    query, target = PairSet.encode([pair], hinted).embed(model)
    torch.testing.assert_close(query[0], wanted["query"], atol=1e-5, rtol=0)
    torch.testing.assert_close(target[0], wanted["target"], atol=1e-5, rtol=0)
