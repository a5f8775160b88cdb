"""Videos that are given as their frames."""

import pytest
import torch

from lightning_conan.items import Frames, Item, Media
from lightning_conan.media import Limits, MediaError, decode_image, decode_media
from lightning_conan.media.frame_files import GUESSED_FPS
from samples import png


@pytest.fixture
def video(tmp_path):
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for number, file in enumerate(files):
        file.write_bytes(png(48, 32, number))
    return Frames("video", tmp_path, "clip", files=tuple(files))


def test_frames_are_those_images_in_order(video):
    clip = decode_media(video)
    assert torch.equal(clip.frames, torch.stack([decode_image(Media("image", file, "x")) for file in video.files]))
    assert clip.seconds == [0.0, 1 / GUESSED_FPS, 2 / GUESSED_FPS]
    assert decode_media(video, frame_size=lambda count, height, width: (height // count, width)).frames.shape == (3, 3, 16, 32)


def test_an_item_tells_frames_apart_by_content_and_number(video):
    def content(*files):
        return Item((Frames("video", video.source, "clip", files=files),)).content_hash()

    first, second, third = video.files
    third.write_bytes(first.read_bytes())
    assert content(first, second) == content(third, second) != content(second, first)
    assert len({content(first), content(first, third), content(first, third, first)}) == 3


def test_the_model_sees_each_frame(video, tiny):
    model, processor = tiny
    with torch.no_grad():
        found = model.embed([processor(Item((Frames("video", video.source, "x", files=video.files[:n]),))) for n in (1, 2, 3)])
    assert (found @ found.T).triu(1).max() < 1 - 1e-6


def test_what_is_no_video_is_refused(video):
    video.files[1].write_bytes(png(32, 32))
    with pytest.raises(MediaError, match=r"'clip': frames of several sizes, must be of one, got \[\(32, 32\), \(48, 32\)\]"):
        decode_media(video)
    with pytest.raises(MediaError, match="0 frames, must be 1 to"):
        decode_media(Frames("video", video.source, "clip"))
    with pytest.raises(MediaError, match="3 frames, must be 1 to 2"):
        decode_media(video, limits=Limits(max_frames=2))
    video.files[0].write_bytes(b"no picture")
    with pytest.raises(MediaError, match=r"'clip/0\.png': cannot be decoded"):
        decode_media(video)
