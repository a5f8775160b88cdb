"""Encodes an Item: decoding, resizing, log-mel, the chat template and its placeholders."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, WhisperFeatureExtractor

from lightning_conan.embedder.backbones import BackboneSpec, backbone_of
from lightning_conan.embedder.backbones.registry import DEFAULT
from lightning_conan.embedder.modalities.registry import BUILT_IN, EMB, TEMPLATE, known_specs
from lightning_conan.embedder.modalities.spec import ModalitySpec
from lightning_conan.embedder.packing import IGNORED, Encoded
from lightning_conan.embedder.positions import Run, mrope_positions
from lightning_conan.embedder.processor_config import ProcessorConfig
from lightning_conan.embedder.prompt import PromptBuilder
from lightning_conan.items import MEDIA, Item, Media, Modality, Side, check_text
from lightning_conan.media import MediaError, decode_media
from lightning_conan.media.audio import SAMPLE_RATE
from lightning_conan.media.image import Shrink

Decoded = Any
"""A decoded medium that a known modality ``takes``: pixels of an image or page (3 axes), a waveform at 16 kHz (1 axis), a video's
sampled frames (``Clip``)."""
Turn = tuple[str, Sequence[str | Decoded]]
"""A turn of a chat: its role, and its text and decoded media in order."""

SPECIAL_TOKENS = {
    **TEMPLATE,
    **{name: token for spec in BUILT_IN for name, token in spec.tokens.items()},
    **EMB,
}
OWN_TOKENS = [*(token for spec in BUILT_IN if spec.owned for token in spec.tokens.values()), SPECIAL_TOKENS["emb"]]
"""Those that a published backbone lacks, if its family has no audio."""


def tokens_of(family: BackboneSpec) -> dict[str, str]:
    """Special tokens by name, as a family writes them."""
    return {**SPECIAL_TOKENS, **family.tokens}


def own_tokens(family: BackboneSpec) -> list[str]:
    """Special tokens that the published backbones of a family lack."""
    brought = {SPECIAL_TOKENS[name] for name in family.tokens}
    return [token for token in OWN_TOKENS if token not in brought]


class OmniProcessor:
    """Turns items into tokens, pixels and log-mels.

    Args:
        tokenizer: The backbone's tokenizer; it must know every token of ``tokens_of`` its family.
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
        self.tokenizer, self.config, self.family = tokenizer, config, backbone_of(config.family)
        known, special = tokenizer.get_vocab(), tokens_of(self.family)
        if missing := [token for token in special.values() if token not in known]:
            raise ValueError(f"The tokenizer must know the tokens {missing}. Add them, with their embedding rows.")
        self.ids = {name: int(known[token]) for name, token in special.items()}
        others = [spec for spec in known_specs() if spec.entry and {*spec.tokens.values()} <= known.keys()]
        self.ids |= {name: int(known[token]) for spec in others for name, token in spec.tokens.items()}

    @property
    def modalities(self) -> list[Modality]:
        """Names of the modalities that it can encode: those whose tokens the tokenizer knows."""
        return [spec.name for spec in known_specs() if not spec.entry or spec.placeholder in self.ids]

    @cached_property
    def fingerprint(self) -> str:
        """Equal for processors that encode every input alike."""
        settings = self.config.to_dict()
        if settings["family"] == DEFAULT:
            del settings["family"]  # indexes that were made before there were others stay valid
        made_of = (json.dumps(settings, sort_keys=True), sorted(self.tokenizer.get_vocab().items()))
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
        return decode_media(media, self.family.sampling(config.sampling), config.limits, shrink, self.config.frame_size)

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
        """Appends one decoded medium: its tensors, and its placeholders.

        Args:
            prompt: The prompt under construction; extended in place.
            decoded: Pixels (3, height, width), frames, a waveform (samples,), or what another modality takes.

        Raises:
            ValueError: The medium is too small to encode, or of no modality that this folder's model has.
        """
        spec = kind_of(decoded)
        if spec.placeholder not in self.ids:
            raise ValueError(
                f"The tokenizer must know the tokens of {spec.name}, {sorted(spec.tokens.values())}. This model was not extended "
                "with the modality (embedder.extend_folder): leave such items out."
            )
        spec.add(prompt, decoded, self)

    def finish(self, prompt: PromptBuilder) -> Encoded:
        """Completes the template, and makes token ids and positions."""
        prompt.next_turn("assistant")
        if self.config.ends:
            prompt.add("end")
        ids: list[int] = []
        runs: list[Run] = []
        prefix = 0
        for number, piece in enumerate(prompt.text):
            if number == prompt.opening:
                prefix = len(ids)
            if isinstance(piece, str):
                words = self.tokenize(piece)
                ids += words
                runs.append(len(words))
            else:
                token, count, run = piece
                ids += [self.ids[token]] * count
                runs.append(run)
        return Encoded(torch.tensor(ids), mrope_positions(runs), prompt.media, prefix=prefix, costs=prompt.costs)


def kind_of(decoded: Decoded) -> ModalitySpec:
    """Returns the modality of a decoded medium; a document's page is an image.

    Raises:
        ValueError: No known modality takes it.
    """
    for spec in known_specs():
        if spec.tower is not None and spec.takes(decoded):
            return spec
    raise ValueError(f"A decoded medium must be what one of {MEDIA} decodes to, got {decoded!r:.80}.")
