"""Draws accuracy against stored bytes, one line a method, from the tables of docs/benchmarks.md.

    python benchmarks/flex_switch/curve.py

`run.py` does so after it has written the tables.
"""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from report import DOCUMENT, draw_by_size  # in the folder added to the path above

DOCS = DOCUMENT.parent
_ROW = re.compile(
    r"^\| ([a-z][^|]*) \| [^|]* \| ([\d,]+) \| [\d.]+ \| ([\d.]+) \| [-+][\d.]+ \|$", re.MULTILINE
)
_INDIVIDUAL = re.compile(r"^\| individual \|.* ([\d.]+) \| – \| – \| – \| – \|$", re.MULTILINE)
_NAMES = {
    "flexswitch": "FlexSwitch", "t-switch": "T-Switch", "compeft": "ComPEFT", "dare": "DARE", "tvq": "TVQ",
    "bitdelta": "BitDelta", "data-free": "FlexSwitch without examples",
}  # fmt: skip


def read_curve(text: str) -> tuple[float, dict[str, list[tuple[float, float]]]]:
    """Returns the accuracy of the fine-tuned models, and each method's (kB per task, average accuracy)."""
    section = text[text.index("<!-- flexswitch -->") : text.index("<!-- /flexswitch -->")]
    points: dict[str, list[tuple[float, float]]] = {}
    for method, size, accuracy in _ROW.findall(section):
        points.setdefault(method, []).append((float(size.replace(",", "")), float(accuracy)))
    individual = _INDIVIDUAL.search(section)
    if individual is None or not points:
        raise ValueError("docs/benchmarks.md: the section `flexswitch` has no tables of accuracy and size")
    return float(individual[1]), points


def draw_curve(path: Path = DOCS / "flexswitch.svg") -> None:
    """Writes an SVG of the tables of docs/benchmarks.md; the fine-tuned models are a line across."""
    individual, methods = read_curve((DOCS / "benchmarks.md").read_text(encoding="utf-8"))

    def plot(axes: Any) -> None:
        axes.set_ylim(70, 88.4)
        for number, (method, points) in enumerate(methods.items()):
            if method not in _NAMES:
                continue
            ours = (
                {"linewidth": 2.4, "color": "k", "zorder": 4}
                if method == "flexswitch"
                else {"linewidth": 1.3}
            )
            sizes, accuracies = zip(*sorted(points), strict=True)
            axes.plot([1e3 * size for size in sizes], accuracies, marker="osD^vP*X"[number % 8],
                      markersize=5, label=_NAMES[method], **ours)  # fmt: skip

    size, accuracy = "bytes a task, beside its head of 19 kB", "average accuracy on eight text tasks (%)"
    draw_by_size(path, individual, plot, size, accuracy)


if __name__ == "__main__":
    draw_curve()
