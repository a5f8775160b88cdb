"""FFmpeg's own program: makes media, and says what is in them."""

import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

PROGRAM = imageio_ffmpeg.get_ffmpeg_exe()


def ffmpeg(*arguments, given: bytes = b"") -> subprocess.CompletedProcess:
    """Runs the program without threads."""
    command = [PROGRAM, "-hide_banner", "-nostdin", "-y", "-threads", "1", "-filter_threads", "1", *map(str, arguments)]
    if given:
        command.remove("-nostdin")
    found = subprocess.run(command, input=given, capture_output=True)
    assert found.returncode == 0, found.stderr.decode(errors="replace")[-2000:]
    return found


def pictures(path: Path, *before, after=()) -> tuple[list[float], np.ndarray]:
    """A file's frames as the program decodes them, and the second of the file at which it shows each.

    Args:
        before: Options before the file, as ``-ss``.
        after: Options behind it, as ``-map``.
    """
    report = ffmpeg(*before, "-i", path, *after, "-an", "-sn", "-vf", "showinfo", "-fps_mode", "passthrough",
                    "-pix_fmt", "rgb24", "-f", "rawvideo", "-")  # fmt: skip
    text = report.stderr.decode(errors="replace")
    seconds = [float(found) for found in re.findall(r" n: *\d+ pts: *\S+ pts_time:(\S+)", text)]
    width, height = map(int, re.findall(r"rawvideo[^\n]*?, (\d+)x(\d+)[ ,]", text)[-1])
    pixels = np.frombuffer(report.stdout, np.uint8).reshape(-1, height, width, 3)
    assert len(seconds) == len(pixels)
    return seconds, pixels


def sound(path: Path, *before, filters: str = "anull", rate: int = 16_000) -> np.ndarray:
    """A file's samples as the program decodes them: mono."""
    report = ffmpeg(*before, "-i", path, "-vn", "-af", filters, "-ac", "1", "-ar", rate, "-f", "f32le", "-")
    return np.frombuffer(report.stdout, np.float32)
