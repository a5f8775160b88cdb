"""Encodes an Item: decoding, resizing, log-mel, the chat template and its placeholders."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import PreTrainedTokenizerBase, WhisperFeatureExtractor

from lightning_conan.embedder.audio import audio_tokens, window_tokens
from lightning_conan.embedder.packing import IGNORED, Encoded
from lightning_conan.embedder.positions import Run, mrope_positions
from lightning_conan.embedder.processor_config import ProcessorConfig
from lightning_conan.embedder.prompt import PromptBuilder
from lightning_conan.items import Item, Media, Side, check_text
from lightning_conan.media import Clip, MediaError, decode_media
from lightning_conan.media.audio import SAMPLE_RATE
from lightning_conan.media.image import Shrink, resize

Decoded = Tensor | Clip
"""Pixels of an image or page (3 axes), a waveform at 16 kHz (1 axis), or a video's sampled frames."""
Turn = tuple[str, Sequence[str | Decoded]]
"""A turn of a chat: its role, and its text and decoded media in order."""

SPECIAL_TOKENS = {
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "end": "<|endoftext|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "audio_start": "<|audio_start|>",
    "audio_end": "<|audio_end|>",
    "audio_pad": "<|audio_pad|>",
    "audio": "<|AUDIO|>",
    "emb": "<|emb|>",
}
OWN_TOKENS = [token for name, token in SPECIAL_TOKENS.items() if name.startswith("audio") or name == "emb"]
"""Those that a Qwen3-VL lacks."""


