"""What `flexswitch index --report` prints and draws: where exemplars are led by the other ones."""

from pathlib import Path
from typing import Any

from rich.table import Table

from flexswitch.cli.confusion_table import confusion_document, confusion_parts


def index_report(
    zoo: Path, picture: Path, overwrite: bool, device: str
) -> tuple[dict[str, Any], list[Table | str]]:
    """Draws the picture; returns the document and the parts to print. Raises: InputError."""
    from flexswitch.codecs.zoo import open_zoo
    from flexswitch.merging.routing.confusion import draw_confusion
    from flexswitch.merging.routing.report import report_index

    found = report_index(open_zoo(zoo), device)
    draw_confusion(found.counts, found.tasks, picture, overwrite)
    optimistic = "; too good, since the learned metric has seen all of them" if found.learned else ""
    origin = f"each exemplar led by its 10 nearest others, one vote each{optimistic}; drawn in {picture}"
    document = {**confusion_document(found.counts, found.tasks), "picture": str(picture)}
    return document, [*confusion_parts(found.counts, found.tasks), origin]
