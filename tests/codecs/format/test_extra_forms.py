"""The forms of extras: the smallest exact one is stored, and a record that does not fit is refused."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from support.artifact_files import EXTRAS, HEADER, ROWS, Change, damage_whole_table
from support.sparse_tensors import write_artifact

from flexswitch.codecs.errors import ArtifactError, DecodeError
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.extra_forms import EXTRA_FORMS, BytePlanes, Plain, packed_extra, unpacked_extra
from flexswitch.codecs.format.records import FormRecord, RawTensor
from flexswitch.codecs.format.safetensors_file import DTYPE_BYTES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An artifact with extras of each form."""
    return write_artifact(tmp_path / "sst2.fsw", ROWS, EXTRAS, HEADER)


def test_the_extras_of_these_tests_have_every_exact_form(path: Path) -> None:
    records = open_artifact(path).header.extras
    assert {record.form.name for record in records.values()} == {"plain", "byte-planes"}


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 3), (7, 500)])
@pytest.mark.parametrize("is_constant", [True, False])
def test_every_dtype_and_shape_is_stored_exactly(
    dtype: str, shape: tuple[int, ...], is_constant: bool
) -> None:
    size = int(np.prod(shape)) * DTYPE_BYTES[dtype]
    data = bytes(size) if is_constant else np.random.default_rng(0).bytes(size)
    tensor = RawTensor(dtype, shape, data)
    packed = packed_extra(tensor)
    assert unpacked_extra(packed.record, packed.data) == tensor
    assert packed.record.size == len(packed.data) <= size


def test_weights_take_fewer_bytes_than_their_own() -> None:
    weights = np.random.default_rng(0).normal(0, 0.02, (6, 384)).astype("<f4")
    packed = packed_extra(RawTensor("F32", (6, 384), weights.tobytes()))
    assert packed.record.form == FormRecord(name="byte-planes")
    assert len(packed.data) < 0.92 * weights.nbytes


@pytest.mark.parametrize("form", [Plain, BytePlanes])
def test_every_form_is_exact(form: type) -> None:
    for extra in EXTRAS.values():
        assert form().decode(form().encode(extra), extra.dtype, extra.shape) == extra.data


def test_forms_are_registered_under_their_names() -> None:
    assert {name: form.name for name, form in EXTRA_FORMS.items()} == {name: name for name in EXTRA_FORMS}


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_data_cut_short_raises_a_decode_error(length: int) -> None:
    data = BytePlanes().encode(EXTRAS["pooler"])
    for damaged in itertools.chain([data[:length], data[: -1 - length], data + bytes(1 + length)]):
        with pytest.raises(DecodeError):
            BytePlanes().decode(damaged, "F32", (20, 20))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda e: e["pooler"]["form"].update(name="byte-plane"),
            "extra 'pooler': no form is named 'byte-plane'; did you mean 'byte-planes'? (known: "
            "plain, byte-planes, float16, quantised-rows); a newer flexswitch may know it",
        ),
        (
            lambda e: e["pooler"]["form"].update(settings={"bits": 4}),
            "extra 'pooler': the form byte-planes does not accept the settings {'bits': 4}: "
            "BytePlanes",
        ),
        (lambda e: e["pooler"].update(shape=[20, 21]), "extra 'pooler': 1249 bytes, expected at least 1269"),
        (lambda e: e["classifier.weight"].update(shape=[7]), "extra 'classifier.weight': 24 bytes, expected 28"),
    ],
)  # fmt: skip
def test_a_record_that_does_not_fit_is_refused(path: Path, change: Change, expected: str) -> None:
    damage_whole_table(path, lambda document: change(document["extras"]))
    artifact = open_artifact(path)
    name = "pooler" if "pooler" in expected else "classifier.weight"
    with pytest.raises(DecodeError) as caught:
        artifact.extra(name)
    assert str(caught.value).startswith(f"{path}: {expected}")


@pytest.mark.parametrize("shape", [[1 << 40, 1 << 40], [(1 << 62), 20, 20]])
def test_a_huge_shape_is_refused(path: Path, shape: list[int]) -> None:
    damage_whole_table(path, lambda document: document["extras"]["pooler"].update(shape=shape))
    with pytest.raises(ArtifactError, match="expected 68,357,864 at most of 1,249 stored ones"):
        open_artifact(path)


def test_a_tensor_that_readers_would_refuse_as_grown_is_stored_plain() -> None:
    assert packed_extra(RawTensor("U8", (1 << 26,), bytes(1 << 26))).record.form.name == "byte-planes"
    packed = packed_extra(RawTensor("U8", (1 << 27,), bytes(1 << 27)))
    assert packed.record.form.name == "plain"
    assert len(packed.data) == 1 << 27
