import io
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen3VLVideoProcessor

from lightning_conan.embedder import OmniProcessor, ProcessorConfig, Provenance
from lightning_conan.embedder.audio import audio_tokens
from lightning_conan.embedder.sentence_transformer import OmniModule
from lightning_conan.embedder.vision import patchify
from lightning_conan.items import Item, Media
from lightning_conan.media import Limits, MediaError, decode_media, encode_video
from samples import flac, png


def words(processor, item) -> str:
    return processor.tokenizer.decode(processor(item).input_ids)


def test_template(processor):
    assert words(processor, Item(("hello",), "Find it.")) == (
        "<|im_start|>system\nFind it.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
    )
    assert words(processor, Item(("hello",))).startswith("<|im_start|>user\nhello")


def test_special_tokens_in_a_users_text_are_text(processor):
    """Else a text could claim pixels that are not there, or end its own turn."""
    found = processor(Item(("<|AUDIO|> <|im_end|> <|image_pad|>",))).input_ids.tolist()
    plain = processor(Item(("x",))).input_ids.tolist()
    for token in ("audio", "image", "im_end"):
        assert found.count(processor.ids[token]) == plain.count(processor.ids[token])


TEXTS = ["", "\n", "user\nA cat on a mat. " * 9, "日本語 naïve é \u00e9", "<|AUDIO|>a<|im_end|> \n\n\t", "\0 \ufeff x"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_becomes_the_tokens_that_transformers_makes_of_it(processor, text):
    """Whatever the tokenizer was asked before."""
    processor.tokenizer(["a", "b c d"], truncation=True, max_length=2, padding="max_length")
    expected = processor.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    processor.tokenizer(["a", "b c d"], truncation=True, max_length=2, padding="max_length")
    assert processor.tokenize(text) == expected


def test_placeholders_match_what_they_stand_for(encoded, processor):
    item = encoded["video and sound"]
    ids = item.input_ids.tolist()
    frames, _, height, width = item.inputs("vision")[0].shape
    assert ids.count(processor.ids["video"]) == frames // 2 * (height // 16) * (width // 16)
    assert ids.count(processor.ids["audio"]) == audio_tokens(item.inputs("audio")[0].shape[1], 100, 3)
    assert item.positions.shape == (3, len(ids))


def test_pixels_travel_as_uint8(encoded):
    assert all(pixels.dtype == torch.uint8 for item in encoded.values() for pixels in item.inputs("vision"))


def test_pixel_values_equal_those_of_qwens_image_processor(processor):
    """Resize, normalisation and patch order (within the rounding to uint8 that both do after the resize)."""
    from lightning_conan.media import decode_image

    media = Media("image", png(100, 140), "a.png")
    upstream = Qwen2VLImageProcessor(
        patch_size=8, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    expected = upstream(decode_image(media), return_tensors="pt")
    patches, grids = patchify(processor(Item((media,))).inputs("vision"), 8, 2, processor.family.scaled)
    assert expected["image_grid_thw"].tolist() == [list(grid) for grid in grids]
    assert torch.allclose(patches, expected["pixel_values"], atol=1e-6)


def test_number_of_audio_tokens_is_the_encoders(tiny):
    for seconds in (0.1, 0.99, 1.0, 1.01, 2.345):
        item = tiny[1](Item((Media("audio", flac(seconds), "a.flac"),)))
        with torch.no_grad():
            assert len(tiny[0].encode_frames("audio", item.media["audio"])) == audio_tokens(
                item.inputs("audio")[0].shape[1], 100, 3
            )


def test_a_sound_of_a_few_samples_is_refused(processor):
    with pytest.raises(MediaError, match="too short"):
        processor(Item((Media("audio", flac(0.005), "blip.flac"),)))


def test_a_sliver_of_an_image_is_refused(processor):
    with pytest.raises(MediaError, match="aspect ratio"):
        processor(Item((Media("image", png(1, 1000), "line.png"),)))


def test_a_tokenizer_without_our_tokens_is_refused(processor):
    from tokenizers import Tokenizer, models

    with pytest.raises(ValueError, match=r"must know the tokens.*im_start"):
        OmniProcessor(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())), ProcessorConfig())


