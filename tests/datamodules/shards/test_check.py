import io
import random

import numpy as np
import pytest
from PIL import Image

from datamodules.shards.check import ALIKE, ImageHash, alike
from datamodules.shards.write import write_shards
from datamodules.toy_world import draw_pairs
from lightning_conan.cli.main import main
from lightning_conan.items import Item, Media, Pair


def test_leaks_and_duplicates_are_reported(tmp_path, capsys):
    pairs = list(draw_pairs("image", 6, 0))
    write_shards(pairs, tmp_path / "train")
    write_shards([*pairs[:2], *draw_pairs("image", 3, 1)], tmp_path / "test")
    assert main(["pack", "--check", str(tmp_path / "train"), str(tmp_path / "test")]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'train'}: 6 pairs, every shard is what was packed" in said
    assert "MiB" in said
    assert f"{tmp_path / 'train'} and {tmp_path / 'test'} share 2 targets" in said


def test_a_flipped_bit_in_a_shard_is_found(tmp_path, capsys):
    """Fault 8."""
    write_shards(list(draw_pairs("audio", 4, 0)), tmp_path / "set")
    shard = next((tmp_path / "set").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    assert main(["pack", "--check", str(tmp_path / "set")]) == 1
    assert f"{shard} is not what was packed" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--check"], ["--check", "nowhere"]])
def test_nothing_to_check_is_refused(words, capsys):
    assert main(["pack", *words]) == 1
    assert "conan pack" in capsys.readouterr().err


def scene(seed, side=160, quality=95):
    """A smooth picture as a JPEG of some size and quality."""
    grain = np.random.default_rng(seed).integers(0, 255, (7, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grain).resize((160, 160), Image.Resampling.BICUBIC).resize((side, side)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def shown(key, data, modality="image"):
    return Pair(key, "photos", modality, Item((f"a caption of {key}",)), Item((Media(modality, data, "a.jpg"),)))


def test_copies_that_were_scaled_and_saved_anew_are_found(tmp_path, capsys):
    write_shards([shown(f"train{seed}", scene(seed)) for seed in range(12)], tmp_path / "train")
    copies = [shown("copy", scene(3, 110, 70)), shown("page", scene(5, 90, 80), "document")]
    broken = shown("torn", scene(99)[:900])
    write_shards([*copies, *(shown(f"new{seed}", scene(seed)) for seed in range(50, 60)), broken], tmp_path / "test")
    words = ["pack", "--check", str(tmp_path / "train"), str(tmp_path / "test")]
    assert main([*words, "--looks"]) == 0
    said = capsys.readouterr().out
    assert f"2 images or pages of {tmp_path / 'test'} look like one of {tmp_path / 'train'}" in said
    assert "such as that of 'copy' like that of 'train3'" in said
    assert "1 images or pages cannot be decoded, such as that of torn: image" in said
    assert "look like another one" not in said
    assert main(words) == 0
    assert "look" not in capsys.readouterr().out


def test_looks_are_compared_as_each_with_each_would_be():
    rng = random.Random(0)
    bases = [rng.getrandbits(64) for _ in range(40)]
    near = [base ^ sum(1 << place for place in rng.sample(range(64), rng.randint(0, 8))) for base in bases]
    these, those = (
        [ImageHash(f"{row}", bytes([side, row]), bits) for row, bits in enumerate(bits)]
        for side, bits in enumerate((bases, near))
    )
    found = {(one.key, other.key) for one, other in alike(these, those)}
    assert found == {(str(row), str(row)) for row in range(40) if (bases[row] ^ near[row]).bit_count() <= ALIKE}
    assert 5 < len(found) < 35
    assert not list(alike(these, these))  # a file is no copy of itself


def test_pages_with_a_blank_margin_are_compared_with_each_other():
    """Their first bands are alike, so that all of them share a bucket."""
    rng = random.Random(0)
    pages = [ImageHash(f"{row}", row.to_bytes(2), rng.getrandbits(40) << 24) for row in range(500)]
    copy = ImageHash("copy", b"copy", pages[7].bits ^ 1 << 50)
    wanted = {(one.key, other.key) for one in pages for other in [copy] if (one.bits ^ other.bits).bit_count() <= ALIKE}
    assert ("7", "copy") in wanted
    assert {(one.key, other.key) for one, other in alike(pages, [copy])} <= wanted
    assert list(alike(pages, [copy]))


def test_media_that_two_sets_share_beside_other_texts_are_reported(tmp_path, capsys):
    """With an instruction, on the other side of a pair, or as a hard negative: no side as a whole is the same."""
    sounds = [pair.query.media[0] for pair in draw_pairs("audio", 4, 0)]
    text = Item(("a sound",))
    write_shards([Pair(f"a{n}", "t", "audio", Item((sound,)), text) for n, sound in enumerate(sounds)], tmp_path / "train")
    test = [
        Pair("b0", "t", "audio", Item((sounds[0], "louder")), Item(("x",))),
        Pair("b1", "t", "audio", Item(("y",)), Item((sounds[1],), "Find it.")),
        Pair("b2", "t", "audio", Item(("z",)), Item(("z",)), (Item((sounds[2],)),)),
    ]
    write_shards(test, tmp_path / "test")
    assert main(["pack", "--check", str(tmp_path / "train"), str(tmp_path / "test")]) == 0
    said = capsys.readouterr().out
    assert "share 3 media, such as that of 'b" in said
    assert "queries, such" not in said
