"""Safetensors files that are odd, hostile or cut."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_conan.embedder.checkpoint import Spec, TensorFiles, write_shards
from lightning_conan.embedder.checkpoint.tensors import read_header, tensor_paths
from lightning_conan.embedder.checkpoint.write_tensors import save_tensors

FOUR = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


def file(path, header, data=bytes(16)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": FOUR, "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, "is not a safetensors file"),
        ({"a": {**FOUR, "dtype": "F99"}}, "is not a safetensors file"),
        ({"a": {**FOUR, "shape": [5]}}, "is not a safetensors file"),
        ({"a": {**FOUR, "data_offsets": [0, 32]}}, "is not a safetensors file"),
        (b'{"a":' + json.dumps(FOUR).encode() + b',"a":' + json.dumps({**FOUR, "dtype": "I32"}).encode() + b"}", "'a' twice"),
        ({"a": {"dtype": "F8_E4M3", "shape": [16], "data_offsets": [0, 16]}}, "Quantised weights"),
    ],
    ids=["overlap", "dtype", "shape", "end", "twice", "quantised"],
)
def test_hostile_headers_are_one_error(tmp_path, header, message):
    with pytest.raises(ValueError, match=message):
        TensorFiles([file(tmp_path / "x.safetensors", header)])


def test_a_header_of_2_to_the_63_is_refused_at_once(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        TensorFiles([path])


def test_empty_tensors_and_scalars_are_tensors(tmp_path):
    specs = {"empty": Spec((0, 3), torch.float32), "scalar": Spec((), torch.bfloat16), "flag": Spec((3,), torch.bool)}
    values = {
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
        "flag": torch.tensor([True, False, True]),
    }
    write_shards(tmp_path, specs, values.__getitem__)
    found = TensorFiles(tensor_paths(tmp_path))
    assert found.specs == specs
    assert all(torch.equal(found[name], values[name]) for name in values)


def header(path):
    """Place of each tensor; the data begins where eight bytes may be read at once."""
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert length % 8 == 0
    return json.loads(path.read_bytes()[8 : 8 + length])


@pytest.mark.parametrize("name", ["w" * length for length in range(1, 9)])
def test_a_shard_is_as_large_as_it_may_be_and_no_larger(tmp_path, name):
    specs = {f"{name}{number}": Spec((number, 3), torch.float32) for number in (1, 2, 3, 4)}
    write_shards(tmp_path, specs, lambda found: torch.zeros(specs[found].shape), 36)
    files = [set(header(path)) - {"__metadata__"} for path in tensor_paths(tmp_path)]
    assert files == [{f"{name}1", f"{name}2"}, {f"{name}3"}, {f"{name}4"}]


@pytest.mark.parametrize("shard_bytes", [1, 300, 10**9])
def test_files_written_tensor_by_tensor_equal_the_librarys(tmp_path, shard_bytes):
    torch.manual_seed(0)
    values = {f"t{i}": torch.randn(i, 7).to([torch.float32, torch.bfloat16, torch.float16][i % 3]) for i in range(1, 9)}
    specs = {name: Spec(tuple(value.shape), value.dtype) for name, value in values.items()}
    write_shards(tmp_path, specs, values.__getitem__, shard_bytes)
    found = {name: tensor for path in tensor_paths(tmp_path) for name, tensor in load_file(path).items()}
    assert found.keys() == values.keys()
    assert all(torch.equal(found[name], values[name]) for name in values)
    if shard_bytes == 10**9:
        save_file(values, tmp_path / "library", metadata={"format": "pt"})
        assert load_file(tmp_path / "library").keys() == found.keys()
        for name, place in header(tmp_path / "model.safetensors").items():
            assert name == "__metadata__" or place["data_offsets"][0] % values[name].element_size() == 0, "aligned"
    else:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(spec.nbytes for spec in specs.values())
        assert set(index["weight_map"]) == set(values)


@pytest.mark.parametrize("letters", range(1, 9))
def test_tensors_are_aligned_whatever_the_header_is_long(tmp_path, letters):
    """Files are mapped, and a float that begins between two words is slow to read, or not at all."""
    values = {
        f"{kind}{'x' * letters}": torch.ones(3, dtype=dtype)
        for kind, dtype in {"a": torch.uint8, "b": torch.bfloat16, "c": torch.float32, "d": torch.float64}.items()
    }
    save_tensors(tmp_path / "model.safetensors", values)
    for name, (spec, start) in read_header(tmp_path / "model.safetensors").items():
        assert start % spec.dtype.itemsize == 0, name
    assert all(torch.equal(tensor, values[name]) for name, tensor in load_file(tmp_path / "model.safetensors").items())


def test_no_file_is_larger_than_asked_for_unless_one_tensor_is(tmp_path):
    sizes = [10, 40, 25, 30, 200, 5, 60]
    specs = {f"t{number}": Spec((size,), torch.uint8) for number, size in enumerate(sizes)}
    write_shards(tmp_path, specs, lambda name: torch.zeros(specs[name].shape, dtype=torch.uint8), 70)
    found = [[spec.nbytes for spec in TensorFiles([path]).specs.values()] for path in tensor_paths(tmp_path)]
    assert sorted(size for file in found for size in file) == sorted(sizes)
    assert all(sum(file) <= 70 or len(file) == 1 for file in found)
    assert len(found) < len(sizes)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    for name in "ab":
        save_file({"w": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="holds 'w' a second time"):
        TensorFiles(tensor_paths(tmp_path))


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no safetensors file"):
        tensor_paths(tmp_path)