def test_settings_survive_json(processor):
    fields = processor.config.to_dict()
    assert ProcessorConfig.from_dict(fields) == processor.config
    del fields["reducing_gap"]  # as a folder of an earlier version: what it says is what was done before
    assert ProcessorConfig.from_dict(fields) == processor.config
    with pytest.raises(ValueError, match=r"exactly the fields of this version, but \['merge_size'\] differ"):
        ProcessorConfig.from_dict({name: value for name, value in fields.items() if name != "merge_size"})


@pytest.mark.parametrize(("width", "height", "orientation"), [(1001, 747, 1), (1001, 747, 6), (333, 1499, 8), (640, 480, 3)])
def test_a_reduced_jpeg_is_nearly_the_whole_one(processor, width, height, orientation):
    data = photo(width, height, orientation)
    for modality in ("image", "document"):
        whole = processor(Item((Media(modality, data, "a.jpg"),)))
        small = reduced(processor, 2.0)(Item((Media(modality, data, "a.jpg"),)))
        assert torch.equal(small.input_ids, whole.input_ids)
        (one,), (other,) = whole.inputs("vision"), small.inputs("vision")
        assert one.shape == other.shape
        assert not torch.equal(one, other)
        assert (one.float() - other.float()).abs().mean() < 1.5


def test_what_is_not_shrunk_so_far_is_decoded_whole(processor):
    for data, name in ((photo(70, 70), "small.jpg"), (png(600, 400), "a.png")):
        item = Item((Media("image", data, name),))
        assert torch.equal(reduced(processor, 2.0)(item).inputs("vision")[0], processor(item).inputs("vision")[0])
    with pytest.raises(MediaError, match="aspect ratio"):
        reduced(processor, 2.0)(Item((Media("image", photo(3000, 8), "line.jpg"),)))
    with pytest.raises(MediaError, match="truncated"):
        reduced(processor, 2.0)(Item((Media("image", photo(900, 700)[:-3000], "cut.jpg"),)))
    with pytest.raises(ValueError, match=r"reducing_gap must be 1 or more, or null, got 0\.5"):
        reduced(processor, 0.5)


def reduced(processor, gap):
    return OmniProcessor(processor.tokenizer, replace(processor.config, reducing_gap=gap))


def photo(width, height, orientation=1):
    """A smooth picture with an edge, as a JPEG that lies as a camera was held."""
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    pixels = np.stack([255 * across, 255 * down, 255 * (across > down)], axis=-1).astype(np.uint8)
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(buffer, "JPEG", exif=exif, quality=90)
    return buffer.getvalue()


@pytest.mark.parametrize(("height", "width"), [(48, 64), (15, 239), (2, 18), (600, 800)])
def test_frames_resized_as_they_are_decoded_are_those_resized_later(processor, height, width):
    """Also where Qwen3-VL would choose another size for what it chose."""
    data = encode_video(torch.randint(0, 255, (10, 3, height & ~1, width & ~1), dtype=torch.uint8), 5)
    media = Media("video", data, "a.mp4")
    later = processor.encode([decode_media(media, processor.config.sampling)])
    (found,) = processor(Item((media,))).inputs("vision")
    assert torch.equal(found, later.inputs("vision")[0])
    assert processor.decode(media).frames.shape[2:] == found.shape[2:]


@pytest.mark.parametrize("text", ["cut emoji \ud83d here", "\ude00\ud83d", "not UTF-8 \udcff"])
def test_half_a_character_is_refused_wherever_the_processor_reads(processor, text):
    """The tokenizer would say no more than that a text must be a string."""
    settings = replace(processor.config, ends=False, query_hint=text)
    with pytest.raises(ValueError, match="must be whole characters"):
        OmniProcessor(processor.tokenizer, settings)(Item(("whole",)))
    for parts, instruction in ((["words", text], None), (["words"], text)):
        with pytest.raises(ValueError, match="must be whole characters"):
            processor.encode(parts, instruction)
    begins = OmniProcessor(processor.tokenizer, replace(settings, query_hint=""))
    with pytest.raises(ValueError, match="must be whole characters"):
        begins.teach(begins(Item(("whole",))), text)


