"""The forms of extras that round them: their error, their bytes, and what they do not suit."""

import numpy as np
import pytest
import torch

from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.format.extra_forms import (
    EXTRA_FORMS,
    Float16,
    PackedExtra,
    QuantisedRows,
    float_bytes,
    float_values,
    packed_extra,
    rounded_extra,
    unpacked_extra,
)
from flexswitch.codecs.format.records import RawTensor
from flexswitch.codecs.zstd import zstd_compress

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
FORMS = [Float16(), *map(QuantisedRows, range(2, 9))]


def raw(tensor: torch.Tensor, dtype: str = "F32") -> RawTensor:
    made = tensor.to(DTYPES[dtype])
    return RawTensor(dtype, tuple(made.shape), made.contiguous().view(torch.uint8).numpy().tobytes())


def values(packed: PackedExtra) -> torch.Tensor:
    found = unpacked_extra(packed.record, packed.data)
    return torch.frombuffer(bytearray(found.data), dtype=DTYPES[found.dtype]).reshape(found.shape)


HEAD = (
    torch.from_numpy(np.random.default_rng(0).normal(0, 0.02, (40, 96))) * torch.linspace(1, 9, 40)[:, None]
)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_are_rounded_to_a_dtype_as_torch_rounds_them(dtype: str) -> None:
    numbers = torch.from_numpy(np.random.default_rng(1).integers(0, 1 << 32, 20_000, np.uint32)).view(
        torch.float32
    )
    numbers = numbers[numbers.isfinite()]
    expected = raw(numbers, dtype)
    assert float_bytes(numbers.numpy(), dtype) == expected.data
    wide = torch.frombuffer(bytearray(expected.data), dtype=DTYPES[dtype]).float()
    assert float_values(expected.data, dtype).tobytes() == wide.numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_level_is_at_most_half_a_step_away_or_clipped(dtype: str) -> None:
    tensor = raw(HEAD, dtype)
    for bits in range(2, 9):
        packed = rounded_extra(tensor, QuantisedRows(bits))
        exact = HEAD.to(DTYPES[dtype]).double()
        error = ((values(packed).double() - exact).norm(dim=1) / exact.norm(dim=1)).max()
        assert packed.record.form.settings == {"bits": bits}
        assert error < 2.6 * 2.0**-bits
        assert len(packed.data) < 40 * 4 + 40 * 96 * bits / 8 + 60


def test_a_scale_and_its_levels_multiply_to_the_number() -> None:
    data = np.array([0.5, 2], "<f4").tobytes() + zstd_compress(bytes([0, 7, 14, 7, 8, 6]))
    found = QuantisedRows(4).decode(data, "F32", (2, 3))
    assert np.frombuffer(found, "<f4").tolist() == [-3.5, 0, 3.5, 0, 2, -2]


def test_float16_halves_a_float32_head() -> None:
    packed = rounded_extra(raw(HEAD), Float16())
    assert torch.equal(values(packed), HEAD.float().half().float())
    assert len(packed.data) <= HEAD.numel() * 2 + 20


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(
    "tensor",
    [
        raw(torch.ones(30)), raw(torch.ones(0, 4)), raw(torch.tensor([[1.0, float("nan")]] * 40)),
        raw(torch.tensor([[1.0, float("-inf")]] * 40)), RawTensor("I64", (2, 2), bytes(range(32))),
        RawTensor("F8_E4M3", (2, 2), bytes(range(4))),
    ],
)  # fmt: skip
def test_what_a_form_does_not_suit_is_exact(form: Float16 | QuantisedRows, tensor: RawTensor) -> None:
    assert rounded_extra(tensor, form) == packed_extra(tensor)


def test_what_float16_cannot_hold_is_exact() -> None:
    tensor = raw(HEAD * 1e6)
    assert rounded_extra(tensor, Float16()) == packed_extra(tensor)


def test_the_golden_bytes_decode() -> None:
    head = raw(torch.tensor([[1.0, -0.25, 0.5], [0.0, 0.0, 0.0], [-3.0, 1.5, 7.0]]))
    halves = bytes.fromhex("000000000000000000003cb438000000c23e47")
    rows = bytes.fromhex("b0f80a3e000000000000803f20094900000e050b07070704090e")
    assert set(EXTRA_FORMS) == {"plain", "byte-planes", "float16", "quantised-rows"}
    assert Float16().decode(halves, "F32", (3, 3)) == head.data
    levels = torch.tensor([[7.0, -2, 4], [0, 0, 0], [-3, 2, 7]])
    scales = torch.from_numpy(np.frombuffer(rows[:12], "<f4").copy())
    assert QuantisedRows(4).decode(rows, "F32", (3, 3)) == raw(levels * scales[:, None]).data


def test_damaged_rows_are_refused() -> None:
    form, scales = QuantisedRows(4), np.array([0.5, 2], "<f4").tobytes()
    levels = bytes([0, 7, 14, 7, 8, 6])
    wrong = [
        scales[:7], scales, scales + zstd_compress(levels[:5]), scales + zstd_compress(bytes([15] * 6)),
        np.array([0.5, -2], "<f4").tobytes() + zstd_compress(levels),
        np.array([0.5, np.inf], "<f4").tobytes() + zstd_compress(levels),
        scales + zstd_compress(levels) + b"x",
    ]  # fmt: skip
    for data in wrong:
        with pytest.raises(DecodeError):
            form.decode(data, "F32", (2, 3))
    for dtype, shape in (("I64", (2, 3)), ("F32", (6,)), ("F32", (0, 3))):
        with pytest.raises(DecodeError):
            form.decode(scales + zstd_compress(levels), dtype, shape)
    with pytest.raises(ValueError, match="bits 9"):
        QuantisedRows(9)
