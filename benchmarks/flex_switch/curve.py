"""Draws accuracy against stored bytes, one line a method."""

import statistics
from pathlib import Path
from typing import Any


def draw_curve(rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Writes a PNG of each method's (bytes per task, average accuracy); `individual` is a line across."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for number, (method, scores) in enumerate(rows.items()):
        points = sorted(
            (statistics.mean(row["payload"].values()), statistics.mean(row["accuracy"].values()))
            for row in scores
        )
        if method == "individual":
            axes.axhline(points[0][1], color="0.5", linewidth=1, linestyle="--")
            axes.annotate("individual", (6e4, points[0][1]), va="bottom", color="0.4")
            continue
        ours = {"linewidth": 2.2, "color": "k"} if method == "flexswitch" else {"linewidth": 1.2}
        axes.plot(*zip(*points, strict=True), marker="osD^vP*X<>"[number % 10], label=method, **ours)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
    axes.set_xlabel("bytes a task, beside the head")
    axes.set_ylabel("average accuracy (%)")
    axes.grid(color="0.9")
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, format="png", metadata={"Software": None})
