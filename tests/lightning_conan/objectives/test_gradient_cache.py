"""The cached step equals the one pass: loss and every gradient, for each modality (fault 22)."""

import pytest
import torch

from lightning_conan.embedder import pack, tiny_embedder
from lightning_conan.items import Item, Media
from lightning_conan.objectives import (
    ChunkStep,
    Contrast,
    PairEmbeddings,
    cached_backward,
    gradient_cache,
    one_pass_backward,
    symmetric_info_nce,
)
from lightning_conan.objectives.gradient_cache import arriving
from lightning_conan.training import Lora
from lightning_conan.training.adapters import Adapters
from samples import flac, mp4, png

MAKE = {
    "text": lambda n: Item((f"text {n}",)),
    "image": lambda n: Item((Media("image", png(40 + 8 * n, 56, n), f"{n}.png"),)),
    "video": lambda n: Item((Media("video", mp4(4 + 2 * n, 48, n), f"{n}.mp4"),)),
    "document": lambda n: Item((Media("document", png(64, 48, n), f"{n}.png"),)),
    "audio": lambda n: Item((Media("audio", flac(0.4 + 0.3 * n), f"{n}.flac"),)),
    "mixed": lambda n: Item((Media("image", png(40, 56, n), f"{n}.png"), "with", Media("audio", flac(0.5 + n / 4), "a.flac"))),
}
SIZE = 3
CPU = torch.device("cpu")


def backward(value, last):
    value.backward()


def gradients(modality: str, budget: int, processor, dropout: float = 0.0, one_pass: bool = False):
    """Loss and gradients of a batch of three pairs and two hard negatives in chunks of a budget."""
    torch.manual_seed(0)
    model = tiny_embedder(0)[0].train()
    if dropout:
        Adapters(model, Lora(rank=4, alpha=8, dropout=dropout), ("backbone.", "audio_encoder."), ())
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at the start, where dropout would change nothing
                torch.nn.init.normal_(parameter, std=0.1)
    queries = [processor(MAKE[modality](row)) for row in range(SIZE)]
    texts = [processor(Item((f"caption {row}" * (row + 1),))) for row in range(SIZE + 2)]

    def loss(found):
        ids = torch.arange(SIZE + 2)
        parts = found[:SIZE], found[SIZE : 2 * SIZE], found[2 * SIZE :]
        return symmetric_info_nce(PairEmbeddings(*parts, ids[:SIZE], ids[:SIZE], ids[SIZE:]), Contrast(0.05))

    torch.manual_seed(1)
    chunks = pack([*queries, *texts], budget)
    if one_pass:
        value = one_pass_backward(ChunkStep(model, loss, backward, CPU), chunks)
    else:
        value = cached_backward(ChunkStep(model, loss, backward, CPU), chunks, len(queries) + len(texts))
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return value, found, len(chunks)


def assert_equal(one, other, tolerance):
    """Within a share of each gradient's size; those that are zero in theory (key biases) within that of the largest."""
    assert one.keys() == other.keys()
    floor = 1e-3 * max(gradient.abs().max() for gradient in one.values())
    for name, gradient in one.items():
        assert (gradient - other[name]).abs().max() <= tolerance * gradient.abs().max().clamp(min=floor), name


@pytest.mark.parametrize("few", [0, gradient_cache.FEW])
@pytest.mark.parametrize("modality", list(MAKE))
def test_equals_the_one_pass(modality, few, processor, monkeypatch):
    """In chunks of single items and in uneven ones."""
    monkeypatch.setattr(gradient_cache, "FEW", few)
    whole, expected, _ = gradients(modality, 100_000, processor, one_pass=True)
    for budget in (1, 130):
        value, found, count = gradients(modality, budget, processor)
        assert count > 1
        assert value.item() == pytest.approx(whole.item(), rel=1e-5)
        assert_equal(expected, found, 1e-4)


@pytest.mark.parametrize(("few", "embedded"), [(2, 6), (3, 5), (4, 5)])
def test_the_last_of_few_chunks_is_embedded_once(few, embedded, processor, monkeypatch):
    """With the dropout it would have had, and only the last backward pass called so."""
    monkeypatch.setattr(gradient_cache, "FEW", few)
    chunks = pack([processor(MAKE["text"](row)) for row in range(3)], 1)
    weight, done, told = torch.ones(4, requires_grad=True), [], []

    def embed(chunk):
        done.append(chunk.rows)
        return torch.rand(len(chunk.rows), 4) * weight

    torch.manual_seed(0)
    noise = torch.rand(3, 4)
    torch.manual_seed(0)
    note = lambda value, last: (value.backward(), told.append(last))  # noqa: E731
    cached_backward(ChunkStep(embed, lambda found: (found**2).sum(), note, CPU), chunks, 3)
    assert len(done) == embedded
    assert torch.allclose(weight.grad, 2 * (noise**2).sum(0))
    assert told == [False, False, False, True]  # the first is the loss's own


def numeric_gradient_agrees(processor) -> bool:
    """True if the gradient of a cached step under dropout is that of the loss which it returned."""
    value, found, count = gradients("image", 60, processor, dropout=0.3)
    again, same, _ = gradients("image", 60, processor, dropout=0.3)
    assert count > 1
    assert value == again
    return all(torch.equal(found[name], same[name]) for name in found)


