"""Items of one instruction share the computation of their first tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_conan.embedder import load_folder
from lightning_conan.embedder import model as model_module
from lightning_conan.embedder.packing import Encoded
from lightning_conan.embedder.prefix import by_prefix
from lightning_conan.items import Item, Media
from samples import flac, png

LONG_INSTRUCTION = "Find the picture, the page or the sound that shows what these words say."


@pytest.fixture(scope="module")
def folder(grafted):
    return load_folder(grafted)


@pytest.fixture
def encoded(folder):
    image, audio = Media("image", png(), "a.png"), Media("audio", flac(), "a.flac")
    items = [Item((f"text number {n} " * (1 + n),)) for n in range(6)] + [Item((image,)), Item((audio, "loud"))]
    items += [Item((f"query {n}",), LONG_INSTRUCTION) for n in range(3)] + [Item(("alone",), "Say."), Item(("word " * 400,))]
    return [folder[1](item) for item in items]


@pytest.mark.parametrize("budget", [1, 200, 100_000])
def test_sharing_changes_no_vector(folder, encoded, budget, monkeypatch):
    with torch.no_grad():
        shared = folder[0].embed(encoded, budget)
        monkeypatch.setattr(model_module, "by_prefix", lambda items: [(list(range(len(items))), False)])
        torch.testing.assert_close(shared, folder[0].embed(encoded, budget), atol=1e-5, rtol=0)


@given(prefixes=st.lists(st.lists(st.integers(0, 1), min_size=8, max_size=10), min_size=2, max_size=8))
def test_only_equal_prefixes_share(prefixes):
    """A prefix that begins like another, or differs in its last token, has a KV cache of its own."""
    items = [Encoded(torch.tensor([*ids, 5]), torch.arange(len(ids) + 1).expand(3, -1), prefix=len(ids)) for ids in prefixes]
    found = by_prefix(items)
    assert sorted(row for rows, _ in found for row in rows) == list(range(len(items)))
    for rows, shared in found:
        assert shared == (prefixes.count(prefixes[rows[0]]) > 1)
        assert not shared or rows == [row for row, ids in enumerate(prefixes) if ids == prefixes[rows[0]]]


def test_eager_attention_changes_no_vector(folder, encoded):
    """It adds its mask to the scores, so that true and false would mask nothing."""
    with torch.no_grad():
        expected = folder[0].embed(encoded, 200)
        folder[0].switch("eager", None)
        try:
            found = folder[0].embed(encoded, 200)
        finally:
            folder[0].switch("sdpa", None)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_it_saves_tokens(folder, encoded):
    """The language model sees fewer tokens than the items hold."""
    seen = []
    hook = folder[0].backbone.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[0] * kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    with torch.no_grad():
        folder[0].embed(encoded, 1)
    hook.remove()
    assert sum(seen) < 0.9 * sum(map(len, encoded))


def test_flash_attention_takes_no_mask_and_so_shares_nothing(folder, encoded, monkeypatch):
    def shared():
        with torch.no_grad():
            return [past is not None for _, past in folder[0].chunks(encoded, 100_000)]

    assert any(shared())
    monkeypatch.setattr(type(folder[0]), "flash", True)
    assert not any(shared())


def test_items_of_instructions_of_their_own_are_packed_together(folder):
    items = [folder[1](Item((f"query {n}",), f"Find what is asked for under number {n}, please.")) for n in range(20)]
    with torch.no_grad():
        chunks = list(folder[0].chunks(items, 100_000))
        found = folder[0].embed(items)
        alone = torch.cat([folder[0].embed([item]) for item in items])
    assert len(chunks) == 1
    assert torch.allclose(found, alone, atol=1e-5)
    assert folder[0].embed([]).shape == (0, found.shape[1])


def test_the_prefix_holds_nothing_of_the_item(folder, encoded):
    words = [folder[1].tokenizer.decode(item.input_ids[: item.prefix]) for item in encoded]
    assert words[0].endswith("<|im_end|>\n<|im_start|>")
    assert len(set(words[:8])) == 1
    assert LONG_INSTRUCTION in words[8]


def test_gradients_never_pass_a_shared_prefix(folder, encoded):
    """Training sees each item whole, so that every token's gradient is there."""
    folder[0].embed(encoded[:3]).sum().backward()
    gradient = folder[0].get_input_embeddings().weight.grad
    assert gradient[encoded[0].input_ids[0]].abs().sum() > 0
    folder[0].zero_grad()
