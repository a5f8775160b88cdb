"""Benchmarks that change the model measure what they say."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from lightning_conan.embedder import IGNORED, OmniProcessor, pack
from lightning_conan.items import Item
from lightning_conan.objectives import generation_loss

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def own_state(tiny, monkeypatch):
    """The ablation's encoding, and ours."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # which benchmarks set to one otherwise
    from trace_ablation import OwnStateProcessor

    model, processor = tiny
    config = replace(processor.config, ends=False)
    return model, OwnStateProcessor(processor.tokenizer, config), OmniProcessor(processor.tokenizer, config)


def test_the_ablation_embeds_by_the_state_of_emb_itself(own_state):
    """Behind what was written, and alone behind a target; a query waits for what will be written."""
    model, own, ours = own_state
    emb, item = own.ids["emb"], Item(("a red star",))
    taught = ours.teach(ours(item), "blue star")
    for closed, before in ((own.teach(own(item), "blue star"), taught), (own(item, "target"), ours(item, "target"))):
        assert closed.input_ids.tolist() == [*before.input_ids.tolist(), emb]
        assert closed.positions[0].tolist() == list(range(len(before) + 1))
        with torch.no_grad():
            (chunk,), (shorter,) = pack([closed], 1000), pack([before], 1000)
            states = model.hidden_states(chunk)[0]
            torch.testing.assert_close(states[-2], model.hidden_states(shorter)[0, -1])  # ours, which it goes on from
            torch.testing.assert_close(model(chunk)[0], F.normalize(states[-1], dim=0))
    assert own(item).input_ids.tolist() == ours(item).input_ids.tolist()


def test_the_ablation_learns_to_write_the_same(own_state):
    """The labels are ours, and nothing is asked of ``<|emb|>``; what was decoded is closed as what was taught."""
    model, own, ours = own_state
    item = Item(("a red star",))
    closed, taught = own.teach(own(item), "blue star"), ours.teach(ours(item), "blue star")
    assert closed.labels.tolist() == [*taught.labels.tolist(), IGNORED]
    losses = []
    for encoded in (closed, taught):
        (chunk,) = pack([encoded], 1000)
        with torch.no_grad():
            losses.append(model(chunk, writing=generation_loss).generation_losses[0])
    torch.testing.assert_close(*losses)
    words = own.tokenizer("blue star")["input_ids"]
    written = own.close(own(item), words)
    assert written.input_ids.tolist() == closed.input_ids.tolist()
    assert torch.equal(written.positions, closed.positions)
