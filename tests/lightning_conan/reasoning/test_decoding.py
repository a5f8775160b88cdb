"""Adaptive decoding is the slow way of one query at a time, whatever stands beside it (fault 24)."""

from dataclasses import replace

import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F

from lightning_conan.embedder import OmniProcessor, pack, tiny_embedder
from lightning_conan.items import Item
from lightning_conan.reasoning import Decoding, Reasoner, encode_queries
from lightning_conan.reasoning.decoding import ReasonedEmbeddings, read_prompts, ungraded

MOST = 12


@pytest.fixture(scope="module")
def model():
    """A random model that writes ``<|emb|>`` now and then."""
    model, processor = tiny_embedder(0)
    processor = OmniProcessor(processor.tokenizer, replace(processor.config, ends=False, reasons=True))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        model.get_input_embeddings().weight[model.config.emb_token_id] = 0.16 * torch.randn(128, generator=generator)
    return model, processor


@pytest.fixture(scope="module")
def queries(model, items):
    words = [f"a {size} {colour} circle" * (size == "large" or 2) for size in ("small", "large") for colour in ("red", "green")]
    alike = [Item(item.parts, "Find what these words or this picture mean.") for item in items.values()]  # share a prefix
    return [model[1](item) for item in [*items.values(), *alike, *(Item((text,)) for text in words)]]


def embeds_at_once(logits, decoding, emb):
    """The rule in numbers of its own: none is likelier, or the share is large enough."""
    if decoding.route != "adaptive":
        return decoding.route == "direct"
    mine = logits.double()
    if decoding.threshold is None:
        return not bool((mine > mine[emb]).any())
    return float(1 / (mine - mine[emb]).exp().sum()) >= decoding.threshold


@torch.no_grad()
def one_by_one(model, encoded, decoding):
    """Without a cache: all tokens so far are read anew for each further one."""
    ids, written, emb, first = encoded, [], model.config.emb_token_id, 0.0
    while True:
        (chunk,) = pack([ids], 10_000)
        state = model.hidden_states(chunk)[0, -1]
        logits = model.logits(state)
        if not written and not embeds_at_once(logits, decoding, emb):
            logits[emb] = -torch.inf
        elif not written:
            return F.normalize(state, dim=0), [], False
        if not written:
            first = model.config.prompt_weight * F.normalize(state, dim=0)
        token = int(logits.argmax())
        if token == emb or len(written) == decoding.max_new_tokens:
            return F.normalize(F.normalize(state, dim=0) + first, dim=0), written, token != emb
        written.append(token)
        after = ids.positions[:, -1:] + 1
        ids = replace(
            ids, input_ids=torch.cat([ids.input_ids, torch.tensor([token])]), positions=torch.cat([ids.positions, after], 1)
        )


