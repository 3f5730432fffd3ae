"""Sends a zoo to the Hugging Face hub."""

from pathlib import Path
from typing import NamedTuple

from flexswitch.codecs.errors import UsageError
from flexswitch.codecs.format.zoo import ZOO_FILE, Zoo, open_zoo
from flexswitch.merging.commands.arguments import Input, checked_with
from flexswitch.merging.commands.reporter import SILENT, Reporter
from flexswitch.merging.task_vectors.markdown import markdown_text


class Pushed(NamedTuple):
    """The repository, the files sent with their sizes, the card, and the commit; None of a dry run."""

    repository: str
    files: dict[str, int]
    card: str
    commit: str | None


def _check(repository: str) -> None:
    from flexswitch.codecs.format.hub_id import is_hub_id

    if not is_hub_id(repository) or "@" in repository:
        raise UsageError(f"'{repository}': expected a repository of the hub, org/name")


@checked_with(_check)
def push(zoo: Input, repository: str, *, dry_run: bool = False, reporter: Reporter = SILENT) -> Pushed:
    """Sends a zoo's files and a model card to a repository of the hub, in one commit.

    Nothing else in the folder is sent. dry_run: sends nothing. Raises: FlexswitchError.
    """
    from flexswitch.merging.checkpoints.hub_zoo import send_zoo

    opened = open_zoo(zoo)
    files = _checked_files(opened, reporter)
    card = model_card(opened, repository)
    contents: dict[str, Path | bytes] = {**files, "README.md": card.encode()}
    sizes = {name: path.stat().st_size for name, path in files.items()} | {"README.md": len(card.encode())}
    if dry_run:
        return Pushed(repository, sizes, card, None)
    reporter.note(f"sending {len(sizes)} files, {sum(sizes.values()):,} bytes, to {repository}")
    return Pushed(repository, sizes, card, send_zoo(repository, contents, f"{len(opened)} tasks"))


def _checked_files(zoo: Zoo, reporter: Reporter) -> dict[str, Path]:
    """Returns the files of a zoo by their paths in it. Raises: ArtifactError where one is not as packed."""
    files = {ZOO_FILE: zoo.path / ZOO_FILE}
    with reporter.progress(f"checking {len(zoo)} tasks of {zoo.path}", len(zoo)) as on_task:
        for task in zoo:
            zoo.open_task(task)
            files[zoo.record.tasks[task].file] = zoo.task_file(task)
            on_task(task)
    if zoo.record.shared is not None:
        zoo.shared()
        files[zoo.record.shared.file] = zoo.path / zoo.record.shared.file
    if zoo.record.index is not None:
        files[zoo.record.index.file] = zoo.index_file()
    return files


def model_card(zoo: Zoo, repository: str) -> str:
    """Returns the README.md of a zoo's repository: its base, and a table of its tasks."""
    base = zoo.record.base
    lines = ["---", "library_name: flexswitch", "tags: [task-vectors]"]
    lines += [f"base_model: {base.id.partition('@')[0]}"] if base.id else []
    lines += ["---", "", f"# {repository.partition('/')[2]}", ""]
    lines += [
        f"A zoo of {len(zoo)} compressed task vectors, made by flexswitch.",
        f"Their base is {base.id or 'a local model'}, fingerprint {base.fingerprint[:12]}.",
        "", "| task | method | bytes | bits per parameter |", "| --- | --- | ---: | ---: |",
    ]  # fmt: skip
    stored = {task: zoo.record.tasks[task] for task in zoo}
    stored |= {"*shared by all*": zoo.record.shared} if zoo.record.shared is not None else {}
    for name, record in stored.items():
        bits = 8 * record.size / max(1, record.parameters)
        lines.append(f"| {name} | {markdown_text(record.method)} | {record.size:,} | {bits:.3f} |")
    lines += ["", "```sh", f"flexswitch merge {repository} --base BASE -o OUT --task TASK", "```", ""]
    return "\n".join(lines)
