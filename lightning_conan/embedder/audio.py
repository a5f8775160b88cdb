"""Audio encoders: which ones can be named, and how each turns log-mels of any length into frames.

Every encoder sees windows that are padded to its full window: what it makes of a sound never depends on the sounds
beside it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder

Mels = Sequence[Float[Tensor, "mels _"]]


class AudioEncoder(ABC):
    """What the model must know of a kind of audio encoder."""

    encoder_class: type[PreTrainedModel]
    halvings: int
    """Convolutions of stride 2 between mel frames and encoder frames."""
    grouped: bool
    """Whether its attention takes all windows in one call, by their bounds."""

    @abstractmethod
    def window(self, config: PreTrainedConfig) -> int:
        """Mel frames of a full window."""

    @abstractmethod
    def width(self, config: PreTrainedConfig) -> int:
        """Length of an encoder frame."""

    @abstractmethod
    def encode(self, encoder: PreTrainedModel, mels: Mels) -> Float[Tensor, "frames width"]:
        """All sounds' frames, one after the other."""


class Qwen3Omni(AudioEncoder):
    """Windows of a second, convolved apart, attended over several (Qwen3-Omni's ``thinker.audio_tower``)."""

    encoder_class = Qwen3OmniMoeAudioEncoder
    halvings = 3
    grouped = True

    def window(self, config: PreTrainedConfig) -> int:
        return 2 * int(config.n_window)

    def width(self, config: PreTrainedConfig) -> int:
        return int(config.output_dim)

    def encode(self, encoder: PreTrainedModel, mels: Mels) -> Float[Tensor, "frames width"]:
        window = self.window(encoder.config)
        windows = [part for mel in mels for part in mel.split(window, dim=1)]
        lengths = [part.shape[1] for part in windows]
        padded = torch.stack([F.pad(part, (0, window - part.shape[1])) for part in windows])
        # The encoder would count a window's places by the longest one that it sees: ours are all full.
        full = halve(window, self.halvings)
        places = [index * full + torch.arange(halve(length, self.halvings)) for index, length in enumerate(lengths)]
        output: Any = encoder(
            None,
            feature_lens=torch.tensor([mel.shape[1] for mel in mels], device=padded.device),
            padded_feature=padded.to(encoder.dtype),
            chunk_lengths=torch.tensor(lengths, device=padded.device),
            valid_indices=torch.cat(places).to(padded.device),
        )
        frames: Tensor = output.last_hidden_state
        return frames


class Whisper(AudioEncoder):
    """Windows of thirty seconds, filled up with silence as Whisper's own pipeline does."""

    encoder_class = WhisperEncoder
    halvings = 1
    grouped = False

    def window(self, config: PreTrainedConfig) -> int:
        return 2 * int(config.max_source_positions)

    def width(self, config: PreTrainedConfig) -> int:
        return int(config.d_model)

    def encode(self, encoder: PreTrainedModel, mels: Mels) -> Float[Tensor, "frames width"]:
        window = self.window(encoder.config)
        windows = [part for mel in mels for part in mel.split(window, dim=1)]
        # Silence is the floor of the log-mel: 8 below its maximum before scaling, so 2 after, and never below -1.5.
        padded = [F.pad(part, (0, window - part.shape[1]), value=max(-1.5, float(part.max()) - 2)) for part in windows]
        output: Any = encoder(torch.stack(padded).to(encoder.dtype))
        states: Tensor = output.last_hidden_state
        kept = [row[: halve(part.shape[1], self.halvings)] for row, part in zip(states, windows, strict=True)]
        return torch.cat(kept)


ENCODERS: dict[str, AudioEncoder] = {"qwen3_omni_moe_audio_encoder": Qwen3Omni(), "whisper": Whisper()}
"""By the ``model_type`` of the audio encoder's config."""


def audio_encoder_of(config: PreTrainedConfig) -> AudioEncoder:
    """The kind of encoder that a config describes.

    Raises:
        ValueError: A kind that is not among ``ENCODERS``.
    """
    if config.model_type not in ENCODERS:
        raise ValueError(f"The audio encoder must be one of {sorted(ENCODERS)}, got {config.model_type!r}.")
    return ENCODERS[config.model_type]


def audio_tokens(frames: int, window: int, halvings: int) -> int:
    """Encoder frames that a log-mel of so many frames becomes: halved within each window, rounded up."""
    whole, rest = divmod(frames, window)
    return whole * halve(window, halvings) + halve(rest, halvings)


def window_tokens(frames: int, window: int, halvings: int) -> int:
    """Encoder frames that the same log-mel costs: as many as if it filled its last window, which is padded."""
    return -(-frames // window) * halve(window, halvings)


def halve(frames: int, times: int) -> int:
    """Length after so many convolutions of stride 2."""
    for _ in range(times):
        frames = (frames + 1) // 2
    return frames
