"""Caps on requests, which are checked before anything is decoded."""

from dataclasses import dataclass, replace

from lightning_conan.media import Limits


@dataclass(frozen=True)
class RequestLimits:
    """Caps on a request, and on all requests together.

    Args:
        max_requests: Requests that are answered at once; further ones get status 429.
        max_body_mb: Megabytes of a request's body.
        max_held_mb: Megabytes of the bodies of all requests at once; further ones get status 429.
        max_waiting_tokens: Tokens that wait for the model; further requests get status 429.
        max_inputs: Inputs of a request.
        max_media: Images, pages, videos and audio clips of one input.
        max_characters: Characters of one input's texts.
        max_tokens: Tokens of one input, media included; by default the server's token budget.
        max_pixels: Pixels of an image, a page or a frame.
        max_seconds: Length of an audio clip or a video.
        max_frames: Frames of a video.
        max_hits: Entries that a search may ask for.
        body_seconds: Time that a request's body may take to arrive, and its headers before that.
        decode_seconds: Time that one input's media may take to decode.
        request_seconds: Time that a request may take in all.
    """

    max_requests: int = 256
    max_body_mb: int = 32
    max_held_mb: int = 512
    max_waiting_tokens: int = 1_000_000
    max_inputs: int = 2048
    max_media: int = 64
    max_characters: int = 400_000
    max_tokens: int | None = None
    max_pixels: int = 32 * 10**6
    max_seconds: float = 600.0
    max_frames: int = 20_000
    max_hits: int = 1000
    body_seconds: float = 20.0
    decode_seconds: float = 20.0
    request_seconds: float = 60.0

    def __post_init__(self) -> None:
        if odd := {name: value for name, value in vars(self).items() if value is not None and value <= 0}:
            raise ValueError(f"Limits of requests must be positive, got {odd}. Leave out what should have its default.")

    @property
    def max_body(self) -> int:
        """Bytes of a request's body."""
        return self.max_body_mb * 10**6

    @property
    def max_held(self) -> int:
        """Bytes of all bodies."""
        return self.max_held_mb * 10**6

    def media(self, folder: Limits) -> Limits:
        """Caps on a media file: the smaller ones of these and the checkpoint folder's."""
        return replace(
            folder,
            max_bytes=min(folder.max_bytes, self.max_body),
            max_pixels=min(folder.max_pixels, self.max_pixels),
            max_seconds=min(folder.max_seconds, self.max_seconds),
            max_frames=min(folder.max_frames, self.max_frames),
        )
