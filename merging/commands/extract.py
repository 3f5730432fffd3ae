"""Extracts the task vector of a fine-tuned checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flexswitch.codecs.errors import check_choice
from flexswitch.codecs.format.atomic import check_output
from flexswitch.merging.checkpoints.pairing import Resize
from flexswitch.merging.commands.arguments import (
    Input,
    Output,
    StoredDtype,
    check_inputs_stay,
    check_suffix,
    checked_with,
    new_task_name,
    selection,
)
from flexswitch.merging.commands.reporter import SILENT, Reporter, counted
from flexswitch.merging.task_vectors.task_name import SUFFIX

if TYPE_CHECKING:
    from flexswitch.merging.task_vectors.task_vector_file import TaskVectorFile


def _check(output: str | Path, name: str | None) -> str:
    """Returns the task's name. Raises: UsageError."""
    check_suffix(Path(output), SUFFIX)
    return new_task_name(name, Path(output))


@checked_with(_check)
def extract(
    base: Input,
    finetuned: Input,
    output: Output,
    *,
    dtype: StoredDtype = "float32",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    on_resize: Resize = "refuse",
    key: str | None = None,
    name: str | None = None,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> "TaskVectorFile":
    """Writes the difference of two checkpoints as a task vector file, and returns it opened.

    key: of the state dict in a fine-tuned .pt file that holds several, such as "model.state_dict".
    Raises: FlexswitchError.
    """
    from flexswitch.merging.checkpoints.hashing import open_base
    from flexswitch.merging.task_vectors.open_vector import open_finetuned
    from flexswitch.merging.task_vectors.task_vector_file import TaskVectorFile, write_task_vector

    output = Path(output)
    task = _check(output, name)
    check_choice("--dtype", dtype, StoredDtype)
    chosen = selection(include, exclude, on_resize, key)
    check_inputs_stay(output, (base, finetuned))
    check_output(output, overwrite)
    vector = open_finetuned(str(finetuned), open_base(base), chosen)
    for note in vector.notes:
        reporter.note(note)
    count = len(vector.tensors)
    with reporter.progress(f"extracting {counted(count, 'tensor')} of {finetuned}", count) as on_tensor:
        write_task_vector(vector, output, task, dtype, overwrite, on_tensor)
    return TaskVectorFile(output)
