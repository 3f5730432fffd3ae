"""Draws a training: loss and size over steps."""

from pathlib import Path

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.atomic import atomic_file
from flexswitch.codecs.format.quality_records import TrainingRecord
from flexswitch.codecs.format.records import ArtifactHeader


def draw_training(header: ArtifactHeader, record: TrainingRecord, path: Path, overwrite: bool) -> None:
    """Writes a PNG: the loss (logarithmic) above, the estimated bits per parameter below.

    Raises: InputError if matplotlib is not installed or the output can't be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as reason:
        raise InputError(f"{path}: drawing needs matplotlib; pip install 'flexswitch[eval]'") from reason
    steps, losses, bits = zip(*record.curve, strict=True)
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    above.plot(
        steps,
        losses,
        marker="o",
        markersize=4,
        label="batches, mean since the previous point",
        zorder=3,
    )
    if header.method.settings.get("objective") != "task":  # its loss is not a divergence
        before, after = record.before.divergence, record.after.divergence
        above.scatter(0, before, s=50, marker="s", color="0.4", label="all exemplars, at the start", zorder=4)
        above.scatter(
            steps[-1], after, s=90, marker="*", color="tab:red", label="all exemplars, as stored", zorder=4
        )
        losses = (*losses, before, after)
    above.set_yscale("log" if min(losses) > 0 else "linear")
    above.set_ylabel("loss")
    above.legend(frameon=False)
    title = f"{header.name}: trained on {record.exemplars} exemplars by {header.method.name}"
    above.set_title(title, parse_math=False)  # names are no formulas
    below.plot(steps, bits, marker="o", markersize=4, color="tab:green", zorder=3)
    below.set_ylim(0, 1.1 * max(bits) or 1)
    below.set_ylabel("bits per parameter")
    below.set_xlabel("steps")
    for axes in (above, below):
        axes.grid(color="0.9", zorder=0)
    with atomic_file(path, overwrite) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
