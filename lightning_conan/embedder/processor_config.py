"""Settings of a checkpoint folder's processor."""

from dataclasses import asdict, dataclass, field
from dataclasses import fields as fields_of
from typing import Any

from lightning_conan.embedder.backbones import backbone_of
from lightning_conan.embedder.backbones.registry import DEFAULT
from lightning_conan.media import Limits
from lightning_conan.media.sampling import Sampling

LATER = {"reducing_gap", "family"}
"""Fields that older folders lack: their defaults are what was done before."""


@dataclass(frozen=True)
class ProcessorConfig:
    """Settings of the encoding; saved in the checkpoint folder, so that serving equals training.

    Args:
        instruction: System instruction of items without their own; an empty one makes no system turn.
        query_hint: Appended to the instruction of queries.
        target_hint: Appended to the instruction of targets.
        ends: True to end the template with an end token, whose hidden state is the embedding; False to end it where the model
            would begin to generate: the embedding is the hidden state that predicts ``<|emb|>`` (TRACE, arXiv 2603.02929).
        reasons: True if the model may reason about a query before it is embedded.
        patch_size: Side of a patch, in pixels.
        merge_size: Patches a side that merge into one token.
        min_pixels: Smaller images are enlarged to this many pixels.
        max_pixels: Larger images are shrunk to this many pixels.
        video_min_pixels: As ``min_pixels``, over all frames of a video.
        video_max_pixels: As ``max_pixels``, over all frames of a video.
        frame_max_tokens: Cap on a frame's tokens, so that a short clip does not spend the whole budget on a few frames
            (``cap_pixels_per_frame`` of the published processors); null for none.
        wrap_videos: True to put whole videos between vision tokens, besides each pair of frames, as transformers since 5.10 and
            vLLM do; False for their earlier template.
        sampling: Choice of a video's frames.
        mel_bins: Frequency bins of the log-mel spectrogram.
        mel_window: Mel frames of the audio encoder's window (100 for Qwen3-Omni's, 3000 for Whisper's).
        mel_halvings: Number of the audio encoder's convolutions of stride 2 (3 and 1).
        limits: Caps on media files.
        reducing_gap: Decodes JPEGs (images and pages) that will be shrunk at 1/2, 1/4 or 1/8 of their size if that is still this
            many times the target: 2 takes 0.8 of the time for a photo of 7 megapixels shrunk to 512 x 512, and moves pixels by
            0.2 of 255 in the mean. null decodes them whole, as the published processors do.
        family: ``model_type`` of the backbone, whose processor this one follows; taken from the model when a base is made.
    """

    instruction: str = "Represent the user's input."
    query_hint: str = ""
    target_hint: str = ""
    ends: bool = True
    reasons: bool = False
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
    family: str = DEFAULT

    def __post_init__(self) -> None:
        if self.reducing_gap is not None and not self.reducing_gap >= 1:
            raise ValueError(f"reducing_gap must be 1 or more, or null, got {self.reducing_gap}.")
        if self.ends and self.reasons:
            raise ValueError("A model that reasons must end where it begins to write, got ends=true and reasons=true.")

    @property
    def tells_sides(self) -> bool:
        """True if queries are encoded differently from targets."""
        return self.reasons or self.query_hint != self.target_hint

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """Size that an image is resized to, as the family's image processor chooses it.

        Args:
            height: In pixels.
            width: In pixels.
        """
        return backbone_of(self.family).image_size(self, height, width)

    def frame_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Size that frames are resized to, as the family's video processor chooses it.

        Args:
            frames: Their number.
            height: In pixels.
            width: In pixels.
        """
        return backbone_of(self.family).frame_size(self, frames, height, width)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ProcessorConfig":
        """The inverse of ``to_dict``.

        Raises:
            ValueError: Fields that are missing or unknown: defaults of another version would change what is read.
        """
        check_fields(cls, fields, "omni_processor.json")
        check_fields(Sampling, fields["sampling"], "sampling in omni_processor.json")
        check_fields(Limits, fields["limits"], "limits in omni_processor.json")
        return cls(**{**fields, "sampling": Sampling(**fields["sampling"]), "limits": Limits(**fields["limits"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def check_fields(kind: type[Any], found: Any, what: str) -> None:
    """Refuses settings of another version, whose defaults may differ.

    Args:
        kind: The dataclass that the settings make.
        found: The settings as read.
        what: Name of the settings, for the error.

    Raises:
        ValueError: Fields that are missing or unknown.
    """
    odd = ({field.name for field in fields_of(kind)} ^ set(found)) - LATER if isinstance(found, dict) else {repr(found)[:80]}
    if odd:
        raise ValueError(
            f"{what} must have exactly the fields of this version, but {sorted(odd)} differ. Upgrade lightning-conan if a later "
            "version wrote the folder, or write the folder again."
        )
