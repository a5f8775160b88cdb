"""Audio files: WAV, FLAC, MP3, OGG (or the sound track of a video) to a 16 kHz mono waveform."""

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from math import gcd
from typing import Any

import av
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchaudio.transforms import Resample

from lightning_conan.items import Media
from lightning_conan.media.clock import SampleClock
from lightning_conan.media.container import open_source
from lightning_conan.media.limits import DEFAULT, Limits, MediaError
from lightning_conan.media.truncation import announced_samples, check_whole, count_header

SAMPLE_RATE = 16_000
OPUS_RATE = 32_000
"""Bits a second: an eighth of a WAV at 16 kHz."""
BLOCK = 65_536
"""Samples that leave FFmpeg's buffer at once: frames hold a thousand, and each takes 25 us to become an array."""
ODDEST = 2000
"""A rate whose ratio to 16 kHz has larger terms (44,101 Hz) would take gigabytes for the filter; 44,100 Hz has 441."""
AT_ONCE = 2**20
"""Samples that are resampled together: 22 s at 48 kHz."""


def decode_audio(media: Media, limits: Limits = DEFAULT) -> Float[Tensor, " samples"]:
    """Decodes an audio file to a waveform at 16 kHz: channels averaged, any sample rate resampled.

    Args:
        media: An audio file, or a video whose sound track is taken; ``start`` and ``end`` choose a part, in seconds.
        limits: Caps on bytes and seconds.

    Raises:
        MediaError: No audio track, undecodable, empty, not finite, or over a limit.
    """
    data = limits.read(media)
    check_whole(media, data)
    header = count_header(data)
    del data  # the container holds its own
    with open_source(media, "audio", limits) as source:
        container, stream = source.container, source.stream
        rate = int(stream.rate or 0)
        if rate <= 0:
            raise MediaError(media, f"sample rate {rate}, must be positive")
        if rate // gcd(rate, SAMPLE_RATE) > ODDEST:
            raise MediaError(media, f"sample rate {rate} Hz shares too little with {SAMPLE_RATE}, write it at a usual rate")
        stop = int(min(limits.max_seconds, media.end or limits.max_seconds) * rate) + 1
        first, last = int(media.start * rate), stop if media.end is None else int(media.end * rate)
        clock = SampleClock(rate, source.beginning, source.discontinuous) if media.span else None
        reached = 0

        def wanted() -> Iterator[Tensor]:  # annotated anew in each call: shapes would take 40 us
            nonlocal reached
            due = first
            for place, block in collect(media, container, stream, stop, clock):
                reached = place + len(block)
                part = block[max(0, due - place) : max(0, last - place)]
                if not bool(part.isfinite().all()):
                    raise MediaError(media, "holds samples that are not finite")
                if len(part):
                    yield from torch.zeros(1).expand(max(0, place - due)).split(BLOCK)  # the track is silent until here
                    due = max(due, place) + len(part)
                yield part

        wave = resampled(wanted(), rate)
        announced = announced_samples(header, stream) or 0
    if reached < min(announced, stop):
        raise MediaError(media, f"is cut: its header says {announced} samples, {reached} are there")
    limits.check_seconds(media, reached / rate)
    if not len(wave):
        raise MediaError(media, "holds no samples")
    return wave


@lru_cache(8)
def resampler(rate: int) -> Resample:
    """Makes the resampler from a rate to 16 kHz, and keeps it: its filter takes as long as resampling 4 s of audio."""
    return Resample(rate, SAMPLE_RATE)


