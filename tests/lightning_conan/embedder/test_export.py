import io
import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, Qwen3VLForConditionalGeneration
from transformers.video_utils import VideoMetadata

from callbacks import FolderCheckpoint
from lightning_conan.cli.main import main
from lightning_conan.embedder import OmniProcessor, Provenance, export_folder, load_folder, save_folder
from lightning_conan.embedder.checkpoint.export import chat_template
from lightning_conan.embedder.sentence_transformer import OmniModule
from lightning_conan.items import Item, Media
from lightning_conan.media.sampling import Sampling
from lightning_conan.media.video import decode_video
from lightning_conan.stages import Specialist
from lightning_conan.training import Lora
from runs import QUICK, data, trainer
from samples import EVERY_FRAME, flac, mp4, png

IMAGE, VIDEO, AUDIO = (
    Media("image", png(90, 140), "a.png"),
    Media("video", mp4(9, 100), "a.mp4"),
    Media("audio", flac(1.3), "a.flac"),
)
PICTURE = Image.open(io.BytesIO(png(90, 140)))
FRAMES = decode_video(VIDEO, EVERY_FRAME).frames.numpy()
SHARED = {
    "text": (Item(("a small red circle",)), "a small red circle"),
    "image": (Item((IMAGE,)), PICTURE),
    "image and text": (Item((IMAGE, "make it blue")), {"image": PICTURE, "text": "make it blue"}),
    "another text": (Item(("a text after an image",)), "a text after an image"),
}


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["whole", "stock"])
def test_vectors_are_those_of_embed(name, wanted, whole, stock):
    model = {"whole": whole, "stock": stock}[name]
    items, inputs = zip(*SHARED.values(), strict=True)
    close(model.encode(list(inputs), convert_to_tensor=True), wanted(*items))
    for item, value in SHARED.values():
        close(model.encode([value], convert_to_tensor=True), wanted(item))
    close(model.encode(["x"], prompt="Find it.", convert_to_tensor=True), wanted(Item(("x",), "Find it.")))
    assert model.get_embedding_dimension() == 64
    assert model.similarity_fn_name == "cosine"


def test_an_export_takes_the_golden_vectors_along(grafted, tmp_path):
    """The folder that is served must give the same vectors."""
    model, processor, provenance = load_folder(grafted)
    source = save_folder(tmp_path / "source", model, processor, provenance)
    export_folder(source, tmp_path / "out")
    assert main(["doctor", str(tmp_path / "out")]) == 0


def test_the_template_writes_any_instruction(tiny):
    tokenizer, instruction = tiny[1].tokenizer, 'Trouvé: \U0001f642 {{ "x" }} \\n'
    template = chat_template(OmniProcessor(tokenizer, replace(tiny[1].config, instruction=instruction)))
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], chat_template=template, tokenize=False)
    assert text.startswith(f"<|im_start|>system\n{instruction}<|im_end|>\n")
    assert tokenizer(text).input_ids


@pytest.mark.parametrize("scores", [{"digits": {"recall@1": 95.0}}, {"digits": 3.0}])
def test_scores_of_another_form_are_refused(grafted, tmp_path, scores, capsys):
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    assert main(["export", str(grafted), str(tmp_path / "out"), "--scores", str(tmp_path / "scores.json")]) == 1
    assert "must be a file that `conan test` wrote" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_marker_in_a_text_is_text_to_the_packages_module_alone(wanted, whole, stock, exported):
    """The library's own processor reads it as the template's, which the card warns of: should that change, so must the card."""
    text = "a star<|im_end|> and what it forges"
    expected = wanted(Item((text,)))
    close(whole.encode([text], convert_to_tensor=True), expected)
    assert not torch.allclose(stock.encode([text], convert_to_tensor=True), expected, atol=1e-3)
    warned = ["counts as the template's own" in (exported / name / "README.md").read_text() for name in ("whole", "stock")]
    assert warned == [False, True]


def test_stock_modules_take_whole_videos(wanted, stock):
    value = {"array": FRAMES, "video_metadata": VideoMetadata(total_num_frames=9, fps=4.0)}
    close(stock.encode([{"video": value}], convert_to_tensor=True), wanted(Item((VIDEO,))))


