"""The bars that show progress on a terminal."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.theme import Theme

_ACCENT = "cyan"
_THEME = Theme(
    {
        **dict.fromkeys(("bar.complete", "bar.finished", "bar.pulse"), _ACCENT),
        **dict.fromkeys(("progress.download", "progress.remaining"), "none"),
    }
)


def make_bars() -> Progress:
    """Returns bars on stderr that vanish in the end: a name, how much is done, the time left and the item."""
    return Progress(
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[item]}", style="dim", markup=False),
        console=Console(stderr=True, theme=_THEME), transient=True,
    )  # fmt: skip
