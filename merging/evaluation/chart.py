"""Draws a chart of scores against stored bytes, with one point for each method."""

from collections.abc import Sequence
from pathlib import Path

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.atomic import atomic_file
from flexswitch.merging.evaluation.scores import Score


def draw_chart(scores: Sequence[Score], path: Path, overwrite: bool) -> None:
    """Writes a PNG of the average score against stored bytes per task, on a logarithmic axis.

    Raises: InputError if matplotlib is not installed, or the output must not be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError as reason:
        raise InputError(f"{path}: drawing needs matplotlib; pip install 'flexswitch[eval]'") from reason
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for number, score in enumerate(scores):
        axes.scatter(score.bytes_per_task, score.average or 0.0, s=70, label=score.method,
                     marker="osD^vP*X<>"[number % 10], zorder=3)  # fmt: skip
    individual = [score.average or 0.0 for score in scores if score.method == "individual"]
    for average in individual:
        axes.axhline(average, color="0.6", linewidth=1, linestyle="--", zorder=1)
    axes.set_xscale("log" if all(score.bytes_per_task > 0 for score in scores) else "symlog")
    axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
    axes.set_xlabel("stored bytes per task, without the base")
    axes.set_ylabel(f"average {'perplexity' if scores[0].unit == 'perplexity' else 'score (%)'}")
    axes.set_title(f"{len(scores[0].values)} tasks: score against stored size")
    axes.grid(color="0.9", zorder=0)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    with atomic_file(path, overwrite) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
