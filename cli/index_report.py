"""The report of `flexswitch index --report`: the task to which its neighbours route each exemplar."""

from pathlib import Path
from typing import Any

from flexswitch.cli.confusion_table import confusion_document, confusion_parts
from flexswitch.cli.table import Table


def index_report(
    zoo: Path, picture: Path, overwrite: bool, device: str
) -> tuple[dict[str, Any], list[Table | str]]:
    """Draws the picture; returns the document and the parts to print. Raises: InputError."""
    from flexswitch.codecs.format.zoo import read_zoo
    from flexswitch.merging.routing.confusion import draw_confusion
    from flexswitch.merging.routing.index_report import report_index

    found = read_zoo(zoo, lambda opened: report_index(opened, device))
    draw_confusion(found.counts, found.tasks, picture, overwrite)
    lines = [f"each exemplar routed by its 10 nearest others, one vote each; drawn in {picture}"]
    if found.held_out is not None:
        lines.append(
            "the metric was trained on all of them; of exemplars held out from its training, "
            f"{found.held_out:.1f} % are routed to their own task"
        )
    document = confusion_document(found.counts, found.tasks)
    document |= {"held_out_accuracy": found.held_out, "picture": str(picture)}
    return document, [*confusion_parts(found.counts, found.tasks), *lines]
