import pytest
from disk import files_of

from lightning_conan.files import whole_file, writing


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a.bin"
    for data in (b"first", b"second"):
        with whole_file(path) as file:
            file.write(data)
            assert path.exists() == (data == b"second")
        assert path.read_bytes() == data
    with (
        files_of(100),
        pytest.raises(OSError, match=r"a\.bin could not be written .*too large.* Make room"),
        whole_file(path) as file,
    ):
        file.write(b"x" * 1000)
    with pytest.raises(SystemExit), whole_file(path, ".1"):
        raise SystemExit(143)
    assert path.read_bytes() == b"second"
    assert [each.name for each in tmp_path.iterdir()] == ["a.bin"]


def test_two_writers_of_one_path_keep_apart(tmp_path):
    with whole_file(tmp_path / "a", ".1") as one, whole_file(tmp_path / "a", ".2") as other:
        one.write(b"one")
        other.write(b"other")
    assert (tmp_path / "a").read_bytes() == b"one"  # the last to end


def test_an_error_that_names_a_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), writing(tmp_path / "a"):
        (tmp_path / "elsewhere").read_bytes()