def resampled(blocks: Iterable[Float[Tensor, " samples"]], rate: int, at_once: int = AT_ONCE) -> Float[Tensor, " samples"]:
    """Resamples a waveform in blocks to 16 kHz: equal to torchaudio's result for the whole, without holding it at its own rate.

    Args:
        blocks: Consecutive samples, in blocks of any length.
        rate: Their sample rate, in Hz.
        at_once: Samples that are resampled together; more take more memory.
    """
    if rate == SAMPLE_RATE:
        return torch.cat([torch.zeros(0), *blocks])
    convert = resampler(rate)
    step, made = rate // gcd(rate, SAMPLE_RATE), SAMPLE_RATE // gcd(rate, SAMPLE_RATE)  # samples in and out of a period
    margin = (-(-int(convert.width) // step) + 1) * step  # what the filter sees on both sides
    found, held, count, before = [torch.zeros(0)], list[Tensor](), 0, 0
    for block in blocks:
        held, count = [*held, block], count + len(block)
        ready = (count - before - margin) // step * step
        if ready >= at_once:
            wave = torch.cat(held)
            found.append(convert(wave[: before + ready + margin])[before // step * made : (before + ready) // step * made])
            rest = wave[max(0, before + ready - margin) :].clone()
            held, count, before = [rest], len(rest), before + ready - (count - len(rest))
    if count > before:
        found.append(convert(torch.cat(held))[before // step * made :])
    return torch.cat(found)


def collect(
    media: Media, container: Any, stream: Any, stop: int, clock: SampleClock | None = None
) -> Iterator[tuple[int, Float[Tensor, " samples"]]]:
    """Decodes up to ``stop`` samples, some at a time, and averages the channels.

    Args:
        media: Named in errors.
        container: The open file.
        stream: Its audio track.
        stop: Samples at the file's own rate to read at most.
        clock: Places samples by the times in the file; without one they follow each other, whatever these times are.

    Returns:
        Number of each block's first sample, and the block.

    Raises:
        MediaError: Samples' format, channels or rate change within the file.
    """
    fifo, samples, first = av.AudioFifo(), 0, None
    for frame in container.decode(stream):
        kind = frame.format.name, frame.layout.nb_channels, frame.sample_rate
        first = first or kind
        if kind != first:  # the buffer would read channels that are not there
            raise MediaError(media, f"changes from {first} to {kind} after {samples} samples")
        place = samples if clock is None else clock.place(frame.time, samples)
        if place != samples and fifo.samples:
            yield samples - fifo.samples, drained(fifo)
        frame.pts = None  # the buffer would fill gaps in its own way
        fifo.write(frame)
        samples = place + frame.samples
        if samples >= stop:
            break
        if fifo.samples >= BLOCK:
            yield samples - fifo.samples, drained(fifo)
    if left := fifo.samples:
        yield samples - left, drained(fifo)[: max(0, left - max(0, samples - stop))]


def drained(fifo: av.AudioFifo) -> Float[Tensor, " samples"]:
    """All samples that a buffer holds, channels averaged: eight of them for an hour would be gigabytes."""
    frame: Any = fifo.read()
    block: np.ndarray = frame.to_ndarray()
    coded = torch.from_numpy(block if frame.format.is_planar else block.reshape(-1, frame.layout.nb_channels).T)
    wave = coded.float()
    if coded.dtype == torch.uint8:
        wave = wave.div_(128).sub_(1)
    elif not coded.is_floating_point():
        wave = wave.div_(-float(torch.iinfo(coded.dtype).min))
    return wave.mean(dim=0)


def encode_audio(wave: Float[Tensor, " samples"], rate: int = SAMPLE_RATE, format: str = "flac") -> bytes:
    """Encodes a waveform as a mono file.

    Args:
        wave: Samples in [-1, 1]; those beyond are clipped.
        rate: Sample rate, in Hz.
        format: ``flac``, ``wav`` (both 16 bits), or ``opus`` (lossy, 32 kbit/s).
    """
    buffer = io.BytesIO()
    samples = (wave * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy()[None]  # what was 16 bits stays as it was
    codec = {"flac": "flac", "wav": "pcm_s16le", "opus": "libopus"}[format]
    exact = {"fflags": "+bitexact"}  # Ogg would draw a number at random, and the same sound give other bytes each time
    with av.open(buffer, "w", format="ogg" if format == "opus" else format, options=exact) as container:
        stream: Any = container.add_stream(codec, rate=rate, layout="mono")
        if format == "opus":
            stream.bit_rate = OPUS_RATE
        size = stream.codec_context.frame_size or 4096
        for start in range(0, samples.shape[1], size):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples[:, start : start + size]), format="s16", layout="mono"
            )
            frame.rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
