"""Drawing a chart writes a whole PNG or nothing."""

import struct
import sys

import pytest
from support.checkpoints import message

from flexswitch.codecs.errors import InputError
from flexswitch.merging.evaluation.chart import draw_chart
from flexswitch.merging.evaluation.scores import Score

PNG = b"\x89PNG\r\n\x1a\n"
SCORES = [
    Score("base", {"birds": 50.0, "cities": 20.0}, 400.0, 0.1),
    Score("individual", {"birds": 90.0, "cities": 80.0}, 4e8, 0.1),
    Score("auto-switch (per-sample)", {"birds": 88.0, "cities": 79.0}, 2e6, 0.2, 91.0),
]


def test_a_chart_is_a_png_of_fixed_size(tmp_path):
    path = tmp_path / "chart.png"
    draw_chart(SCORES, path, overwrite=False)
    data = path.read_bytes()
    assert data.startswith(PNG)
    assert data.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (1200, 750)
    assert len(data) > 10_000
    assert [each.name for each in tmp_path.iterdir()] == ["chart.png"]


def test_the_same_scores_give_the_same_bytes_and_others_give_others(tmp_path):
    draw_chart(SCORES, tmp_path / "one.png", overwrite=False)
    draw_chart(SCORES, tmp_path / "two.png", overwrite=False)
    draw_chart(SCORES[:2], tmp_path / "three.png", overwrite=False)
    one, two, three = ((tmp_path / f"{name}.png").read_bytes() for name in ("one", "two", "three"))
    assert one == two != three


@pytest.mark.parametrize("count", [1, 12])
def test_any_number_of_methods_is_drawn(tmp_path, count):
    scores = [Score(f"method {n}", {"birds": 7.0 * n}, 10.0**n, 0.1) for n in range(count)]
    draw_chart(scores, tmp_path / "chart.png", overwrite=False)


def test_methods_that_store_nothing_are_drawn_too(tmp_path):
    free = Score("average", {"birds": 60.0}, 0.0, 0.1)
    draw_chart([free], tmp_path / "free.png", overwrite=False)
    draw_chart([free, *SCORES], tmp_path / "both.png", overwrite=False)
    draw_chart(SCORES, tmp_path / "paid.png", overwrite=False)
    assert (tmp_path / "both.png").read_bytes() != (tmp_path / "paid.png").read_bytes()


def test_an_existing_file_is_refused_unless_it_may_be_replaced(tmp_path):
    path = tmp_path / "chart.png"
    path.write_bytes(b"mine")
    assert message(InputError, lambda: draw_chart(SCORES, path, overwrite=False)) == (
        f"{path}: exists already; give another output, or --overwrite to replace it"
    )
    assert path.read_bytes() == b"mine"
    draw_chart(SCORES, path, overwrite=True)
    assert path.read_bytes().startswith(PNG)


def test_a_missing_folder_is_reported(tmp_path):
    path = tmp_path / "no" / "chart.png"
    assert message(InputError, lambda: draw_chart(SCORES, path, overwrite=False)) == (
        f"{path}: the folder {path.parent} does not exist; make it first"
    )


def test_nothing_is_left_of_a_drawing_that_fails(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def fail(self, target, **options):
        target.write_bytes(PNG)
        raise RuntimeError("no ink")

    monkeypatch.setattr(Figure, "savefig", fail)
    (tmp_path / "old.png").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="no ink"):
        draw_chart(SCORES, tmp_path / "old.png", overwrite=True)
    with pytest.raises(RuntimeError, match="no ink"):
        draw_chart(SCORES, tmp_path / "new.png", overwrite=False)
    assert [each.name for each in tmp_path.iterdir()] == ["old.png"]
    assert (tmp_path / "old.png").read_bytes() == b"old"


def test_drawing_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    path = tmp_path / "chart.png"
    assert message(InputError, lambda: draw_chart(SCORES, path, overwrite=False)) == (
        f"{path}: drawing needs matplotlib; pip install 'flexswitch[eval]'"
    )
