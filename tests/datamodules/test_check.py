import pytest

from datamodules.toy_world import draw_pairs
from datamodules.writing import write_shards
from lightning_conan.cli.main import main


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