def test_dropout_is_replayed(processor, monkeypatch):
    """Each chunk sees the same dropout in both passes: else its second embeddings would differ from the first."""
    monkeypatch.setattr(gradient_cache, "FEW", 0)
    seen = {"first": [], "second": []}
    model = tiny_embedder(0)[0].train()
    Adapters(model, Lora(rank=4, alpha=8, dropout=0.5), ("backbone.",), ())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)

    def embed(chunk):
        found = model(chunk)
        seen["second" if torch.is_grad_enabled() else "first"].append(found.detach())
        return found

    chunks = pack([processor(MAKE["image"](row)) for row in range(4)], 1)
    cached_backward(ChunkStep(embed, lambda found: (found**2).sum() + found[0] @ found[1], backward, CPU), chunks, 4)
    assert all(torch.equal(*pair) for pair in zip(seen["first"], seen["second"], strict=True))
    assert numeric_gradient_agrees(processor)
    monkeypatch.setattr(gradient_cache.RandomStates, "replay", lambda self, number: None)
    seen["first"].clear(), seen["second"].clear()
    cached_backward(ChunkStep(embed, lambda found: (found**2).sum(), backward, CPU), chunks, 4)
    assert not all(torch.equal(*pair) for pair in zip(seen["first"], seen["second"], strict=True))


def test_random_numbers_go_on_as_after_one_pass(processor):
    chunks = pack([processor(MAKE["text"](row)) for row in range(3)], 1)

    def embed(chunk):
        return torch.rand(len(chunk.rows), 4, requires_grad=True) * 1

    torch.manual_seed(0)
    cached_backward(ChunkStep(embed, lambda found: found.sum(), backward, CPU), chunks, 3)
    after = torch.rand(1)
    torch.manual_seed(0)
    torch.rand(3 * 4)
    assert torch.equal(after, torch.rand(1))


def test_chunks_arrive_in_order_and_whole(encoded):
    """On a device that holds no data, by the thread that fetches for GPUs."""
    chunks = pack(list(encoded.values()), 64)
    found = [chunk for _, chunk in arriving(chunks, range(len(chunks)), torch.device("meta"))]
    assert [chunk.rows for chunk in found] == [chunk.rows for chunk in chunks]
    for chunk, there in zip(chunks, found, strict=True):
        assert there.input_ids.device.type == "meta"
        assert [pixels.shape for pixels in there.inputs("vision")] == [pixels.shape for pixels in chunk.inputs("vision")]
        assert [mel.shape for mel in there.inputs("audio")] == [mel.shape for mel in chunk.inputs("audio")]
    some = list(arriving(chunks, [2, 0], CPU))
    assert [(number, chunk.rows) for number, chunk in some] == [(number, chunks[number].rows) for number in (2, 0)]
    assert not list(arriving(chunks, [], torch.device("meta")))


@pytest.mark.parametrize("few", [0, gradient_cache.FEW])
@pytest.mark.parametrize("trains", ["audio_projector.", "backbone.visual.merger.", "backbone.language_model."])
def test_chunks_that_nothing_which_trains_takes_part_in_are_embedded_once(trains, few, processor, monkeypatch):
    """Texts, while a projector trains alone: they have no gradient to push."""
    monkeypatch.setattr(gradient_cache, "FEW", few)
    items = [processor(MAKE[modality](row)) for modality in ("audio", "image", "text") for row in range(2)]
    model, found, told = tiny_embedder(0)[0].train(), [], []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trains))

    def push(value, last):
        value.backward()
        told.append(last)

    def loss(embeddings):
        return (embeddings[:3] @ embeddings[3:].T).logsumexp(1).sum()

    for budget in (1, 100_000):
        done = []
        model.zero_grad()
        chunks = pack(items, budget)
        embed = lambda chunk, done=done: done.append(chunk.rows) or model(chunk)  # noqa: E731
        step = ChunkStep(embed, loss, push, CPU, model.learns_from)
        if budget == 1:
            value = cached_backward(step, chunks, len(items))
            learning = {"audio_projector.": 2, "backbone.visual.merger.": 2}.get(trains, 6)
            assert len(done) == 6 + learning - (few > 0 and learning == 6)  # the last is a text
            assert told == [False] * learning + [True]
        else:
            value = one_pass_backward(step, chunks)
        gradients = {name: tensor.grad for name, tensor in model.named_parameters() if tensor.grad is not None}
        found.append((value, gradients))
    assert found[0][0].item() == pytest.approx(found[1][0].item(), rel=1e-5)
    assert_equal(found[1][1], found[0][1], 1e-4)


def test_a_batch_that_nothing_learns_from_is_refused(processor):
    chunks = pack([processor(MAKE["text"](row)) for row in range(3)], 1)
    model = tiny_embedder(0)[0].train().requires_grad_(False)
    step = ChunkStep(model, torch.sum, backward, CPU, model.learns_from)
    with pytest.raises(ValueError, match="A batch must hold something"):
        one_pass_backward(step, chunks)
    with pytest.raises(ValueError, match="A batch must hold something"):
        cached_backward(step, chunks, 3)
