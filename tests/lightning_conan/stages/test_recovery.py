from dataclasses import replace

import pytest
import torch
from lightning import Callback
from torch.nn import functional as F

from callbacks import FrozenBackbone
from datamodules import RehearsalData, SpecialistData
from datamodules.shards.write import write_shards
from datamodules.toy_world import draw_pairs
from lightning_conan.embedder import Batch, Encoded, OmniEmbedder, OmniProcessor, load_folder, save_folder, tiny_embedder
from lightning_conan.items import Item, Pair
from lightning_conan.objectives import Contrast, PairEmbeddings, symmetric_info_nce
from lightning_conan.retrieval.metric import hash_ids
from lightning_conan.stages import ProjectorRecovery, Rehearsal, Specialist
from lightning_conan.stages.recovery import Bank
from lightning_conan.training import Lora
from lightning_conan.training.frozen_cache import FrozenOutputs
from runs import QUICK, Record, data, state, trainer

MERGER = "backbone.visual.merger."


def moved(module, folder):
    """Names of the tensors that training changed."""
    before = load_folder(folder)[0].state_dict()
    return {name for name, tensor in module.embedder.state_dict().items() if not torch.equal(tensor, before[name])}


def test_two_projectors_recover_at_once(fused, world, tmp_path):
    """The paper leaves several drifting projectors untested: the vision merger is one as well."""
    both = ("audio_projector.", MERGER)
    mix = RehearsalData({name: world / name for name in ("image", "audio")}, batch_size=6, num_workers=0)
    module = ProjectorRecovery(fused, QUICK, projectors=both)
    trainer(tmp_path, 4, FrozenBackbone(both)).fit(module, mix)
    names = moved(module, fused)
    assert all(name.startswith(both) for name in names)
    assert all(any(name.startswith(prefix) for name in names) for prefix in both)
    assert module.modality is None


def test_a_projector_that_is_not_there_is_refused(fused, world, tmp_path):
    with pytest.raises(ValueError, match=r"fully must be beginnings of parameters' names, got 'merger\.'"):
        trainer(tmp_path, 1).fit(
            ProjectorRecovery(fused, QUICK, projectors=("audio_projector.", "merger.")), data(world, "audio")
        )


def test_with_adapters_the_backbone_moves_too_and_nothing_of_vision(fused, world, tmp_path):
    """Though images pass by, which adapters on vision would learn from."""
    mix = RehearsalData({name: world / name for name in ("image", "audio")}, batch_size=6, num_workers=0)
    module = ProjectorRecovery(fused, QUICK, lora=Lora(rank=2, alpha=2))
    trainer(tmp_path / "run", 4).fit(module, mix)
    trained = set(module.trained())
    module.write_folder(tmp_path / "out")
    names = moved(module, fused)
    assert any(name.startswith("backbone.language_model.layers") for name in names)
    assert any(name.startswith("audio_projector.") for name in names)
    assert not any("visual." in name or "audio_encoder." in name for name in names | trained)


def test_one_stage_rehearses_a_fused_folder_with_its_projector(fused, world, tmp_path):
    mix = RehearsalData({name: world / name for name in ("image", "audio")}, batch_size=6, num_workers=0)
    module = Rehearsal(fused, QUICK, train_projector=True)
    trainer(tmp_path / "run", 2).fit(module, mix)
    module.write_folder(tmp_path / "out")
    assert load_folder(tmp_path / "out", ("rehearsed",))
    assert any(name.startswith("audio_projector.") for name in moved(module, fused))


def losses(fused, world, root, **options):
    record, module = Record(), ProjectorRecovery(fused, QUICK, **options)
    trainer(root, 6, record, FrozenBackbone()).fit(module, data(world, "audio"))
    return record.losses, state(module)


@pytest.mark.parametrize("budget", [60, "auto"])
def test_chunks_of_texts_alone_do_not_stop_it(fused, base, world, tmp_path, budget):
    """They teach the projector nothing; nor do they while a specialist's projector trains before its adapters."""
    settings = replace(QUICK, token_budget=budget)
    expected, weights = losses(fused, world, tmp_path / "once")
    record, module = Record(), ProjectorRecovery(fused, settings)
    trainer(tmp_path / "chunks", 6, record).fit(module, data(world, "audio"))
    assert record.losses == pytest.approx(expected, rel=1e-4)
    assert all(torch.allclose(tensor, weights[name], atol=1e-4) for name, tensor in state(module).items())
    early = Specialist(base, "audio", settings, train_fully=("audio_projector.",), alone_steps=1)
    trainer(tmp_path / "alone", 2).fit(early, data(world, "audio"))
    before = load_folder(base)[0].audio_projector.state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in early.embedder.audio_projector.state_dict().items())