class OmniProcessor:
    """Turns items into tokens, pixels and log-mels.

    Args:
        tokenizer: The backbone's tokenizer; it must know every token of ``SPECIAL_TOKENS``.
        config: Settings of the encoding.

    Raises:
        ValueError: The tokenizer lacks one of the special tokens.

    Example:
        >>> from lightning_conan.embedder import tiny_embedder
        >>> encoded = tiny_embedder()[1](Item(("a red circle",)))
        >>> encoded.input_ids.shape, encoded.positions.shape
        (torch.Size([12]), torch.Size([3, 12]))
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: ProcessorConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        known = tokenizer.get_vocab()
        if missing := [token for token in SPECIAL_TOKENS.values() if token not in known]:
            raise ValueError(f"The tokenizer must know the tokens {missing}. Add them, with their embedding rows.")
        self.ids = {name: int(known[token]) for name, token in SPECIAL_TOKENS.items()}

    @cached_property
    def fingerprint(self) -> str:
        """Equal for processors that encode every input alike."""
        made_of = (json.dumps(self.config.to_dict(), sort_keys=True), sorted(self.tokenizer.get_vocab().items()))
        return sha256(repr(made_of).encode()).hexdigest()

    @cached_property
    def mel_extractor(self) -> WhisperFeatureExtractor:
        """Log-mel as Whisper and Qwen3-Omni compute it."""
        return WhisperFeatureExtractor(feature_size=self.config.mel_bins, sampling_rate=SAMPLE_RATE)

    def __call__(self, item: Item, side: Side = "query") -> Encoded:
        """Decodes and encodes an item, as a query or a target.

        Raises:
            MediaError: One of its media is broken or over a limit.
        """
        prompt = PromptBuilder.begin(self.instruction_of(item.instruction, side))
        for part in item.parts:
            if isinstance(part, str):
                prompt.write(part)
                continue
            decoded = self.decode(part)
            try:
                self.add(prompt, decoded)
            except ValueError as error:
                raise MediaError(part, str(error)) from error
        return self.finish(prompt)

    def decode(self, media: Media) -> Decoded:
        """Decodes a medium by this processor's settings.

        Raises:
            MediaError: It is broken or over a limit.
        """
        config, gap = self.config, self.config.reducing_gap
        shrink = Shrink(self.config.image_size, gap) if gap else None
        return decode_media(media, config.sampling, config.limits, shrink, self.config.frame_size)

    def encode(self, parts: Sequence[str | Decoded], instruction: str | None = None, side: Side = "query") -> Encoded:
        """Encodes media that are decoded already.

        Args:
            parts: Texts, uint8 pixels of images, sampled frames and 16 kHz waveforms, in order.
            instruction: System instruction; the folder's own by default.
            side: Side of a search.

        Raises:
            ValueError: An image or audio clip is too small to encode.
        """
        return self.encode_turns([("user", parts)], instruction, side)

    def encode_turns(self, turns: Sequence[Turn], instruction: str | None = None, side: Side = "query") -> Encoded:
        """Encodes a chat, whose media are decoded already, with the embedding after its last turn.

        Args:
            turns: Role and content of each turn: texts, uint8 pixels, sampled frames, 16 kHz waveforms.
            instruction: System instruction; the folder's own by default.
            side: Side of a search.

        Raises:
            ValueError: An image or audio clip is too small to encode.
        """
        prompt = PromptBuilder.begin(self.instruction_of(instruction, side), turns[0][0])
        for number, (role, parts) in enumerate(turns):
            if number:
                prompt.next_turn(role)
            for part in parts:
                if isinstance(part, str):
                    prompt.write(part)
                else:
                    self.add(prompt, part)
        return self.finish(prompt)

    def teach(self, encoded: Encoded, reasoning: str) -> Encoded:
        """Appends the generation target of a query, with labels; ``<|emb|>`` comes last, also after an empty one.

        Args:
            encoded: The query.
            reasoning: Text that the model should generate before ``<|emb|>``.
        """
        assert not self.config.ends, "only a prompt that ends where the model begins to write can be continued"
        words = self.tokenize(reasoning)
        ids = torch.cat([encoded.input_ids, torch.tensor(words, dtype=torch.long)])
        labels = torch.full_like(ids, IGNORED)
        labels[len(encoded) - 1 :] = torch.tensor([*words, self.ids["emb"]])
        after = encoded.positions[:, -1:] + 1 + torch.arange(len(words))
        return replace(encoded, input_ids=ids, positions=torch.cat([encoded.positions, after], dim=1), labels=labels)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, special tokens as text too; by the backend tokenizer, as transformers' call takes 16 us more.

        Raises:
            ValueError: It holds half a character.
        """
        backend = self.tokenizer.backend_tokenizer
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        try:
            ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        except TypeError:  # all that is said of half a character is that a text must be a string
            check_text(text)
            raise
        return ids

    def instruction_of(self, instruction: str | None, side: Side) -> str:
        """Joins the system instruction of an item, or else the folder's, and the side's hint.

        Args:
            instruction: The item's; None for the folder's.
            side: Side of a search.
        """
        hint = self.config.query_hint if side == "query" else self.config.target_hint
        return " ".join(words for words in (self.config.instruction if instruction is None else instruction, hint) if words)

    def add(self, prompt: PromptBuilder, decoded: Decoded) -> None:
        """Appends one decoded medium: its pixels, frames or log-mel, and its placeholders.

        Args:
            prompt: The prompt under construction; extended in place.
            decoded: Pixels (3, height, width), frames or a waveform (samples,).
        """
        if isinstance(decoded, Clip):
            self.add_video(prompt, decoded)
        elif decoded.ndim == 1:
            self.add_audio(prompt, decoded)
        else:
            self.add_image(prompt, decoded)

    def add_image(self, prompt: PromptBuilder, image: UInt8[Tensor, "3 height width"]) -> None:
        """Appends an image, resized.

        Args:
            prompt: The prompt under construction; extended in place.
            image: Its pixels.
        """
        size = self.config.image_size(image.shape[1], image.shape[2])
        prompt.pixels.append(resize(image[None], size))
        self.add_grid(prompt, "image", size)

    def add_video(self, prompt: PromptBuilder, clip: Clip) -> None:
        """Appends a video's frames in pairs, each pair with its time.

        Args:
            prompt: The prompt under construction; extended in place.
            clip: The sampled frames.
        """
        frames, seconds = clip.frames, clip.seconds
        if len(frames) == 1:  # the vision tower takes frames in pairs
            frames, seconds = frames.repeat(2, 1, 1, 1), seconds * 2
        height, width = frames.shape[2:]
        size = (height, width) if clip.resized else self.config.frame_size(len(frames), height, width)
        frames = resize(frames, size)
        if len(frames) % 2:
            frames, seconds = torch.cat([frames, frames[-1:]]), [*seconds, seconds[-1]]
        prompt.pixels.append(frames)
        if self.config.wrap_videos:
            prompt.add("vision_start")
        for first, second in zip(seconds[::2], seconds[1::2], strict=True):
            prompt.write(f"<{(first + second) / 2:.1f} seconds>")
            self.add_grid(prompt, "video", size)
        if self.config.wrap_videos:
            prompt.add("vision_end")

    def add_grid(self, prompt: PromptBuilder, token: str, size: tuple[int, int]) -> None:
        """Appends the placeholders of one image or of one pair of frames.

        Args:
            prompt: The prompt under construction; extended in place.
            token: ``image`` or ``video``.
            size: Height and width in pixels, multiples of a token's side.
        """
        side = self.config.patch_size * self.config.merge_size
        prompt.grids.append((size[0] // side, size[1] // side))
        prompt.add("vision_start")
        prompt.add(token, prompt.grids[-1][0] * prompt.grids[-1][1])
        prompt.add("vision_end")

    def add_audio(self, prompt: PromptBuilder, wave: Float[Tensor, " samples"]) -> None:
        """Appends an audio clip's log-mel.

        Args:
            prompt: The prompt under construction; extended in place.
            wave: Samples at 16 kHz.

        Raises:
            ValueError: It is shorter than one frame of the log-mel.
        """
        extractor: Any = self.mel_extractor
        if len(wave) < extractor.n_fft:
            raise ValueError(f"{len(wave)} samples at 16 kHz are too short, must be {extractor.n_fft} or more")
        features = extractor(wave.numpy(), sampling_rate=SAMPLE_RATE, padding=False, truncation=False, return_tensors="pt")
        mel = features["input_features"][0]
        prompt.mels.append(mel)
        prompt.add("audio_start")
        size = mel.shape[1], self.config.mel_window, self.config.mel_halvings
        prompt.add("audio", audio_tokens(*size))
        prompt.padded_audio_tokens += window_tokens(*size)
        prompt.add("audio_end")

    def finish(self, prompt: PromptBuilder) -> Encoded:
        """Completes the template, and makes token ids and positions."""
        prompt.next_turn("assistant")
        if self.config.ends:
            prompt.add("end")
        ids: list[int] = []
        runs: list[Run] = []
        grids, prefix = iter(prompt.grids), 0
        for number, piece in enumerate(prompt.text):
            if number == prompt.opening:
                prefix = len(ids)
            if isinstance(piece, str):
                words = self.tokenize(piece)
                ids += words
                runs.append(len(words))
            else:
                token, count = piece
                ids += [self.ids[token]] * count
                runs.append(next(grids) if token in ("image", "video") else count)
        positions, audio = mrope_positions(runs), prompt.padded_audio_tokens
        return Encoded(torch.tensor(ids), positions, prompt.pixels, prompt.mels, prefix=prefix, padded_audio_tokens=audio)
