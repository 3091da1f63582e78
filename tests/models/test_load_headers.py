"""Headers of safetensors files are hostile until they are checked."""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from chainserve.errors import WeightsError
from chainserve.models.headers import MAX_HEADER_BYTES, header_length, parse_header, read_header

GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def test_finds_every_tensor_where_safetensors_wrote_it(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    tensors = {"a": torch.randn(3, 2), "b": torch.ones((), dtype=torch.int64), "c": torch.zeros(0, 4).half()}
    save_file(tensors, file, metadata={"format": "pt"})
    content = file.read_bytes()
    infos = parse_header(read_header(file), file=file.name, file_bytes=len(content))
    assert {info.name: (info.dtype, info.shape) for info in infos} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()
    }
    for info in infos:
        assert content[info.offset : info.end] == tensors[info.name].numpy().tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F4"},
        {"dtype": ["F32"]},
        {"shape": [2, 4]},
        {"shape": [-2, -3]},
        {"shape": [True, 6]},
        {"shape": "23"},
        {"shape": None},
        {"data_offsets": [0, 23]},
        {"data_offsets": [24, 0]},
        {"data_offsets": [-24, 0]},
        {"data_offsets": [1, 25]},
        {"data_offsets": [0]},
        {"data_offsets": [0.0, 24.0]},
    ],
)
def test_refuses_an_entry_that_does_not_fit(change: dict[str, object]) -> None:
    parse_header(json.dumps({"w": GOOD}).encode(), file="x")
    with pytest.raises(WeightsError, match="x has a damaged header"):
        parse_header(json.dumps({"w": GOOD | change}).encode(), file="x")


def test_refuses_overlaps_and_holes() -> None:
    for begin in (20, 28):
        second = {**GOOD, "data_offsets": [begin, begin + 24]}
        with pytest.raises(WeightsError, match="v is misplaced"):
            parse_header(json.dumps({"w": GOOD, "v": second}).encode(), file="x")


def test_refuses_a_file_of_another_size() -> None:
    header = json.dumps({"w": GOOD}).encode()
    parse_header(header, file="x", file_bytes=8 + len(header) + 24)
    with pytest.raises(WeightsError, match="get the file again"):
        parse_header(header, file="x", file_bytes=8 + len(header) + 23)


@pytest.mark.parametrize("prefix", [b"", b"\x02", bytes(8), (MAX_HEADER_BYTES + 1).to_bytes(8, "little")])
def test_refuses_an_impossible_length(prefix: bytes) -> None:
    with pytest.raises(WeightsError, match="not a safetensors file"):
        header_length(prefix, file="x")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {}, optional={"dtype": st.just("U8") | json_values, "shape": json_values, "data_offsets": json_values}
)


@given(st.binary(max_size=50) | (st.dictionaries(st.text(), entries) | json_values).map(json.dumps).map(str.encode))
def test_never_fails_but_by_its_own_error(header: bytes) -> None:
    with contextlib.suppress(WeightsError):
        parse_header(header, file="x")
