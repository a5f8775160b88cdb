"""Media that packing writes anew on the way, and that a kill costs no more than a shard."""

import io
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import msgspec
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from datamodules.shards.read import ShardSet
from datamodules.shards.reencode import Reencoding, prepare
from datamodules.shards.write import write_resumable, write_shards
from datamodules.sources.manifest import Fault
from lightning_conan.cli.main import main
from lightning_conan.cli.pack import state_of
from lightning_conan.items import Item, Media, Pair
from lightning_conan.media import decode_media, encode_audio, encode_video
from lightning_conan.media.timeline import timeline
from samples import EVERY_FRAME, flac, mp4, png


def pdf():
    buffer = io.BytesIO()
    pages = [Image.new("RGB", (300, 200), color) for color in ("red", "blue")]
    pages[0].save(buffer, "PDF", save_all=True, append_images=pages[1:])
    return buffer.getvalue()


def pairs(count, media=png):
    return [Pair(f"k{n}", "t", "image", Item((Media("image", media(seed=n), "a.png"),)), Item((f"t{n}",))) for n in range(count)]


def test_large_images_shrink_and_small_ones_keep_their_bytes():
    shrink = Reencoding(image_max_pixels=40 * 56)
    small, large = Media("image", png(40, 56), "s.png"), Media("image", png(400, 560), "l.png")
    assert shrink(small) is small
    made = shrink(large)
    height, width = decode_media(made).shape[-2:]
    assert (height, width) == (40, 56)
    assert made.suffix == "jpeg"
    assert len(made.read()) < len(large.read()) / 10
    assert Reencoding()(large) is large


def test_a_rendered_page_is_what_reading_the_pdf_gives():
    page = Media("document", pdf(), "a.pdf", page=2)
    made = Reencoding(pages=True)(page)
    assert made.suffix == "png"
    assert made.page is None
    assert torch.equal(decode_media(made), decode_media(page))


def test_sounds_keep_the_part_that_is_meant():
    whole = Media("audio", flac(1.0, 44_100, "wav"), "a.wav")
    part = Media("audio", whole.read(), "a.wav", start=0.25, end=0.75)
    exact = decode_media(part)
    lossless, opus = (decode_media(Reencoding(audio=kind)(part)) for kind in ("flac", "opus"))
    torch.testing.assert_close(lossless, exact, atol=1e-4, rtol=0)
    assert abs(len(opus) - len(exact)) <= 160
    both = min(len(opus), len(exact))
    assert torch.nn.functional.cosine_similarity(opus[:both], exact[:both], dim=0) > 0.95
    noise = 0.2 * torch.randn(64_000, generator=torch.Generator().manual_seed(0))
    wave = Media("audio", encode_audio(noise, format="wav"), "n.wav")
    small = Reencoding(audio="opus")(wave).read()
    assert len(small) < len(wave.read()) / 6
    assert Reencoding(audio="opus")(wave).read() == small


def test_videos_get_fewer_frames_and_sides_that_their_codec_holds():
    video = Media("video", mp4(16, 48), "v.mp4", start=1.0, end=3.0)
    made = Reencoding(video_fps=2)(video)
    clip = decode_media(made, EVERY_FRAME)
    assert clip.seconds == [0.0, 0.5, 1.0, 1.5]
    assert clip.frames.shape[-2:] == (48, 48)
    slow = Media("video", mp4(8), "v.mp4")
    assert Reencoding(video_fps=100)(slow) is slow


@pytest.mark.parametrize(("height", "width"), [(17, 24), (16, 25), (19, 27)])
def test_sides_of_an_odd_length_lose_a_row_or_a_column(height, width):
    """The last one: nothing is scaled or moved."""
    ramp = torch.arange(height)[:, None] * 6 + torch.arange(width)[None] * 3
    video = torch.stack([ramp.expand(3, -1, -1).to(torch.uint8)] * 8)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi") as container:
        stream = container.add_stream("ffv1", rate=4)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for pixels in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels.permute(1, 2, 0).numpy(), format="rgb24")))
        container.mux(stream.encode(None))
    clip = decode_media(Reencoding(video_fps=2)(Media("video", buffer.getvalue(), "v.avi")), EVERY_FRAME)
    assert clip.frames.shape[2:] == (height & ~1, width & ~1)
    assert (clip.frames.float() - video[0, :, : height & ~1, : width & ~1].float()).abs().mean() < 4


