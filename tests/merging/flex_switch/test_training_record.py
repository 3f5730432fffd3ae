"""The record of a training in an artifact: read back, kept by a zoo, drawn as a chart."""

import json
import sys
from pathlib import Path

import pytest
from support.artifact_files import (
    EXTRAS,
    HEADER,
    TENSORS,
    assert_holds,
    message,
    put_table,
    read_table,
)
from support.artifact_files import frame as zstd_frame
from support.sparse_tensors import write_artifact

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.quality_records import QualityRecord, TrainingRecord
from flexswitch.codecs.format.records import MethodRecord
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.flex_switch.training_chart import draw_training
from flexswitch.merging.zoos.pack import Form, create_zoo

RECORD = TrainingRecord(
    exemplars=100,
    exemplars_sha256="ef" * 32,
    held_out=50,
    before=QualityRecord(divergence=1.5, agreement=0.4, held_out_divergence=1.75, held_out_agreement=0.3),
    after=QualityRecord(divergence=0.125, agreement=0.96, held_out_divergence=0.25, held_out_agreement=0.9),
    curve=[(25, 1.25, 0.5), (50, 0.25, 0.125)],
)
DOCUMENT = {
    "exemplars": 100,
    "exemplars_sha256": "ef" * 32,
    "held_out": 50,
    "before": {"divergence": 1.5, "agreement": 0.4, "held_out_divergence": 1.75, "held_out_agreement": 0.3},
    "after": {"divergence": 0.125, "agreement": 0.96, "held_out_divergence": 0.25, "held_out_agreement": 0.9},
    "curve": [[25, 1.25, 0.5], [50, 0.25, 0.125]],
}
TRAINED_HEADER = HEADER.model_copy(update={"training": RECORD})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "sst2.fsw", TENSORS, EXTRAS, TRAINED_HEADER)


def test_an_artifact_gives_back_its_record(path: Path) -> None:
    artifact = open_artifact(path)
    assert artifact.header.training == RECORD
    assert_holds(artifact, TENSORS)


def test_the_record_stands_in_the_table_as_the_format_says(path: Path) -> None:
    assert read_table(path)["training"] == DOCUMENT


def test_what_has_its_default_is_left_out(tmp_path: Path) -> None:
    quality = QualityRecord(divergence=1.0, agreement=0.5)
    bare = TrainingRecord(exemplars=9, exemplars_sha256="ef" * 32, held_out=0, before=quality, after=quality)
    header = HEADER.model_copy(update={"training": bare})
    path = write_artifact(tmp_path / "sst2.fsw", TENSORS, EXTRAS, header)
    short = {"divergence": 1.0, "agreement": 0.5}
    assert read_table(path)["training"] == {
        "exemplars": 9, "exemplars_sha256": "ef" * 32, "held_out": 0, "before": short, "after": short,
    }  # fmt: skip
    assert open_artifact(path).header.training == bare


def test_a_zoo_keeps_the_record(tmp_path: Path, path: Path) -> None:
    create_zoo(tmp_path / "zoo", [path], Form(), None, False, lambda name: None)
    packed = open_zoo(tmp_path / "zoo")["sst2"]
    assert packed.header.training == RECORD


@pytest.mark.parametrize(
    ("field", "value", "found_message"),
    [
        ("exemplars", -1, "'training.exemplars' is wrong: Input should be greater than or equal to 0"),
        ("exemplars_sha256", "ef", "'training.exemplars_sha256' is wrong: String should match pattern '^[0-9a-f]{64}$'"),
        ("steps", 9, "'training.steps' is wrong: Extra inputs are not permitted"),
        ("curve", [[1.5, 0.1, 0.1]], "'training.curve.0.0' is wrong: Input should be a valid integer"),
    ],
)  # fmt: skip
def test_a_record_with_a_wrong_field_is_refused(
    path: Path, field: str, value: object, found_message: str
) -> None:
    table = read_table(path)
    table["training"][field] = value
    put_table(path, zstd_frame(json.dumps(table).encode()))
    assert message(path).startswith(f"its field {found_message}")


# --- the chart --------------------------------------------------------------------------------------------


def drawn(path: Path, record: TrainingRecord = RECORD, objective: str = "kl") -> bytes:
    method = MethodRecord(name="flexswitch", settings={"objective": objective})
    draw_training(HEADER.model_copy(update={"method": method}), record, path, overwrite=True)
    return path.read_bytes()


def test_the_chart_is_a_png_and_the_same_record_gives_the_same_bytes(tmp_path: Path) -> None:
    data = drawn(tmp_path / "one.png")
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    assert data == drawn(tmp_path / "two.png")
    other = RECORD.model_copy(update={"curve": [(25, 1.25, 0.5)]})
    assert data != drawn(tmp_path / "three.png", other)
    assert [each.name for each in sorted(tmp_path.iterdir())] == ["one.png", "three.png", "two.png"]


def test_a_loss_on_labels_is_drawn_without_the_divergence(tmp_path: Path) -> None:
    assert drawn(tmp_path / "one.png", objective="task") != drawn(tmp_path / "two.png")


@pytest.mark.parametrize("curve", [[(1, 0.0, 0.0)], [(5, -1e-9, 0.1), (10, 0.5, 0.1)]])
def test_a_loss_of_nothing_is_drawn_too(tmp_path: Path, curve: list[tuple[int, float, float]]) -> None:
    drawn(tmp_path / "one.png", RECORD.model_copy(update={"curve": curve}))


def test_drawing_without_matplotlib_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"drawing needs matplotlib; pip install 'flexswitch\[eval\]'"):
        drawn(tmp_path / "one.png")
