"""Both routes at once, thresholds, and the tables made of them: against decoding again, and against plain loops."""

import dataclasses

import pytest
import torch

from datamodules.toy_world.difficulty import draw_graded
from lightning_conan.demo.difficulty_page import difficulty_page
from lightning_conan.demo.difficulty_tables import Outcome, study_tables
from lightning_conan.demo.route_sweep import THRESHOLDS, Routed, curve, measure_routes, ranks_of, summary
from lightning_conan.demo.transfer import VARIANTS, WHAT, transfer_table
from lightning_conan.embedder import OmniProcessor, Provenance, save_folder, tiny_embedder
from lightning_conan.reasoning import Decoding, encode_queries
from lightning_conan.reasoning.routing import encode_both


@pytest.fixture(scope="module")
def undecided():
    """A model that reasons, and queries; its first tokens are such that some embed at once."""
    model, processor = tiny_embedder()
    settings = dataclasses.replace(processor.config, ends=False, reasons=True)
    processor = OmniProcessor(processor.tokenizer, settings)
    pairs = [pair for form in ("both", "words") for pair in draw_graded(form, 4, 0)[0]]
    items = [processor(pair.query, "query") for pair in pairs]
    with torch.no_grad():  # a row for <|emb|> whose probability goes from 0.0003 to 0.98
        chunks = [next(iter(model.chunks([item], 4096)))[0] for item in items]
        states = torch.cat([model.hidden_states(chunk, last=chunk.last)[0] for chunk in chunks])
        logits = model.logits(states)
        logits[:, model.config.emb_token_id] = -torch.inf
        wanted = logits.logsumexp(dim=1) + torch.linspace(-8, 4, len(items))
        model.get_input_embeddings().weight[model.config.emb_token_id] = torch.linalg.lstsq(states, wanted[:, None]).solution[
            :, 0
        ]
    return model, processor, pairs, items


LIMITS = Decoding(max_new_tokens=3)


@pytest.fixture(scope="module")
def both(undecided):
    """Both routes of the queries."""
    return encode_both(undecided[0], undecided[3], LIMITS)


@pytest.mark.parametrize("threshold", [None, 0.0, 0.1, 0.5, 0.9, 1.1])
def test_a_threshold_picks_what_decoding_with_it_gives(undecided, both, threshold):
    model, _, _, items = undecided
    slow = encode_queries(model, items, dataclasses.replace(LIMITS, threshold=threshold))
    at_once = both.likeliest if threshold is None else (both.probability >= threshold).tolist()
    assert [not tokens for tokens in slow.tokens] == at_once
    assert 0 < sum(at_once) < len(items) or threshold in (0.0, 1.1)
    chosen = torch.where(torch.tensor(at_once)[:, None], both.direct, both.reasoned.embeddings)
    torch.testing.assert_close(slow.embeddings, chosen, rtol=0, atol=1e-5)
    assert [tokens for tokens in slow.tokens if tokens] == [
        tokens for tokens, left in zip(both.reasoned.tokens, at_once, strict=True) if not left
    ]


def test_both_routes_of_a_folder_rank_the_right_targets(undecided, tmp_path):
    model, processor, pairs, items = undecided
    folder = save_folder(tmp_path / "folder", model, processor, Provenance("reasoning"))
    found = measure_routes(folder, pairs, {pair.key: pair.task for pair in pairs})
    targets = model.embed([processor(pair.target, "target") for pair in pairs]).detach()
    queries = encode_queries(model, items, Decoding("direct")).embeddings
    for number, row in enumerate(found):
        scores = [float(queries[number] @ target) for target in targets]
        assert row.direct == sorted(scores, reverse=True).index(scores[number]) + 1
        assert (row.key, row.group) == (pairs[number].key, pairs[number].task)
        assert row.tokens >= 1


def test_a_plain_embedder_writes_nothing(undecided, tmp_path):
    model, processor, pairs, _ = undecided
    plain = OmniProcessor(processor.tokenizer, dataclasses.replace(processor.config, reasons=False))
    found = measure_routes(
        save_folder(tmp_path / "folder", model, plain, Provenance("reasoning")), pairs, {p.key: "" for p in pairs}
    )
    assert all(row.likeliest and row.tokens == 0 and row.direct == row.reasoned for row in found)


def test_equal_scores_count_against_the_target():
    assert ranks_of(torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])) == [2, 1, 3]


ROWS = [
    Routed("a", "easy", 0.9, True, 1, 2, 10),
    Routed("b", "easy", 0.4, False, 7, 1, 20),
    Routed("c", "hard", 0.2, False, 3, 1, 30),
    Routed("d", "hard", 0.2, False, 1, 9, 40),
    Routed("e", "ambiguous", 0.6, True, 2, 1, 50),
]


def test_every_point_of_the_curve_is_a_threshold():
    """Each is what the summary of some threshold says, and none is missing."""
    slow = {0.0: 0.0, 0.3: 0.0, 0.5: 0.0, 0.7: 0.0, 0.95: 0.0}
    points = [(summary(ROWS, at)["tokens"], summary(ROWS, at)["recall@1"]) for at in slow]
    assert curve(ROWS) == [pytest.approx(point) for point in points]


def test_a_summary_is_the_mean_over_queries():
    assert summary(ROWS) == pytest.approx({"recall@1": 60.0, "recall@5": 80.0, "bypass": 40.0, "tokens": 18.0})
    assert summary(ROWS, 0.2)["bypass"] == 100  # from the threshold on, itself included
    assert summary(ROWS, 0.0) == pytest.approx({"recall@1": 40.0, "recall@5": 80.0, "bypass": 100.0, "tokens": 0.0})


def outcome(shift):
    sets = {name: {"both": ROWS[shift:], "words": ROWS} for name in ("plain", "trace", "always")}
    guesses = {form: {"its words": 50.0, "presence of an image": 50.0} for form in ("both", "words", "all")}
    return Outcome(sets, guesses, {name: {"steps": 1200.0, "TFLOP": 3.5 + shift} for name in sets})


def test_tables_and_page_of_the_study_tell_every_row():
    found = [outcome(0), outcome(1)]
    tables = study_tables(found)
    assert [text.count("\n| ") for text in tables.values()] == [3, 3, 3, len(THRESHOLDS) + 1]
    assert "| TRACE | 50.0 ± 0.0" not in tables["Equal compute"]
    assert "1,200 ± 0 | 4.0 ± 0.7" in tables["Equal compute"]
    assert "| words | 50.0 ± 0.0 | 100.0 ± 0.0 | 0.0 ± 0.0 |" in tables["Embedded at once by TRACE, %"]
    page = difficulty_page(found)
    assert page.count("class='conan-plot'") == 1
    assert page.count("<table") == 3


def test_the_table_of_transfer_has_a_row_for_each_kind():
    sets = dict.fromkeys(WHAT, ROWS)
    text = transfer_table([dict.fromkeys(VARIANTS, sets)])
    assert text.count("\n| ") == len(WHAT)
    assert "| sounds with words | 60.0 ± 0.0 | 80.0 ± 0.0 | 60.0 ± 0.0 | 80.0 ± 0.0 | 60.0 ± 0.0 | 18.0 ± 0.0 |" in text