class Calls(Callback):
    """Counts how often a layer of the language model begins (it is stopped once the last activation is there again)."""

    def __init__(self):
        self.count = 0

    def on_train_start(self, trainer, pl_module):
        layer = pl_module.embedder.backbone.language_model.layers[0]
        layer.mlp.register_forward_pre_hook(lambda *_: setattr(self, "count", self.count + 1))


def test_activations_are_checkpointed_though_the_backbone_is_in_eval_mode(fused, world, tmp_path):
    """transformers does it for layers that train only; the projector's gradient passes through all of them."""
    found = {}
    for checkpoint in (False, True):
        calls, module = Calls(), ProjectorRecovery(fused, replace(QUICK, checkpoint_activations=checkpoint))
        trainer(tmp_path / str(checkpoint), 2, FrozenBackbone(), calls).fit(module, data(world, "audio"))
        found[checkpoint] = calls.count, state(module)
    assert found[True][0] == 2 * found[False][0]
    assert all(torch.equal(tensor, found[True][1][name]) for name, tensor in found[False][1].items())


def test_layers_are_known_by_their_class_in_shards_too():
    """FSDP2 gives each layer a class of its own, whose name begins with FSDP."""
    model = tiny_embedder(0)[0]
    model.gradient_checkpointing_enable({"use_reentrant": False})
    layer = model.backbone.language_model.layers[0]
    layer.__class__ = type("FSDPLayer", (type(layer),), {})
    model.eval()
    model.keep_checkpointing()
    assert layer.training
    assert layer in model.layers()
    assert not any(layer.training for layer in model.audio_encoder.modules())


def test_constants_change_nothing_but_the_time(fused, world, tmp_path, monkeypatch):
    """Fault 23: cached is live. The second epoch encodes neither sounds nor texts."""
    expected, weights = losses(fused, world, tmp_path / "live")
    encoded = []
    encode = OmniEmbedder.encode_frames
    monkeypatch.setattr(
        OmniEmbedder, "encode_frames", lambda self, tower, mels: encoded.append(len(mels)) or encode(self, tower, mels)
    )
    found, moved = losses(fused, world, tmp_path / "first", constants=tmp_path / "constants")
    assert sum(encoded) == 20  # each sound once, in 6 steps of 6
    assert found == pytest.approx(expected, rel=1e-4)
    assert all(torch.allclose(tensor, weights[name], atol=1e-4) for name, tensor in moved.items())
    again, _ = losses(fused, world, tmp_path / "second", constants=tmp_path / "constants")
    assert sum(encoded) == 20  # another run, none
    assert again == pytest.approx(found, rel=1e-5)


def test_constants_of_other_weights_are_not_taken(fused, base, world, tmp_path):
    store = FrozenOutputs(tmp_path / "c", "one", 0.01)
    store.put("frames", {"a": torch.ones(3)})
    assert torch.equal(store.get("frames", ["a"])[0], torch.ones(3))
    del store
    other = FrozenOutputs(tmp_path / "c", "two", 0.01)
    assert other.get("frames", ["a"]) == [None]


