"""Audio encoders: those that a config can name, and how each turns log-mels of any length into frames.

Every encoder sees windows that are padded to its full window: the frames of an audio clip never depend on its neighbours.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder

Mels = Sequence[Float[Tensor, "mels _"]]


class AudioEncoder(ABC):
    """Interface of an audio encoder class."""

    encoder_class: type[PreTrainedModel]
    halvings: int
    """Convolutions of stride 2 between mel frames and encoder frames."""
    grouped: bool
    """True if its attention takes all windows in one call, by their bounds."""
    projection: tuple[str, str] | None = None
    """Names of its last two linear layers, if its checkpoints were trained with a language model behind them."""

    @abstractmethod
    def window(self, config: PreTrainedConfig) -> int:
        """Mel frames of a full window."""

    @abstractmethod
    def width(self, config: PreTrainedConfig) -> int:
        """Length of an encoder frame."""

    def bare_width(self, config: PreTrainedConfig) -> int:
        """Length of a frame before the encoder's own projection."""
        return int(config.d_model)

    def take_out_projection(self, encoder: PreTrainedModel) -> None:
        """Makes an encoder return its frames before its own projection, which the model has as ``audio_projector``.

        Args:
            encoder: The encoder; changed in place.
        """
        assert self.projection is not None, "an encoder without a projection of its own"
        for name in (*self.projection, "act"):
            setattr(encoder, name, nn.Identity())

    def check_projection(self, config: PreTrainedConfig, dim: int) -> None:
        """Refuses an encoder whose own projection is not the projector that the model would make of it.

        Args:
            config: The encoder's config.
            dim: Length of a token embedding.

        Raises:
            ValueError: It has none, another activation, or another length.
        """
        found = (self.projection is not None, config.activation_function, self.width(config))
        if found != (True, "gelu", dim):
            raise ValueError(
                f"An audio encoder with a projection of its own must have one with gelu to {dim}, got {found[1:]}: its vectors "
                "would differ. Name an --audio checkpoint, for a fresh projector."
            )

    @abstractmethod
    def encode(self, encoder: PreTrainedModel, mels: Mels) -> Float[Tensor, "frames width"]:
        """Encodes audio clips, and returns their frames, one clip after the other.

        Args:
            encoder: The encoder model.
            mels: Log-mel of each clip, (bins, mel frames), at 100 mel frames a second.
        """


