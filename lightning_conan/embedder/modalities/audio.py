"""Audio: log-mel spectrograms, an encoder of their own (Qwen3-Omni's or Whisper's) and a projector."""

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from lightning_conan.embedder.modalities.spec import ModalitySpec
from lightning_conan.embedder.modalities.tower import EncoderTower, Inputs
from lightning_conan.items import Media

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lightning_conan.embedder.config import OmniConfig
    from lightning_conan.embedder.packing import Encoded


class AudioTower(EncoderTower):
    """The audio encoder and projector, which every model has: their settings are fields of ``OmniConfig`` itself."""

    def __init__(self) -> None:
        super().__init__("audio", ("Qwen3OmniMoeAudioEncoderLayer", "WhisperEncoderLayer"))
        self.entry = ""

    @override
    def build(self, config: "OmniConfig") -> "dict[str, nn.Module]":
        import torch

        from lightning_conan.embedder.attention import use_grouped_attention
        from lightning_conan.embedder.audio import audio_encoder_of
        from lightning_conan.embedder.projector import Projector

        kind = audio_encoder_of(config.audio_config)
        options = {"dtype": torch.get_default_dtype()}
        encoder = kind.encoder_class._from_config(copy.deepcopy(config.audio_config), **options)
        width = kind.width(config.audio_config)
        if config.native_projector:
            kind.take_out_projection(encoder)
            width = kind.bare_width(config.audio_config)
        projector = Projector(width, config.projector_hidden_size, config.dim)
        if kind.grouped:
            use_grouped_attention(encoder)
        return {"audio_encoder": encoder, "audio_projector": projector}

    @override
    def token_ids(self, config: "OmniConfig") -> Mapping[str, int]:
        return {"audio": int(config.audio_token_id)}

    @override
    def encode(self, encoder: Any, inputs: Inputs) -> "Tensor":
        """Encodes audio clips.

        Args:
            encoder: The audio encoder.
            inputs: Log-mel of each clip, (bins, mel frames).
        """
        from lightning_conan.embedder.audio import audio_encoder_of

        return audio_encoder_of(encoder.config).encode(encoder, inputs)

    @override
    def depth(self, config: "OmniConfig") -> int:
        return int(config.audio_config.encoder_layers)

    @override
    def width(self, config: "OmniConfig") -> int:
        return int(config.audio_config.d_model)

    @override
    def shrink(self, config: "OmniConfig", depth: int, ids: Iterator[int]) -> None:
        config.audio_config.encoder_layers = depth
        config.audio_token_id = next(ids)


class Audio(ModalitySpec):
    """Audio clips at 16 kHz, mono."""

    name = "audio"
    suffixes: tuple[str, ...] = ("wav", "flac", "mp3", "ogg", "opus", "m4a")
    timed = True
    tokens: Mapping[str, str] = {
        "audio_start": "<|audio_start|>",
        "audio_end": "<|audio_end|>",
        "audio_pad": "<|audio_pad|>",
        "audio": "<|AUDIO|>",
    }
    placeholder = "audio"
    tower = AudioTower()
    alpha = 0.5
    form = "An audio clip must be a path, an array of samples, {'array': samples, 'sampling_rate': rate}, or torchcodec's decoder"
    golden_name = "audio.flac"

    @override
    def decode(self, media: Media, how: Any) -> "Tensor":
        from lightning_conan.media.audio import decode_audio

        return decode_audio(media, how.limits)

    @override
    def takes(self, decoded: Any) -> bool:
        return getattr(decoded, "ndim", 0) == 1

    @override
    def add(self, prompt: Any, decoded: Any, processor: Any) -> None:
        """Appends an audio clip's log-mel; its cost is that of whole encoder windows.

        Args:
            prompt: The prompt under construction; extended in place.
            decoded: Samples at 16 kHz.
            processor: Computes log-mels.

        Raises:
            ValueError: It is shorter than one frame of the log-mel.
        """
        from lightning_conan.embedder.audio import audio_tokens, window_tokens
        from lightning_conan.media.audio import SAMPLE_RATE

        extractor, config = processor.mel_extractor, processor.config
        if len(decoded) < extractor.n_fft:
            raise ValueError(f"{len(decoded)} samples at 16 kHz are too short, must be {extractor.n_fft} or more")
        features = extractor(decoded.numpy(), sampling_rate=SAMPLE_RATE, padding=False, truncation=False, return_tensors="pt")
        mel = features["input_features"][0]
        size = mel.shape[1], config.mel_window, config.mel_halvings
        prompt.attach(self.name, mel, window_tokens(*size))
        prompt.add("audio_start")
        prompt.add("audio", audio_tokens(*size))
        prompt.add("audio_end")

    @override
    def read(self, content: Any, reader: Any) -> "Tensor":
        """Reads samples, or a decoder.

        Args:
            content: The clip.
            reader: The ``ArrayReader``.
        """
        wave: Tensor = reader.wave(self.name, content)
        return wave

    @override
    def dummy(self, config: "OmniConfig", tokens: int) -> "Encoded":
        """Makes silence, and one token behind it.

        Args:
            config: Token ids and sizes of the model.
            tokens: Number of the clip's tokens.
        """
        import torch

        from lightning_conan.embedder.audio import audio_encoder_of, audio_tokens, window_tokens
        from lightning_conan.embedder.packing import Encoded
        from lightning_conan.embedder.positions import mrope_positions

        encoder = audio_encoder_of(config.audio_config)
        frames = tokens * 2**encoder.halvings
        size = frames, encoder.window(config.audio_config), encoder.halvings
        count = audio_tokens(*size)
        mel = torch.zeros(config.audio_config.num_mel_bins, frames)
        ids = torch.tensor([config.audio_token_id] * count + [0])
        positions = mrope_positions([count + 1])
        return Encoded(ids, positions, {self.name: [mel]}, costs={self.name: window_tokens(*size)})

    @override
    def draw_golden(self) -> bytes:
        import torch

        from lightning_conan.media import encode_audio

        return encode_audio(0.4 * torch.sin(torch.arange(20_000) * (0.05 + torch.arange(20_000) * 4e-6)))
