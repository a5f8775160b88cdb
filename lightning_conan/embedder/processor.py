"""From an Item to an Encoded: decoding, resizing, log-mel, the chat template and its placeholders."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from dataclasses import fields as fields_of
from functools import cached_property
from hashlib import sha256
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import PreTrainedTokenizerBase, WhisperFeatureExtractor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as smart_resize_video

from lightning_conan.embedder.audio import audio_tokens, window_tokens
from lightning_conan.embedder.packing import IGNORED, Encoded
from lightning_conan.embedder.positions import Run, mrope_positions
from lightning_conan.items import Item, Media, Side
from lightning_conan.media import Clip, Limits, MediaError, decode_media
from lightning_conan.media.audio import SAMPLE_RATE
from lightning_conan.media.image import Shrink, resize
from lightning_conan.media.video import Sampling

Decoded = Tensor | Clip
"""Pixels of an image or page (3 axes), a waveform at 16 kHz (1 axis), or a video's sampled frames."""

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


LATER = {"reducing_gap"}
"""Fields that older folders lack: their defaults are what was done before."""


@dataclass(frozen=True)
class ProcessorConfig:
    """How inputs become tokens; saved in the checkpoint folder, so that serving equals training.

    Args:
        instruction: System instruction of items that carry none of their own; with an empty one there is no system turn.
        query_hint: Ends the instruction of queries.
        target_hint: Ends the instruction of what is searched.
        ends: Whether the template ends with an end token, whose state is the embedding; otherwise it ends where the model would
            begin to write, and the embedding is the state that predicts ``<|emb|>`` (TRACE, arXiv 2603.02929).
        reasons: Whether it writes about a query before that, where it finds it necessary.
        patch_size: Side of a patch in pixels.
        merge_size: Patches a side that become one token.
        min_pixels: Smaller images are enlarged to this many pixels.
        max_pixels: Larger images are shrunk to this many pixels.
        video_min_pixels: As ``min_pixels``, over all frames of a video.
        video_max_pixels: As ``max_pixels``, over all frames of a video.
        frame_max_tokens: A frame's cap in tokens, so that a short clip does not spend the whole budget on a few frames
            (``cap_pixels_per_frame`` of Qwen3-VL's processor); null for none.
        wrap_videos: Whole videos stand between vision tokens, besides each pair of frames: what transformers writes since
            5.10, and vLLM with it; false for what they wrote before.
        sampling: Which frames of a video are looked at.
        mel_bins: Frequency bins of the log-mel spectrogram.
        mel_window: Mel frames of the audio encoder's window (100 of Qwen3-Omni's, 3000 of Whisper's).
        mel_halvings: How often the audio encoder halves them (3 and 1).
        limits: What a file may cost.
        reducing_gap: JPEGs (images and pages) that are to be shrunk are decoded at 1/2, 1/4 or 1/8 of their size where that is
            still so many times as large as what they are shrunk to: 2 takes 0.8 of the time for a photo of 7 megapixels shrunk
            to 512 x 512, and moves pixels by 0.2 of 255 in the mean. null decodes them whole, as the published processors do.
    """

    instruction: str = "Represent the user's input."
    query_hint: str = ""
    target_hint: str = ""
    ends: bool = True
    reasons: bool = False

    def __post_init__(self) -> None:
        if self.reducing_gap is not None and not self.reducing_gap >= 1:
            raise ValueError(f"reducing_gap must be 1 or more, or null, got {self.reducing_gap}.")
        if self.ends and self.reasons:
            raise ValueError("A model that reasons must end where it begins to write, got ends=true and reasons=true.")

    patch_size: int = 16
    merge_size: int = 2
    min_pixels: int = 4 * 32 * 32
    max_pixels: int = 1800 * 32 * 32
    video_min_pixels: int = 128 * 32 * 32
    video_max_pixels: int = 10 * 768 * 32 * 32
    frame_max_tokens: int | None = 768
    wrap_videos: bool = True
    sampling: Sampling = field(default_factory=lambda: Sampling(fps=1.0, max_frames=64))
    mel_bins: int = 128
    mel_window: int = 100
    mel_halvings: int = 3
    limits: Limits = field(default_factory=Limits)
    reducing_gap: float | None = None

    @property
    def tells_sides(self) -> bool:
        """Whether queries are read otherwise than candidates."""
        return self.reasons or self.query_hint != self.target_hint

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ProcessorConfig":
        """The inverse of ``to_dict``.

        Raises:
            ValueError: Fields that are missing or unknown: defaults of another version would change what is read.
        """
        if odd := ({field.name for field in fields_of(cls)} ^ set(fields)) - LATER:
            raise ValueError(f"omni_processor.json must have exactly the fields of this version, but {sorted(odd)} differ.")
        return cls(**{**fields, "sampling": Sampling(**fields["sampling"]), "limits": Limits(**fields["limits"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass
class Draft:
    """An item while it is being encoded: text in words, placeholders in numbers."""

    text: list[str | tuple[str, int]] = field(default_factory=list)
    grids: list[tuple[int, int]] = field(default_factory=list)
    pixels: list[Tensor] = field(default_factory=list)
    mels: list[Tensor] = field(default_factory=list)
    heard: int = 0
    opening: int = 0
    """Pieces before the one that the item's own words join."""

    def add(self, token: str, count: int = 1) -> None:
        self.text.append((token, count))

    def write(self, words: str) -> None:
        """Joins neighbouring text: tokenisers merge across such borders, and so must we."""
        if self.text and isinstance(self.text[-1], str):
            self.text[-1] += words
        else:
            self.text.append(words)


class OmniProcessor:
    """Turns items into tokens, pixels and log-mel frames, in a data worker or wherever it is called.

    Args:
        tokenizer: The backbone's tokenizer; it must know every token of ``SPECIAL_TOKENS``.
        config: How inputs become tokens.

    Raises:
        ValueError: The tokenizer lacks one of the special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: ProcessorConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        known = tokenizer.get_vocab()
        if missing := [token for token in SPECIAL_TOKENS.values() if token not in known]:
            raise ValueError(f"The tokenizer must know the tokens {missing}. Add them, with their embedding rows.")
        self.ids = {name: int(known[token]) for name, token in SPECIAL_TOKENS.items()}

    @cached_property
    def fingerprint(self) -> str:
        """Equal for processors that make the same of every input."""
        made_of = (json.dumps(self.config.to_dict(), sort_keys=True), sorted(self.tokenizer.get_vocab().items()))
        return sha256(repr(made_of).encode()).hexdigest()

    @cached_property
    def mel_extractor(self) -> WhisperFeatureExtractor:
        """Log-mel as Whisper and Qwen3-Omni compute it."""
        return WhisperFeatureExtractor(feature_size=self.config.mel_bins, sampling_rate=SAMPLE_RATE)

    def __call__(self, item: Item, side: Side = "query") -> Encoded:
        """Decodes and encodes one item, as a query or as what is searched.

        Raises:
            MediaError: One of its media is broken or over a limit.
        """
        draft = self.begin(item.instruction, side)
        for part in item.parts:
            if isinstance(part, str):
                draft.write(part)
                continue
            decoded = self.decode(part)
            try:
                self.add(draft, decoded)
            except ValueError as error:
                raise MediaError(part, str(error)) from error
        return self.finish(draft)

    def decode(self, media: Media) -> Decoded:
        """One medium, as this processor's settings ask for it.

        Raises:
            MediaError: It is broken or over a limit.
        """
        gap = self.config.reducing_gap
        return decode_media(media, self.config.sampling, self.config.limits, Shrink(self.image_size, gap) if gap else None)

    def encode(self, parts: Sequence[str | Decoded], instruction: str | None = None, side: Side = "query") -> Encoded:
        """As calling it, for media that are decoded already: pixels, sampled frames, a 16 kHz waveform.

        Raises:
            ValueError: A sliver of an image, a blip of a sound.
        """
        draft = self.begin(instruction, side)
        for part in parts:
            if isinstance(part, str):
                draft.write(part)
            else:
                self.add(draft, part)
        return self.finish(draft)

    def teach(self, encoded: Encoded, reasoning: str) -> Encoded:
        """A query with what the model should write about it, and the labels of that: ``<|emb|>`` comes last, also where there
        is nothing to write.
        """
        assert not self.config.ends, "only what ends where the model begins to write can go on"
        words = self.tokenizer(reasoning, add_special_tokens=False, split_special_tokens=True)["input_ids"] if reasoning else []
        ids = torch.cat([encoded.input_ids, torch.tensor(words, dtype=torch.long)])
        labels = torch.full_like(ids, IGNORED)
        labels[len(encoded) - 1 :] = torch.tensor([*words, self.ids["emb"]])
        after = encoded.positions[:, -1:] + 1 + torch.arange(len(words))
        return replace(encoded, input_ids=ids, positions=torch.cat([encoded.positions, after], dim=1), labels=labels)

    def instruction_of(self, instruction: str | None, side: Side) -> str:
        """The system turn of an item: its own instruction or the folder's, and the side's hint."""
        hint = self.config.query_hint if side == "query" else self.config.target_hint
        return " ".join(words for words in (self.config.instruction if instruction is None else instruction, hint) if words)

    def begin(self, instruction: str | None, side: Side = "query") -> Draft:
        """The template up to the user's words."""
        draft = Draft()
        instruction = self.instruction_of(instruction, side)
        if instruction:
            draft.add("im_start")
            draft.write(f"system\n{instruction}")
            draft.add("im_end")
            draft.write("\n")
        draft.add("im_start")
        draft.opening = len(draft.text)
        draft.write("user\n")
        return draft

    def add(self, draft: Draft, decoded: Decoded) -> None:
        """Appends one decoded medium: its pixels, frames or log-mel, and its placeholders."""
        if isinstance(decoded, Clip):
            self.add_video(draft, decoded)
        elif decoded.ndim == 1:
            self.add_audio(draft, decoded)
        else:
            self.add_image(draft, decoded)

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """What an image is resized to, as Qwen2-VL's image processor chooses it."""
        config = self.config
        bounds = {"min_pixels": config.min_pixels, "max_pixels": config.max_pixels}
        size: tuple[int, int] = smart_resize(height, width, factor=config.patch_size * config.merge_size, **bounds)
        return size

    def add_image(self, draft: Draft, image: UInt8[Tensor, "3 height width"]) -> None:
        size = self.image_size(image.shape[1], image.shape[2])
        draft.pixels.append(resize(image[None], size))
        self.add_grid(draft, "image", size)

    def add_video(self, draft: Draft, clip: Clip) -> None:
        frames, seconds = clip.frames, clip.seconds
        if len(frames) == 1:  # the vision tower takes frames in pairs
            frames, seconds = frames.repeat(2, 1, 1, 1), seconds * 2
        size = self.frame_size(len(frames), frames.shape[2], frames.shape[3])
        frames = resize(frames, size)
        if len(frames) % 2:
            frames, seconds = torch.cat([frames, frames[-1:]]), [*seconds, seconds[-1]]
        draft.pixels.append(frames)
        if self.config.wrap_videos:
            draft.add("vision_start")
        for first, second in zip(seconds[::2], seconds[1::2], strict=True):
            draft.write(f"<{(first + second) / 2:.1f} seconds>")
            self.add_grid(draft, "video", size)
        if self.config.wrap_videos:
            draft.add("vision_end")

    def frame_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """What frames are resized to, as Qwen3-VL's video processor chooses it."""
        config, factor = self.config, self.config.patch_size * self.config.merge_size
        most = config.video_max_pixels
        if config.frame_max_tokens is not None:
            each = max(min(config.frame_max_tokens * factor**2, most // frames), int(config.video_min_pixels * 1.05))
            most = each * frames
        size: tuple[int, int] = smart_resize_video(
            frames, height, width, factor=factor, min_pixels=config.video_min_pixels, max_pixels=most
        )
        return size

    def add_grid(self, draft: Draft, token: str, size: tuple[int, int]) -> None:
        """Placeholders of one image or of one pair of frames."""
        side = self.config.patch_size * self.config.merge_size
        draft.grids.append((size[0] // side, size[1] // side))
        draft.add("vision_start")
        draft.add(token, draft.grids[-1][0] * draft.grids[-1][1])
        draft.add("vision_end")

    def add_audio(self, draft: Draft, wave: Float[Tensor, " samples"]) -> None:
        extractor: Any = self.mel_extractor
        if len(wave) < extractor.n_fft:
            raise ValueError(f"{len(wave)} samples at 16 kHz are too short, must be {extractor.n_fft} or more")
        features = extractor(wave.numpy(), sampling_rate=SAMPLE_RATE, padding=False, truncation=False, return_tensors="pt")
        mel = features["input_features"][0]
        draft.mels.append(mel)
        draft.add("audio_start")
        size = mel.shape[1], self.config.mel_window, self.config.mel_halvings
        draft.add("audio", audio_tokens(*size))
        draft.heard += window_tokens(*size)
        draft.add("audio_end")

    def finish(self, draft: Draft) -> Encoded:
        """The rest of the template, then token ids and positions."""
        draft.add("im_end")
        draft.write("\n")
        draft.add("im_start")
        draft.write("assistant\n")
        if self.config.ends:
            draft.add("end")
        ids: list[int] = []
        runs: list[Run] = []
        grids, prefix = iter(draft.grids), 0
        for number, piece in enumerate(draft.text):
            if number == draft.opening:
                prefix = len(ids)
            if isinstance(piece, str):
                # Special tokens in a user's text are text: they must not become placeholders.
                words = self.tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
                ids += words
                runs.append(len(words))
            else:
                token, count = piece
                ids += [self.ids[token]] * count
                visual = token in ("image", "video")
                runs.append(next(grids) if visual else count)
        return Encoded(torch.tensor(ids), mrope_positions(runs), draft.pixels, draft.mels, prefix=prefix, heard=draft.heard)