def test_constants_of_a_fit_that_failed_can_be_opened_again(fused, world, tmp_path):
    class Fail(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            raise RuntimeError("no")

    module = ProjectorRecovery(fused, QUICK, constants=tmp_path / "c")
    with pytest.raises(RuntimeError, match="no"):
        trainer(tmp_path / "a", 2, Fail()).fit(module, data(world, "audio"))
    assert module.constants is not None
    again = ProjectorRecovery(fused, QUICK, constants=tmp_path / "c")
    trainer(tmp_path / "b", 2).fit(again, data(world, "audio"))
    assert again.constants is None


def test_full_constants_are_computed_again_and_nothing_fails(tmp_path, caplog):
    store = FrozenOutputs(tmp_path, "m", 0.0005)
    made = []

    def make(rows):
        made.append(len(rows))
        return [torch.full((40_000,), float(row)) for row in rows]

    digests = ["a", "b", "c", "a", "d", "e", "f"]
    for _ in range(2):
        found = store.fetch("frames", digests, make)
        assert [float(tensor[0]) for tensor in found] == [0, 1, 2, 0, 4, 5, 6]
    assert "is full" in caplog.text
    assert made[0] == 6


def test_constants_with_anything_else_that_trains_are_refused(fused, tmp_path):
    with pytest.raises(ValueError, match="constants hold only while the audio projector trains alone"):
        ProjectorRecovery(fused, QUICK, lora=Lora(), constants=tmp_path)
    with pytest.raises(ValueError, match="constants hold only"):
        ProjectorRecovery(fused, QUICK, projectors=("audio_projector.", MERGER), constants=tmp_path)


def test_a_bank_of_all_texts_is_a_batch_that_holds_them(fused, world, tmp_path):
    """With the whole set in one batch the bank adds nothing; with less it adds what the batch lacks."""

    def loss(name, size, bank):
        record = Record()
        module = ProjectorRecovery(fused, QUICK, constants=tmp_path / "constants", bank=bank)
        sounds = SpecialistData(world / "audio", batch_size=size, num_workers=0)
        trainer(tmp_path / name, 1, record).fit(module, sounds)
        return record.losses[0], module

    whole, _ = loss("whole", 20, False)
    assert loss("whole with bank", 20, True)[0] == pytest.approx(whole, rel=1e-5)
    part, _ = loss("part", 5, False)
    more, module = loss("part with bank", 5, True)
    assert more > part
    (bank,) = module.banks.values()
    assert len(bank.texts) == len(bank.ids) == len(set(bank.ids.tolist()))
    assert len(bank.right) == 20


def test_a_bank_stands_on_the_side_of_the_texts(fused, world, tmp_path):
    """Against plain cross-entropies, for sounds as queries and as targets."""
    module = ProjectorRecovery(fused, QUICK, constants=tmp_path / "constants", bank=True)
    sounds, texts, more = (F.normalize(torch.randn(3, 8), dim=1) for _ in range(3))
    known = torch.tensor([[1, 4], [2, 5], [3, 6], [50, 7]])
    module.banks = dict.fromkeys(("query", "target"), Bank(torch.cat([more, texts]), torch.tensor([7, 8, 9, 4, 5, 6]), known))
    labels, contrast = torch.arange(3), Contrast(0.1)
    expected = F.cross_entropy(sounds @ torch.cat([texts, more]).T / 0.1, labels) + F.cross_entropy(
        texts @ sounds.T / 0.1, labels
    )
    none, no_ids, ids = torch.empty(0, 8), torch.empty(0, dtype=torch.long), torch.tensor([1, 2, 3])
    heard, read = Encoded(labels, labels.expand(3, -1), {"audio": [torch.zeros(1, 1)]}), Encoded(labels, labels.expand(3, -1))
    for flipped in (False, True):
        pairs = PairEmbeddings(sounds, texts, none, ids, ids + 3, no_ids)
        if flipped:
            pairs = PairEmbeddings(texts, sounds, none, ids + 3, ids, no_ids)
        batch = Batch("t", "audio", ["a"], [read if flipped else heard], [heard if flipped else read], [[]], ["q"], ["t"], [])
        found = symmetric_info_nce(module.add_negatives(pairs, batch), contrast)
        assert found == pytest.approx(float(expected) / 2, rel=1e-5)


def test_other_captions_of_a_sound_are_no_negatives(fused, tmp_path):
    """Clotho has five of each: those that are not in the batch must not stand against it either."""
    module = ProjectorRecovery(fused, QUICK, constants=tmp_path / "constants", bank=True)
    rows = F.normalize(torch.randn(4, 8), dim=1)
    known = torch.tensor([[1, 10], [1, 11], [2, 12], [3, 13]])  # sound 1 has the captions 10 and 11
    module.banks = {"target": Bank(rows, torch.tensor([10, 11, 12, 13]), known)}
    none = torch.empty(0, 8), torch.empty(0, dtype=torch.long)
    pairs = PairEmbeddings(rows[:2], rows[2:], none[0], torch.tensor([1, 2]), torch.tensor([10, 12]), none[1])
    read = Encoded(torch.arange(3), torch.arange(3).expand(3, -1))
    batch = Batch("t", "audio", ["a", "b"], [read, read], [read, read], [[], []], ["q", "r"], ["t", "u"], [])
    assert module.add_negatives(pairs, batch).negative_ids.tolist() == [13]


def test_a_text_of_the_bank_that_is_a_hard_negative_counts_once():
    rows = F.normalize(torch.randn(4, 8), dim=1)
    bank = Bank(rows, torch.tensor([10, 11, 12, 13]), torch.empty(0, 2, dtype=torch.long))
    pairs = PairEmbeddings(rows[:1], rows[:1], rows[2:3], torch.tensor([1]), torch.tensor([10]), torch.tensor([12]))
    vectors, ids = bank.others(pairs)
    assert ids.tolist() == [11, 13]
    assert torch.equal(vectors, rows[[1, 3]])


def test_constants_tell_queries_from_targets(fused, world, tmp_path):
    """A folder whose hints differ embeds the same words differently on either side."""
    model, processor, provenance = load_folder(fused)
    hinted = OmniProcessor(processor.tokenizer, replace(processor.config, instruction="Hear.", target_hint="Be found."))
    save_folder(tmp_path / "hinted", model, hinted, provenance)
    losses_of = {}
    for name, options in {"live": {}, "kept": {"constants": tmp_path / "constants"}}.items():
        losses_of[name], _ = losses(tmp_path / "hinted", world, tmp_path / name, **options)
    assert losses_of["kept"] == pytest.approx(losses_of["live"], rel=1e-4)
    module = ProjectorRecovery(tmp_path / "hinted", QUICK, constants=tmp_path / "constants", bank=True)
    sounds = data(world, "audio")
    trainer(tmp_path / "bank", 1).fit(module, sounds)
    side, text, _ = next(sounds.texts())
    (bank,) = module.banks.values()
    row = bank.ids.tolist().index(int(hash_ids([text.content_hash()])[0]))
    with torch.no_grad():
        close, far = (float(bank.texts[row] @ model.embed([hinted(text, at)])[0]) for at in (side, "query"))
    assert close == pytest.approx(1, abs=1e-4)
    assert side == "target"
    assert far < 0.999


def test_a_bank_with_sounds_as_hard_negatives_is_refused(fused, tmp_path):
    module = ProjectorRecovery(fused, QUICK, constants=tmp_path / "constants", bank=True)
    rows, ids = F.normalize(torch.randn(4, 8), dim=1), torch.tensor([1, 2])
    module.banks = {"query": Bank(rows, torch.tensor([7, 8, 9, 4]), torch.empty(0, 2, dtype=torch.long))}
    heard = Encoded(ids, ids.expand(3, -1), {"audio": [torch.zeros(1, 1)]})
    batch = Batch("t", "audio", ["a"], [Encoded(ids, ids.expand(3, -1))], [heard], [[heard]], ["q"], ["t"], ["n"])
    pairs = PairEmbeddings(rows[:2], rows[2:], rows[:1], ids, ids + 2, torch.tensor([6]))
    with pytest.raises(ValueError, match="Leave the bank or the negatives out"):
        module.add_negatives(pairs, batch)


def test_a_bank_without_constants_is_refused(fused):
    with pytest.raises(ValueError, match="bank needs the embeddings of all texts"):
        ProjectorRecovery(fused, QUICK, bank=True)


def test_constants_of_one_folder_serve_no_other(fused, world, tmp_path):
    """Two fused folders, one place for constants, as the configs have it."""
    model, processor, provenance = load_folder(fused)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("audio_projector."):
                parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    save_folder(tmp_path / "other", model, processor, provenance)
    losses(fused, world, tmp_path / "a", constants=tmp_path / "constants")
    kept, _ = losses(tmp_path / "other", world, tmp_path / "b", constants=tmp_path / "constants")
    live, _ = losses(tmp_path / "other", world, tmp_path / "c")
    assert kept == pytest.approx(live, rel=1e-4)


def test_what_a_bank_holds_right_is_read_from_the_data(fused, tmp_path):
    """Two captions of one sound, a batch of one pair: the other caption is no negative, the other sound's is."""
    sounds = [pair.query for pair in draw_pairs("audio", 2, 0)]
    rows = [(sounds[0], "a bell"), (sounds[0], "it rings"), (sounds[1], "a dog")]
    write_shards([Pair(f"k{n}", "t", "audio", sound, Item((text,))) for n, (sound, text) in enumerate(rows)], tmp_path / "set")
    module = ProjectorRecovery(fused, QUICK, constants=tmp_path / "constants", bank=True)
    trainer(tmp_path, 1).fit(module, SpecialistData(tmp_path / "set", batch_size=3, num_workers=0))
    ids = {text: int(hash_ids([Item((text,)).content_hash()])[0]) for _, text in rows}
    sound = hash_ids([sounds[0].content_hash()])
    vector = module.banks["target"].texts[:1]
    pairs = PairEmbeddings(vector, vector, vector[:0], sound, torch.tensor([ids["a bell"]]), sound[:0])
    assert module.banks["target"].others(pairs)[1].tolist() == [ids["a dog"]]


def test_sounds_of_a_batch_are_encoded_no_more_at_once_than_the_budget_holds(fused, world, tmp_path, monkeypatch):
    encoded = []
    encode = OmniEmbedder.encode_frames
    monkeypatch.setattr(
        OmniEmbedder, "encode_frames", lambda self, tower, mels: encoded.append(len(mels)) or encode(self, tower, mels)
    )
    found, _ = losses(fused, world, tmp_path / "whole", constants=tmp_path / "a")
    assert max(encoded) == 6
    encoded.clear()
    module, record = ProjectorRecovery(fused, replace(QUICK, token_budget=40), constants=tmp_path / "b"), Record()
    trainer(tmp_path / "parts", 6, record).fit(module, data(world, "audio"))
    assert max(encoded) < 6
    assert record.losses == pytest.approx(found, rel=1e-4)
