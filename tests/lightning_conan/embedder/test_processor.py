import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor

from lightning_conan.embedder import OmniProcessor, ProcessorConfig
from lightning_conan.embedder.audio import audio_tokens
from lightning_conan.embedder.model import patchify
from lightning_conan.items import Item, Media
from lightning_conan.media import MediaError
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


def test_placeholders_match_what_they_stand_for(encoded, processor):
    item = encoded["video and sound"]
    ids = item.input_ids.tolist()
    frames, _, height, width = item.pixels[0].shape
    assert ids.count(processor.ids["video"]) == frames // 2 * (height // 16) * (width // 16)
    assert ids.count(processor.ids["audio"]) == audio_tokens(item.mels[0].shape[1], 100, 3)
    assert item.positions.shape == (3, len(ids))


def test_pixels_travel_as_uint8(encoded):
    assert all(pixels.dtype == torch.uint8 for item in encoded.values() for pixels in item.pixels)


def test_pixel_values_equal_those_of_qwens_image_processor(processor):
    """Resize, normalisation and patch order (within the rounding to uint8 that both do after the resize)."""
    from lightning_conan.media import decode_image

    media = Media("image", png(100, 140), "a.png")
    upstream = Qwen2VLImageProcessor(
        patch_size=8, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    expected = upstream(decode_image(media), return_tensors="pt")
    patches, grid = patchify(processor(Item((media,))).pixels[0], 8, 2)
    assert expected["image_grid_thw"].tolist() == [list(grid)]
    assert torch.allclose(patches, expected["pixel_values"], atol=1e-6)


def test_number_of_audio_tokens_is_the_encoders(tiny):
    for seconds in (0.1, 0.99, 1.0, 1.01, 2.345):
        item = tiny[1](Item((Media("audio", flac(seconds), "a.flac"),)))
        with torch.no_grad():
            assert len(tiny[0].encode_mels(item.mels)) == audio_tokens(item.mels[0].shape[1], 100, 3)


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
    assert ProcessorConfig.from_dict(processor.config.to_dict()) == processor.config