class Qwen3Omni(AudioEncoder):
    """Windows of a second, convolved separately; attention spans several (Qwen3-Omni's ``thinker.audio_tower``)."""

    encoder_class = Qwen3OmniMoeAudioEncoder
    halvings = 3
    grouped = True
    projection = ("proj1", "proj2")

    def window(self, config: PreTrainedConfig) -> int:
        return 2 * int(config.n_window)

    def width(self, config: PreTrainedConfig) -> int:
        return int(config.output_dim)

    def encode(self, encoder: PreTrainedModel, mels: Mels) -> Float[Tensor, "frames width"]:
        """Encodes audio clips, and returns their frames, 13 for each full second.

        Args:
            encoder: The encoder model.
            mels: Log-mel of each clip, (bins, mel frames).
        """
        window, device = self.window(encoder.config), mels[0].device
        padded = torch.cat([windows_of(mel, window) for mel in mels])
        # What the encoder would find out by itself, asking a GPU for each sound's length, and counting a window's places by the
        # longest one that it sees: ours are all full.
        full = halve(window, self.halvings)
        span = full * (encoder.config.n_window_infer // window)
        tokens = [audio_tokens(mel.shape[1], window, self.halvings) for mel in mels]
        filled = [min(full, count - first) for count in tokens for first in range(0, count, full)]
        attended = [min(span, count - first) for count in tokens for first in range(0, count, span)]
        kept = torch.arange(full) < torch.tensor(filled)[:, None]
        output: Any = encoder(
            None,
            padded_feature=padded.to(encoder.dtype),
            chunk_lengths=torch.tensor(filled),
            valid_indices=kept.flatten().nonzero()[:, 0].to(device),
            cu_seqlens=torch.tensor([0, *accumulate(attended)], dtype=torch.int32, device=device),
            max_seqlen=max(attended),
        )
        frames: Tensor = output.last_hidden_state
        return frames


class Whisper(AudioEncoder):
    """Windows of thirty seconds, padded with silence as in Whisper's own pipeline."""

    encoder_class = WhisperEncoder
    halvings = 1
    grouped = False

    def window(self, config: PreTrainedConfig) -> int:
        return 2 * int(config.max_source_positions)

    def width(self, config: PreTrainedConfig) -> int:
        return int(config.d_model)

    def encode(self, encoder: PreTrainedModel, mels: Mels) -> Float[Tensor, "frames width"]:
        """Encodes audio clips, and returns their frames, 50 a second.

        Args:
            encoder: The encoder model.
            mels: Log-mel of each clip, (bins, mel frames).
        """
        window = self.window(encoder.config)
        padded = torch.cat([windows_of(mel, window, -torch.inf) for mel in mels])
        # Silence is the floor of the log-mel: 8 below its maximum before scaling, so 2 after, and never below -1.5.
        silence = (padded.amax(dim=(1, 2), keepdim=True) - 2).clamp(min=-1.5)
        output: Any = encoder(torch.where(padded.isinf(), silence, padded).to(encoder.dtype))
        states: Tensor = output.last_hidden_state
        lengths = [min(window, mel.shape[1] - first) for mel in mels for first in range(0, mel.shape[1], window)]
        return torch.cat([row[: halve(length, self.halvings)] for row, length in zip(states, lengths, strict=True)])


ENCODERS: dict[str, AudioEncoder] = {"qwen3_omni_moe_audio_encoder": Qwen3Omni(), "whisper": Whisper()}
"""By the ``model_type`` of the audio encoder's config."""


def audio_encoder_of(config: PreTrainedConfig) -> AudioEncoder:
    """Class of the encoder that a config describes.

    Raises:
        ValueError: A kind that is not among ``ENCODERS``.
    """
    if config.model_type not in ENCODERS:
        raise ValueError(f"The audio encoder must be one of {sorted(ENCODERS)}, got {config.model_type!r}.")
    return ENCODERS[config.model_type]


def windows_of(mel: Float[Tensor, "mels _"], window: int, value: float = 0.0) -> Float[Tensor, "windows mels {window}"]:
    """Cuts the log-mel of a clip into windows.

    Args:
        mel: (bins, mel frames).
        window: Mel frames of a window.
        value: Padding of the last window.
    """
    windows: Tensor = F.pad(mel, (0, -mel.shape[1] % window), value=value).unflatten(1, (-1, window))  # type: ignore[no-untyped-call]
    return windows.transpose(0, 1)


def audio_tokens(frames: int, window: int, halvings: int) -> int:
    """Number of encoder frames of a log-mel: halved within each window, rounded up.

    Args:
        frames: Mel frames.
        window: Mel frames of the encoder's window.
        halvings: Number of the encoder's convolutions of stride 2.
    """
    whole, rest = divmod(frames, window)
    return whole * halve(window, halvings) + halve(rest, halvings)


def window_tokens(frames: int, window: int, halvings: int) -> int:
    """Number of encoder frames after padding the log-mel to whole windows, which is what the encoder computes.

    Args:
        frames: Mel frames.
        window: Mel frames of the encoder's window.
        halvings: Number of the encoder's convolutions of stride 2.
    """
    return -(-frames // window) * halve(window, halvings)


def halve(frames: int, times: int) -> int:
    """Length after some convolutions of stride 2, each rounding up.

    Args:
        frames: Length before.
        times: Number of convolutions.
    """
    for _ in range(times):
        frames = (frames + 1) // 2
    return frames