@pytest.mark.parametrize(("rate", "frames"), [(30, 90), (30, 153), (25, 75), (24, 97), (10, 31)])
@pytest.mark.parametrize("fps", [1, 2, 4])
def test_fewer_frames_keep_their_moments(rate, frames, fps):
    data = encode_video(torch.stack([torch.full((3, 16, 16), number, dtype=torch.uint8) for number in range(frames)]), rate)
    clip = decode_media(Reencoding(video_fps=fps)(Media("video", data, "v.mp4")), EVERY_FRAME)
    shown = [float(frame.float().mean()) / rate for frame in clip.frames]  # seconds of the first video
    assert clip.seconds == pytest.approx([number / fps for number in range(math.ceil(frames / rate * fps))])
    assert shown == pytest.approx(clip.seconds, abs=4.5 / rate)  # grays are lossy, too


@pytest.mark.parametrize("span", [{}, {"start": 5.0, "end": 9.0}, {"start": 0.5, "end": 7.25}])
def test_frames_of_unlike_length_keep_their_moments_too(span):
    """Forty frames in the first four seconds, then one a second, as a screen is recorded."""
    moments = [*(number / 10 for number in range(40)), *range(4, 13)]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for moment in moments:
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), round(20 * moment), np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * moment), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clip = decode_media(Reencoding(video_fps=2)(Media("video", buffer.getvalue(), "v.mp4", **span)), EVERY_FRAME)
    start, end = span.get("start", 0.0), span.get("end", 12.25)
    wanted = [start + number / 2 for number in range(math.ceil((end - start) * 2))]
    assert clip.seconds == pytest.approx([second - start for second in wanted])
    shown = [float(frame.float().mean()) / 20 for frame in clip.frames]
    assert shown == pytest.approx([max(moment for moment in moments if moment <= second + 1e-3) for second in wanted], abs=0.2)


def test_what_cannot_be_decoded_is_listed_whoever_decodes():
    bad = Pair("bad", "t", "image", Item(("q",)), Item((Media("image", png()[:100], "cut.png"),)))
    good = pairs(3)
    for workers in (0, 2):
        found = list(prepare([good[0], bad, Fault("m:3", "", "sample", "x"), *good[1:]], Reencoding(), True, workers))
        assert [entry.key for entry in found] == ["k0", "bad", "", "k1", "k2"]
        assert isinstance(found[1], Fault)
        assert found[1].field == "target"
        assert "cannot be decoded" in found[1].reason
    assert list(prepare([bad], Reencoding())) == [bad]


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"reencode\.image_max_pixels must be positive"):
        Reencoding(image_max_pixels=0)