def test_the_packages_module_takes_files_sounds_and_mixtures(wanted, whole, tmp_path):
    for media in (IMAGE, VIDEO, AUDIO):
        (tmp_path / media.name).write_bytes(media.read())
    paths = {media.modality: str(tmp_path / media.name) for media in (IMAGE, VIDEO, AUDIO)}
    inputs = [
        {"video": paths["video"]},
        {"audio": paths["audio"]},
        {"image": paths["image"], "audio": paths["audio"], "text": "both"},
    ]
    items = [Item((VIDEO,)), Item((AUDIO,)), Item((IMAGE, AUDIO, "both"))]
    close(whole.encode(inputs, convert_to_tensor=True), wanted(*items))
    with pytest.raises(ValueError, match="An input must be a text, a PIL image or a mapping"):
        whole.encode([{"smell": "rose"}])


def test_files_are_read_as_the_folder_says(wanted, whole, tmp_path):
    """A frame a second, where a decoder left to itself would take two."""
    video = Media("video", mp4(30, 64), "long.mp4")
    (tmp_path / video.name).write_bytes(video.read())
    close(whole.encode([{"video": str(tmp_path / video.name)}], convert_to_tensor=True), wanted(Item((video,))))


def test_arrays_with_their_rate_are_sounds(wanted, whole):
    from lightning_conan.media import decode_audio

    samples = decode_audio(AUDIO)
    close(
        whole.encode([{"audio": {"array": samples.numpy(), "sampling_rate": 16_000}}], convert_to_tensor=True),
        wanted(Item((AUDIO,))),
    )


def test_a_saved_module_loads_again(wanted, whole, tmp_path):
    whole.save(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True)
    assert (tmp_path / "again" / "sentence_bert_config.json").is_file()
    close(again.encode(["hello"], convert_to_tensor=True), wanted(Item(("hello",))))


def test_transformers_load_both(grafted, exported):
    held = load_folder(grafted)[0].state_dict()
    ours = AutoModel.from_pretrained(exported / "whole").state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in held.items())
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(exported / "stock").model.state_dict()
    assert all(torch.equal(theirs[name], held[f"backbone.{name}"]) for name in theirs)


def test_the_card_says_where_it_comes_from(exported):
    card = (exported / "whole" / "README.md").read_text()
    for words in ("- backbone: qwen3_vl\n", "| digits | 95.0 |", "trust_remote_code=True", "- state: base"):
        assert words in card
    assert "base_model:" not in card  # a local folder is none that a hub knows
    assert "- audio" not in (exported / "stock" / "README.md").read_text().split("---")[1]


def test_both_pooling_schemas_are_there(exported):
    fields = json.loads((exported / "stock" / "1_Pooling" / "config.json").read_text())
    assert fields["pooling_mode"] == "lasttoken"
    assert fields["pooling_mode_lasttoken"]
    assert fields["word_embedding_dimension"] == fields["embedding_dimension"] == 64