def test_whole_characters_of_every_plane_are_read(processor):
    text = "a\u00e9\u4e2d\U0001f600\U0010ffff\u200d\ufffd"
    assert f"{text}<|im_end|>" in words(processor, Item((text,)))


def test_sentence_transformers_inputs_are_refused_and_laid_on_white_too(tiny):
    module, processor = OmniModule(*tiny, Provenance("base")), tiny[1]
    for value, prompt in (("half \ud83d", None), ({"text": "half \ud83d"}, None), ("whole", "half \ud83d")):
        with pytest.raises(ValueError, match="must be whole characters"):
            module.preprocess([value], prompt)
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    for image in (Image.fromarray(values), Image.fromarray(values).convert("LA")):
        image.save(buffer := io.BytesIO(), "PNG")
        wanted = processor(Item((Media("image", buffer.getvalue(), "a.png"),))).inputs("vision")[0]
        for found in module.preprocess([image, {"image": image}, {"document": image}])["encoded"]:
            assert torch.equal(found.inputs("vision")[0], wanted)


def test_an_empty_instruction_takes_the_place_of_the_folders(processor):
    """The hint of a side still stands."""
    instructed = OmniProcessor(processor.tokenizer, replace(processor.config, instruction="Find it.", target_hint="Briefly."))
    assert words(instructed, Item(("hello",))).startswith("<|im_start|>system\nFind it.<|im_end|>")
    assert words(instructed, Item(("hello",), "")).startswith("<|im_start|>user\nhello")
    assert instructed.instruction_of("", "target") == "Briefly."
    assert instructed.instruction_of(None, "target") == "Find it. Briefly."


def test_a_fingerprint_tells_settings_and_tokenizers_apart(processor):
    other = deepcopy(processor.tokenizer)
    other.add_tokens(["<|another|>"])
    processors = [
        processor,
        OmniProcessor(processor.tokenizer, replace(processor.config, query_hint="Find it.")),
        OmniProcessor(processor.tokenizer, replace(processor.config, limits=Limits(max_pixels=3))),
        OmniProcessor(other, processor.config),
    ]
    assert len({each.fingerprint for each in processors}) == len(processors)
    assert OmniProcessor(deepcopy(processor.tokenizer), replace(processor.config)).fingerprint == processor.fingerprint


def test_every_sound_of_an_item_counts_as_the_encoder_pads_it(processor):
    sounds = [Media("audio", flac(seconds), f"{seconds}.flac") for seconds in (0.3, 1.7)]
    alone = [processor(Item((sound,))).cost for sound in sounds]
    assert min(alone) > 0
    assert processor(Item(tuple(sounds))).cost == sum(alone)


def test_the_shortest_sound_is_one_window_of_its_spectrogram(processor):
    shortest = processor.mel_extractor.n_fft
    assert processor.encode([torch.zeros(shortest)]).inputs("audio")[0].shape[1] >= 1
    with pytest.raises(ValueError, match=f"{shortest - 1} samples at 16 kHz are too short, must be {shortest} or more"):
        processor.encode([torch.zeros(shortest - 1)])


@pytest.mark.parametrize("count", [1, 2, 5, 40])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (400, 300), (90, 900)])
@pytest.mark.parametrize("cap", [1, 16, 768])
def test_sizes_of_frames_are_those_of_qwens_video_processor(processor, count, height, width, cap):
    """The cap of a frame included, which is no less than the least that a video has."""
    settings = replace(processor.config, video_min_pixels=8192, video_max_pixels=96 * 1024, frame_max_tokens=cap)
    found = settings.frame_size(count, height, width)
    factor = settings.patch_size * settings.merge_size
    upstream = Qwen3VLVideoProcessor(
        size={"shortest_edge": 8192, "longest_edge": 96 * 1024},
        patch_size=settings.patch_size,
        merge_size=settings.merge_size,
        max_video_tokens=cap,
    )
    frames = torch.empty(1, max(count, 2), 3, height, width, dtype=torch.uint8, device="meta")
    wanted = upstream.resize(
        frames,
        upstream.size,
        upstream.resample,
        factor=factor,
        temporal_factor=2,
        cap_pixels_per_frame=True,
    )
    assert found == tuple(wanted.shape[-2:])