def manifest(root, count=60, side=120):
    """A manifest of pictures, one of them broken."""
    root.mkdir()
    lines = []
    for number in range(count):
        (root / f"{number}.png").write_bytes(png(side, side, seed=number)[: 100 if number == 7 else None])
        query, target = {"image": f"{number}.png"}, {"text": f"t{number}"}
        lines.append({"key": f"k{number}", "task": "t", "modality": "image", "query": query, "target": target})
    (root / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root / "m.jsonl"


def test_workers_change_nothing(tmp_path):
    source = manifest(tmp_path / "source", 20)
    for workers in ("0", "2"):
        words = ["pack", str(source), "--out", str(tmp_path / workers), "--reencode.image_max_pixels", "900"]
        assert main([*words, "--workers", workers]) == 0
    alone, shared = (ShardSet(tmp_path / workers) for workers in ("0", "2"))
    assert alone.content_hash == shared.content_hash
    assert len(alone) == 19
    assert decode_media(alone.read(0).query.media[0]).shape == (3, 30, 30)
    assert (tmp_path / "0/quarantine.jsonl").read_text() == (tmp_path / "2/quarantine.jsonl").read_text()


def test_a_killed_pack_goes_on_behind_its_last_whole_shard(tmp_path):
    source = manifest(tmp_path / "source")
    words = ["pack", str(source), "--pairs_per_shard", "5", "--reencode.image_max_pixels", "900"]
    assert main([*words, "--out", str(tmp_path / "straight")]) == 0
    slow = "import time; from datamodules.shards import reencode as r; w = r.prepared; "
    slow += "r.prepared = lambda *a, **k: time.sleep(0.1) or w(*a, **k)"
    code = f"{slow}; from lightning_conan.cli.main import main; main({[*words, '--out', str(tmp_path / 'out')]!r})"
    running = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    progress, deadline = tmp_path / ".out.partial" / "progress.jsonl", time.monotonic() + 60
    while time.monotonic() < deadline and not (progress.exists() and len(progress.read_text().splitlines()) > 3):
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    done = json.loads(progress.read_text().splitlines()[-1])["consumed"]
    assert 0 < done < 60
    kept = (tmp_path / ".out.partial" / "000000.tar").stat().st_ino
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "000000.tar").stat().st_ino == kept
    for name in ("index.json", "quarantine.jsonl"):
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "straight" / name).read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source", "straight"]


def stopped(root, signature, after=7):
    """A run that is interrupted."""

    def some(done):
        for number, pair in enumerate(pairs(12)[done:], done):
            if number == after:
                raise KeyboardInterrupt
            yield pair

    with pytest.raises(KeyboardInterrupt):
        write_resumable(some, root / "set", signature, pairs_per_shard=3)


def test_only_the_same_work_goes_on(tmp_path):
    asked = []

    def rest(done):
        asked.append(done)
        return pairs(12)[done:]

    straight = write_shards(pairs(12), tmp_path / "straight", 3)
    for name, signature in (("a", "same"), ("b", "another")):
        (tmp_path / name).mkdir()
        stopped(tmp_path / name, "same")
        assert write_resumable(rest, tmp_path / name / "set", signature, 3) == straight
    assert asked == [6, 0]
    (tmp_path / "c").mkdir()
    stopped(tmp_path / "c", "same")
    shard = tmp_path / "c" / ".set.partial" / "000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    assert write_resumable(rest, tmp_path / "c" / "set", "same", 3) == straight
    assert asked[-1] == 3