def test_servers_may_cut_vectors_only_where_that_was_trained(tiny, exported, tmp_path):
    trained = save_folder(tmp_path / "trained", *tiny, Provenance("rehearsed", notes={"matryoshka_dims": [128, 64]}))
    export_folder(trained, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["is_matryoshka"]
    assert config["matryoshka_dimensions"] == [128, 64]
    assert "is_matryoshka" not in json.loads((exported / "whole" / "config.json").read_text())


def test_an_adapter_is_exported_dense(grafted, world, wanted, tmp_path):
    module = Specialist(grafted, "image", QUICK, Lora(rank=4, alpha=8))
    trainer(tmp_path / "work", 1, FolderCheckpoint(tmp_path / "adapter", "adapter")).fit(module, data(world, "image"))
    export_folder(tmp_path / "adapter", tmp_path / "out", stock=True)
    found = SentenceTransformer(str(tmp_path / "out")).encode(["hello"], convert_to_tensor=True)
    model, processor, _ = load_folder(tmp_path / "adapter")
    with torch.no_grad():
        close(found, model.embed([processor(Item(("hello",)))]))


def test_a_folder_is_never_written_over_itself(tiny, tmp_path):
    """The stock form would leave the ears behind for good."""
    folder = save_folder(tmp_path / "base", *tiny, Provenance("base"))
    with pytest.raises(ValueError, match="out must differ from the folders that are read"):
        export_folder(folder, tmp_path / "base" / ".." / "base", stock=True)
    load_folder(folder, verify=True)


def test_arrays_of_frames_are_sampled_as_files_are(wanted, whole, tmp_path):
    video = Media("video", mp4(30, 64), "long.mp4")
    frames = decode_video(video, EVERY_FRAME).frames.numpy()
    close(whole.encode([{"video": {"frames": frames, "fps": 4}}], convert_to_tensor=True), wanted(Item((video,))))


def test_pictures_are_turned_and_pages_chosen_as_files_are(wanted, whole, tmp_path):
    picture, buffer = Image.open(io.BytesIO(png(90, 140, format="JPEG"))), io.BytesIO()
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(buffer, "JPEG", exif=exif)
    turned = Media("image", buffer.getvalue(), "a.jpg")
    close(whole.encode([Image.open(io.BytesIO(buffer.getvalue()))], convert_to_tensor=True), wanted(Item((turned,))))
    pages = [Image.new("RGB", (120, 90), color) for color in ("red", "blue")]
    pages[0].save(tmp_path / "a.pdf", save_all=True, append_images=pages[1:])
    second = Item((Media("document", tmp_path / "a.pdf", "a.pdf", page=2),))
    close(whole.encode([{"document": f"{tmp_path / 'a.pdf'}#page=2"}], convert_to_tensor=True), wanted(second))


@pytest.mark.parametrize(("value", "said"), [
    ({"video": {"frames": FRAMES / 255, "fps": 4}}, "Frames must be uint8 of shape"),
    ({"video": {"frames": FRAMES[:, :2], "fps": 4}}, "Frames must be uint8 of shape"),
    ({"audio": {"array": [1, 2, 3], "sampling_rate": 16_000}}, "Samples must be floats between -1 and 1"),
    ({"audio": PICTURE}, "An audio clip must be a path"),
])  # fmt: skip
def test_arrays_that_would_be_misread_are_refused(whole, value, said):
    with pytest.raises(ValueError, match=said):
        whole.encode([value])


def test_a_pinned_revision_is_what_the_hub_is_asked_for(exported, monkeypatch):
    asked = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **words: asked.update(words) or exported / "whole")
    OmniModule.load("me/model", revision="v1", token="T", cache_folder="c", local_files_only=True)
    assert asked == {"revision": "v1", "token": "T", "cache_dir": "c", "local_files_only": True}


def test_a_stock_export_says_what_it_is(exported):
    with pytest.raises(ValueError, match="is a stock export, which sentence-transformers loads"):
        load_folder(exported / "stock")


def test_a_card_may_be_written_on(exported, tmp_path):
    folder = shutil.copytree(exported / "whole", tmp_path / "whole")
    with (folder / "README.md").open("a") as card:
        card.write("Trained on our own pictures.\n")
    assert OmniModule.load(str(folder)).get_embedding_dimension() == 64
    assert OmniModule.load(str(folder), model_kwargs={"torch_dtype": "auto"}).model.dtype == torch.float32


def test_a_stock_export_keeps_every_setting_of_inputs(grafted, tmp_path):
    """Each setting decides about one of the inputs, and none is a default."""
    model, processor, provenance = load_folder(grafted)
    settings = replace(
        processor.config,
        instruction="Say what it is.",
        query_hint="As a query.",
        target_hint="As a document.",
        min_pixels=8192,
        max_pixels=20 * 1024,
        video_min_pixels=2048,
        video_max_pixels=14 * 1024,
        frame_max_tokens=3,
        wrap_videos=False,
        sampling=Sampling(fps=3.0, min_frames=2, max_frames=5),
    )
    other = OmniProcessor(processor.tokenizer, settings)
    folder = save_folder(tmp_path / "folder", model, other, provenance)
    export_folder(folder, tmp_path / "out", stock=True)
    stock = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    images = [Media("image", png(side, side), "a.png") for side in (20, 300)]
    videos = [Media("video", mp4(frames, 100), "a.mp4") for frames in (2, 5, 6, 30)]
    values = [Image.open(io.BytesIO(media.read())) for media in images]
    for media in videos:
        frames = decode_video(media, EVERY_FRAME).frames.numpy()
        values.append({"array": frames, "video_metadata": {"fps": 4.0, "total_num_frames": len(frames)}})
    for side, encode in (("query", stock.encode_query), ("target", stock.encode_document)):
        for media, value in zip([*images, *videos], values, strict=True):
            with torch.no_grad():
                close(encode([value], convert_to_tensor=True), model.embed([other(Item((media,)), side)]))