@pytest.mark.parametrize("decoding", [
    Decoding(max_new_tokens=MOST),
    Decoding(max_new_tokens=MOST, rows=3),
    Decoding(max_new_tokens=1),
    Decoding("always", max_new_tokens=MOST, rows=5),
    Decoding("direct"),
    Decoding(threshold=0.02, max_new_tokens=MOST),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("budget", [10_000, 60])
def test_is_one_query_at_a_time_without_a_cache(model, queries, decoding, budget):
    found = encode_queries(model[0], queries, decoding, budget)
    for row, query in enumerate(queries):
        vector, written, truncated = one_by_one(model[0], query, decoding)
        assert found.tokens[row] == written
        assert found.truncated[row] == truncated
        torch.testing.assert_close(found.embeddings[row], vector, atol=1e-5, rtol=0)


def test_two_states_are_those_of_one_query_at_a_time(model, queries, monkeypatch):
    """Whatever the rows beside it, which leave one by one; a query that is embedded at once has one."""
    alone = encode_queries(model[0], queries, Decoding(max_new_tokens=MOST))
    monkeypatch.setattr(model[0].config, "prompt_weight", 0.7)
    found = encode_queries(model[0], queries, Decoding(max_new_tokens=MOST, rows=5), 60)
    for row, query in enumerate(queries):
        vector, written, _ = one_by_one(model[0], query, Decoding(max_new_tokens=MOST))
        assert found.tokens[row] == written == alone.tokens[row]
        torch.testing.assert_close(found.embeddings[row], vector, atol=1e-5, rtol=0)
        assert torch.allclose(found.embeddings[row], alone.embeddings[row], atol=1e-4) == (not written)


def test_the_route_is_that_of_the_likeliest_token():
    """The second likeliest is not enough, however close; of a threshold equality is."""
    logits = torch.tensor([[3.0, 0.0, 0.0], [0.0, 3.0, 2.9], [0.0, 2.9, 3.0], [0.0, 0.0, -torch.inf]])
    assert Decoding().embeds_at_once(logits, 1).tolist() == [False, True, False, False]
    assert Decoding(threshold=0.5).embeds_at_once(logits, 1).tolist() == [False, True, False, True]
    assert Decoding("direct").embeds_at_once(logits, 1).tolist() == [True] * 4
    assert Decoding("always").embeds_at_once(logits, 1).tolist() == [False] * 4


def test_a_query_that_ends_at_the_limit_by_itself_is_not_truncated(model, queries):
    """The last token that is allowed may be followed by ``<|emb|>``."""
    free = encode_queries(model[0], queries, Decoding(max_new_tokens=MOST))
    rows = [(len(tokens), truncated) for tokens, truncated in zip(free.tokens, free.truncated, strict=True)]
    ended = {length for length, truncated in rows if length and not truncated}
    assert ended
    for limit in ended:
        found = encode_queries(model[0], queries, Decoding(max_new_tokens=limit))
        assert found.truncated == [truncated or length > limit for length, truncated in rows]


def test_eager_attention_writes_the_same(model, queries):
    expected = encode_queries(model[0], queries, Decoding(max_new_tokens=MOST))
    model[0].switch("eager", None)
    try:
        found = encode_queries(model[0], queries, Decoding(max_new_tokens=MOST))
    finally:
        model[0].switch("sdpa", None)
    assert found.tokens == expected.tokens
    torch.testing.assert_close(found.embeddings, expected.embeddings, atol=1e-5, rtol=0)


def test_who_waits_keeps_no_more_than_its_own_cache(model, queries):
    """Not that of the whole chunk that its prompt was read in."""
    nothing = ReasonedEmbeddings(torch.empty(len(queries), 128), [[] for _ in queries], [False] * len(queries))
    with torch.no_grad():
        chunks = pack(queries, 100_000)
        rows = [row for chunk in chunks for row in read_prompts(model[0], chunk, None, Decoding("always"), nothing)]
    assert len(chunks) < len(rows) == len(queries)
    for tensor in (tensor for row in rows for pair in row.pairs for tensor in pair):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_the_model_of_these_tests_does_all_there_is_to_do(model, queries):
    """Some embed at once, some stop by themselves after words of several lengths, some have to be stopped."""
    found = encode_queries(model[0], queries, Decoding(max_new_tokens=MOST))
    ended = {len(tokens) for tokens, truncated in zip(found.tokens, found.truncated, strict=True) if not truncated}
    assert 0 in ended
    assert len(ended) > 2
    assert any(found.truncated)


def test_route_and_vector_do_not_depend_on_neighbours_or_order(model, queries):
    decoding = Decoding(max_new_tokens=MOST)
    together, backwards = (encode_queries(model[0], rows, decoding) for rows in (queries, queries[::-1]))
    assert together.tokens == backwards.tokens[::-1]
    torch.testing.assert_close(together.embeddings, backwards.embeddings.flip(0), atol=1e-5, rtol=0)
    for row, query in enumerate(queries):
        alone = encode_queries(model[0], [query], decoding)
        assert alone.tokens == [together.tokens[row]]
        torch.testing.assert_close(alone.embeddings[0], together.embeddings[row], atol=1e-5, rtol=0)


def test_thresholds_order_the_routes(model, queries):
    """At 0 everyone embeds at once, above 1 nobody does, and in between fewer with each step up."""
    at_once = [
        sum(not tokens for tokens in encode_queries(model[0], queries, Decoding(threshold=value, max_new_tokens=2)).tokens)
        for value in (0.0, 0.01, 0.1, 1.1)
    ]
    assert at_once == sorted(at_once, reverse=True)
    assert (at_once[0], at_once[-1]) == (len(queries), 0)


def test_vectors_are_finite_and_of_unit_length(model, queries):
    vectors = encode_queries(model[0], queries, Decoding(max_new_tokens=3)).embeddings
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(queries)))


def test_a_model_that_decoded_still_trains(queries):
    """Inference mode leaves nothing behind in the model that a gradient must not meet."""
    model = tiny_embedder(0)[0]
    vectors = encode_queries(model, queries, Decoding("always", max_new_tokens=2)).embeddings
    assert not vectors.is_inference()
    for chunk in pack(queries, 10_000):
        model(chunk).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert model.get_input_embeddings().weight.grad.any()


def test_sharded_weights_are_not_gathered_in_inference_mode():
    model = tiny_embedder(0)[0]
    layer = model.backbone.language_model.layers[0]
    with ungraded(model):
        assert torch.is_inference_mode_enabled()
    layer.__class__ = type("Sharded", (FSDPModule, type(layer)), {})
    with ungraded(model):
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()


def test_nothing_to_embed_gives_nothing(model):
    assert encode_queries(model[0], [], Decoding()).embeddings.shape == (0, 128)


def test_candidates_never_reason_and_their_vector_is_the_state_that_would_write(model, items):
    model, processor = model
    found = Reasoner(model, processor).encode_candidates([items["image"]])
    (chunk,) = pack([processor(items["image"], "target")], 1000)
    with torch.no_grad():
        torch.testing.assert_close(found[0], F.normalize(model.hidden_states(chunk)[0, -1], dim=0))


def test_what_was_written_can_be_read(model, items):
    reasoner = Reasoner(*model, Decoding("always", max_new_tokens=4))
    written = reasoner.encode_queries([items["text"], items["image"]])
    for text, tokens in zip(reasoner.texts(written), written.tokens, strict=True):
        assert text == model[1].tokenizer.decode(tokens)


def test_refuses_settings_and_folders_that_make_no_sense(tiny):
    with pytest.raises(ValueError, match="must be positive, got 0"):
        Decoding(max_new_tokens=0)
    with pytest.raises(ValueError, match=r"got -0.1 and 'adaptive'"):
        Decoding(threshold=-0.1)
    with pytest.raises(ValueError, match="needs a folder that `Trace` wrote"):
        Reasoner(*tiny)