def test_what_was_not_taken_once_does_not_come_back(tmp_path):
    """A shard that a power cut shortened and half a line; then a second kill."""
    straight = write_shards(pairs(12), tmp_path / "straight", 3)
    stopped(tmp_path, "same")
    scratch = tmp_path / ".set.partial"
    shard = scratch / "000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with (scratch / "progress.jsonl").open("a") as file:
        file.write('{"consumed"')

    def one_more(done):
        yield from pairs(12)[done : done + 3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_resumable(one_more, tmp_path / "set", "same", 3)
    assert write_resumable(lambda done: pairs(12)[done:], tmp_path / "set", "same", 3) == straight
    assert len(ShardSet(tmp_path / "set")) == 12


def test_files_that_are_there_by_now_are_packed_after_all(tmp_path):
    """A drive that was not mounted: what could not be read is looked for again, what was written stays."""
    away = tmp_path / "away.png"

    def some(done, stop=None):
        for number, pair in enumerate(pairs(12)[done:], done):
            if number == stop:
                raise KeyboardInterrupt
            medium = Media("image", away, "away.png")
            yield msgspec.structs.replace(pair, query=Item((medium,))) if number == 4 else pair

    with pytest.raises(KeyboardInterrupt):
        write_resumable(lambda done: some(done, 9), tmp_path / "set", "same", 3)
    first = (tmp_path / ".set.partial" / "000000.tar").stat().st_ino
    away.write_bytes(png())
    summary = write_resumable(some, tmp_path / "set", "same", 3)
    assert (summary["pairs"], summary["quarantined"]) == (12, 0)
    assert (tmp_path / "set" / "000000.tar").stat().st_ino == first


def test_nothing_is_kept_of_a_source_whose_files_are_all_missing(tmp_path, caplog):
    gone = [msgspec.structs.replace(pair, query=Item((Media("image", tmp_path / "no.png", "no.png"),))) for pair in pairs(6)]
    with pytest.raises(ValueError, match="got 0 and 6 invalid ones"):
        write_resumable(lambda done: gone[done:], tmp_path / "set", "same", 3)
    assert not (tmp_path / ".set.partial").exists()
    with pytest.raises(ValueError, match="pairs_per_shard must be 1 or more, got 0"):
        write_resumable(lambda done: gone[done:], tmp_path / "set", "same", 0)


SECOND = """
import sys
from pathlib import Path
from datamodules.shards.write import write_shards
write_shards([], Path(sys.argv[1]))
"""


def test_a_second_process_is_kept_out(tmp_path):
    def meanwhile(done):
        second = subprocess.run([sys.executable, "-c", SECOND, str(tmp_path / "set")], capture_output=True, text=True)
        assert "must have one writer, and process" in second.stderr
        return pairs(2)

    write_resumable(meanwhile, tmp_path / "set", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_a_folder_that_changed_is_packed_anew(tmp_path):
    """A kill, then a file below: what was packed would stand at other places of the order."""
    for name in ("a", "c"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "x.png").write_bytes(png())
        (tmp_path / "photos" / name / "x.txt").write_text(f"a {name}")
    before = state_of(tmp_path / "photos")
    assert before == state_of(tmp_path / "photos")
    (tmp_path / "photos" / "c" / "x.txt").write_text("corrected")
    assert state_of(tmp_path / "photos") != before
    assert state_of(tmp_path / "nowhere") == []


def test_workers_end_with_the_process_that_started_them(tmp_path):
    """However it ends: `timeout` and schedulers kill it alone, and its workers would wait for ever."""
    source = manifest(tmp_path / "source")
    words = ["pack", str(source), "--out", str(tmp_path / "out"), "--reencode.image_max_pixels", "900", "--workers", "2"]
    code = f"from lightning_conan.cli.main import main; main({words!r})"
    script = tmp_path / "run.py"
    slow = "import time, datamodules.shards.reencode as r; r.Reencoding.__call__ = lambda *a: time.sleep(60)"
    script.write_text(f"{slow}\nif __name__ == '__main__':\n    {code}\n")
    running = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    deadline, workers = time.monotonic() + 60, []
    while time.monotonic() < deadline and len(workers) < 3:  # two, and multiprocessing's own
        time.sleep(0.1)
        workers = psutil.Process(running.pid).children()
    running.send_signal(signal.SIGKILL)
    running.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


def test_a_decoder_that_hangs_while_packing_is_cut_off(monkeypatch):
    monkeypatch.setattr("datamodules.shards.reencode.SECONDS", 0.3)
    monkeypatch.setattr("lightning_conan.media.decode_media", lambda media: time.sleep(30))
    (fault,) = prepare(pairs(1), Reencoding(), validate=True)
    assert "must be read within 0.3 s" in fault.reason


def test_media_in_memory_end_a_shard_before_they_fill_it(tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.shards.write.HELD", 3 * len(png()))
    media = Media("image", png(), "a.png")
    write_shards([Pair(f"k{row}", "t", "image", Item((media,)), Item(("x",))) for row in range(8)], tmp_path / "set")
    assert [len(shard.numbers) for shard in ShardSet(tmp_path / "set").shards.values()] == [3, 3, 2]


def test_what_stands_in_the_way_in_the_end_costs_nothing(tmp_path):
    """Shards are kept until they are in their place."""
    asked = []

    def some(done):
        asked.append(done)
        yield from pairs(12)[done:]
        if len(asked) == 1:
            (tmp_path / "set" / "other").mkdir(parents=True)

    with pytest.raises(OSError, match="not empty"):
        write_resumable(some, tmp_path / "set", "s", pairs_per_shard=3)
    shutil.rmtree(tmp_path / "set")
    write_resumable(some, tmp_path / "set", "s", pairs_per_shard=3)
    assert asked == [0, 12]
    assert len(ShardSet(tmp_path / "set")) == 12
    assert not list((tmp_path / "set").glob("*.jsonl"))


@pytest.mark.parametrize("fps", [1, 2, 100])
def test_a_part_of_a_video_reads_as_the_same_seconds_written_anew_or_not(fps, processor):
    """Whatever its own rate: the model is told these seconds."""
    media = Media("video", mp4(40, 48), "v.mp4", start=2.0, end=4.0)
    plain, made = (decode_media(one, processor.config.sampling) for one in (media, Reencoding(video_fps=fps)(media)))
    assert plain.seconds[0] == made.seconds[0] == 0.0
    assert plain.seconds[-1] == pytest.approx(made.seconds[-1], abs=1 / fps + 0.3)


@pytest.mark.parametrize("validate", [False, True])
def test_a_file_that_comes_back_is_packed_whoever_looked_for_it(tmp_path, validate):
    """Looked for by whoever decodes it first, too."""
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(png())
    (tmp_path / "1.png").rename(tmp_path / "away.png")

    def some(done, stop=None):
        found = [
            Pair(f"k{number}", "t", "image", Item((Media("image", tmp_path / f"{number}.png", f"{number}.png"),)), Item(("x",)))
            for number in range(6)
        ]
        for number, pair in enumerate(prepare(found[done:], Reencoding(), validate), done):
            if number == stop:
                raise KeyboardInterrupt
            yield pair

    with pytest.raises(KeyboardInterrupt):
        write_resumable(lambda done: some(done, 5), tmp_path / "set", "same", 2)
    (tmp_path / "away.png").rename(tmp_path / "1.png")
    assert write_resumable(some, tmp_path / "set", "same", 2)["pairs"] == 6


def test_a_key_whose_media_were_lost_is_taken_after_a_kill_too(tmp_path):
    """The same pairs are refused as without the kill."""

    def some(done, stop=None):
        for number, key in list(enumerate("abcda"))[done:]:
            if number == stop:
                raise KeyboardInterrupt
            media = Media("image", tmp_path / "missing.png", "missing.png") if number == 1 else Media("image", png(), "a.png")
            yield Pair(key if number < 4 else "b", "t", "image", Item((media,)), Item(("x",)))

    whole = write_resumable(some, tmp_path / "whole", "same", 2)
    with pytest.raises(KeyboardInterrupt):
        write_resumable(lambda done: some(done, 3), tmp_path / "killed", "same", 2)
    assert write_resumable(some, tmp_path / "killed", "same", 2) == whole
    assert (whole["pairs"], whole["quarantined"]) == (3, 2)
    listed = [(tmp_path / name / "quarantine.jsonl").read_text() for name in ("whole", "killed")]
    assert listed[0] == listed[1]
    assert "must be unique, it came before" in listed[0]


def test_work_of_other_options_is_given_up_with_a_word(tmp_path, caplog):
    def some(done):
        yield from pairs(6)[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_resumable(some, tmp_path / "set", "these", 2)
    write_resumable(lambda done: pairs(6)[done:], tmp_path / "set", "others", 2)
    assert "begun of other data or options: started again from the first shard" in caplog.text


def test_the_same_files_named_from_elsewhere_are_the_same_work(tmp_path, monkeypatch):
    source = manifest(tmp_path / "data", 3)
    monkeypatch.chdir(tmp_path / "data")
    assert state_of(Path(source.name)) == state_of(source)


def test_pages_that_shrink_stay_exact():
    """JPEG blurs letters, whether a page is of a PDF or a picture."""
    made = Reencoding(image_max_pixels=900)(Media("document", png(60, 60), "page.png"))
    assert (made.suffix, made.modality) == ("png", "document")


def test_a_video_with_as_many_frames_a_second_keeps_its_bytes():
    video = Media("video", mp4(8), "v.mp4")
    fps = timeline(video).fps
    assert Reencoding(video_fps=int(fps))(video) is video
    assert fps == int(fps)
