"""Reasoning by an engine gives the vectors of our own decoding, when the engine writes the same."""

import time
from dataclasses import replace

import pytest
import torch
from stand_in import server, text_of

from lightning_conan.embedder import OmniProcessor, tiny_embedder
from lightning_conan.items import Item
from lightning_conan.reasoning import Decoding, Endpoint, Reasoner, encode_by_engine

TEXTS = {"a red star": "red star", "a blue circle": "", "two bars": "top left bar"}


@pytest.fixture
def reasoner():
    model, processor = tiny_embedder(0)
    settings = replace(processor.config, ends=False, reasons=True, query_hint="Think.", target_hint="Look.")
    return Reasoner(model, OmniProcessor(processor.tokenizer, settings), Decoding(max_new_tokens=7))


def test_what_the_engine_wrote_stands_behind_the_prompt(reasoner):
    """One packed pass; the state after the last word is the embedding, and of a query that needs none the prompt's last."""
    items = [Item((text,)) for text in TEXTS]
    with server(lambda body, number: (200, TEXTS[text_of({"messages": body["messages"][1:]})] + "<|emb|>")) as (url, seen):
        written = encode_by_engine(reasoner, items, Endpoint(url, "conan"))
    model, processor = reasoner.model, reasoner.processor
    for item, vector, tokens in zip(items, written.embeddings, written.tokens, strict=True):
        text = TEXTS[item.parts[0]]
        assert processor.tokenizer.decode(tokens) == text
        with torch.no_grad():
            taught = processor.teach(processor(item), text)
            torch.testing.assert_close(vector, model.embed([replace(taught, labels=None)])[0], atol=1e-5, rtol=0)
    assert not any(written.truncated)
    assert all(body["messages"][0]["content"] == "Think." and body["max_tokens"] == 7 for body in seen)


def test_an_engine_gives_both_states(reasoner):
    """If the folder pools the prompt's state, too."""
    items = [Item((text,)) for text in TEXTS]
    reasoner.model.config.prompt_weight = 2.0
    with server(lambda body, number: (200, TEXTS[text_of({"messages": body["messages"][1:]})])) as (url, _):
        written = encode_by_engine(reasoner, items, Endpoint(url, "conan"))
    processor = reasoner.processor
    for item, vector in zip(items, written.embeddings, strict=True):
        query = processor(item, "query")
        taught = replace(processor.teach(query, TEXTS[item.parts[0]]), labels=None)
        with torch.no_grad():
            wanted = sum(reasoner.model.embed([each])[0] for each in (query, query, taught))
        torch.testing.assert_close(vector, wanted / wanted.norm(), atol=1e-5, rtol=0)


def test_an_engine_that_writes_what_we_would_write_gives_our_vectors(reasoner):
    items = [Item((text,)) for text in TEXTS]
    ours = Reasoner(reasoner.model, reasoner.processor, Decoding("always", max_new_tokens=5)).encode_queries(items)
    said = dict(zip(TEXTS, reasoner.texts(ours), strict=True))
    if any(reasoner.processor.tokenizer(text)["input_ids"] != row for text, row in zip(said.values(), ours.tokens, strict=True)):
        pytest.skip("a random model writes bytes that no tokenizer would")
    with server(lambda body, number: (200, said[text_of({"messages": body["messages"][1:]})])) as (url, _):
        theirs = encode_by_engine(reasoner, items, Endpoint(url, "conan"))
    torch.testing.assert_close(theirs.embeddings, ours.embeddings, atol=1e-5, rtol=0)


def test_an_engine_that_is_not_there_is_named(reasoner):
    with pytest.raises(OSError, match="gave no answer about query 0"):
        encode_by_engine(reasoner, [Item(("a red star",))], Endpoint("http://127.0.0.1:9/v1", retries=0))


def test_no_more_queries_are_under_way_than_may_be_and_an_overload_passes(reasoner):
    """Cloudflare's 52x and Anthropic's 529 too; answers may come in any order."""
    now, most = [], []

    def answer(body, number):
        now.append(body)
        most.append(len(now))
        time.sleep(0.02 * (len(body["messages"][-1]["content"][0]["text"]) % 3))
        now.remove(body)
        return (529, "overloaded") if number == 1 else (200, "")

    items = [Item((f"star {'x' * row}",)) for row in range(9)]
    with server(answer) as (url, seen):
        found = encode_by_engine(reasoner, items, Endpoint(url, "conan", concurrency=2, pause=0.001))
    assert max(most) <= 2
    assert len(seen) == 18
    expected = reasoner.model.embed([reasoner.processor(item, "query") for item in items])
    torch.testing.assert_close(found.embeddings, expected, atol=1e-5, rtol=0)


def test_the_engine_is_told_where_to_stop(reasoner):
    """vLLM strips special tokens and goes on after them, unless it is told."""
    with server(lambda body, number: (200, "red star")) as (url, seen):
        encode_by_engine(reasoner, [Item(("a red star",))], Endpoint(url, "conan"))
    emb = reasoner.processor.ids["emb"]
    assert (seen[0]["stop"], seen[0]["stop_token_ids"], seen[0]["skip_special_tokens"]) == (["<|emb|>"], [emb], False)


@pytest.mark.parametrize("decoding", [Decoding("always"), Decoding("direct"), Decoding(threshold=0.3)])
def test_an_engine_chooses_its_own_route(reasoner, decoding):
    with pytest.raises(ValueError, match="decides by the model's first token"):
        encode_by_engine(Reasoner(reasoner.model, reasoner.processor, decoding), [Item(("a red star",))], Endpoint())
