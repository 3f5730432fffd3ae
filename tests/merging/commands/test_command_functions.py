"""The functions behind the commands: they return what they made, silently, and load only what they need."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from support.checkpoints import message

from flexswitch.codecs.errors import UsageError
from flexswitch.merging.commands.compress import compress
from flexswitch.merging.commands.extract import extract
from flexswitch.merging.commands.merge import merge
from flexswitch.merging.commands.pack import pack
from flexswitch.merging.commands.verify import verify

BASE, RED, BLUE = "base.safetensors", "red.safetensors", "blue.safetensors"


class Recorder:
    """Keeps what a command reports."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, what: str, total: int) -> AbstractContextManager[Callable[[str], None]]:
        self.lines.append(f"{what} ({total})")
        return nullcontext(self.lines.append)

    def steps(self, what: str, total: int) -> AbstractContextManager[Callable[[int, str], None]]:
        return nullcontext(lambda done, state: None)


def test_a_task_goes_from_checkpoints_to_a_zoo_and_back_without_a_word(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vector = extract(BASE, RED, "red.tv.safetensors")
    artifact = compress("red.tv.safetensors", "red.fsw", method="p-discard", settings={"drop": 0})
    zoo = pack([artifact.path, compress(BLUE, "blue.fsw", base=BASE).path], "zoo")
    merged = merge(["zoo"], "restored", base=BASE, task="red")
    assert (vector.header.name, artifact.header.name, list(zoo)) == ("red", "red", ["blue", "red"])
    assert (merged.path, merged.tasks, merged.method) == (Path("restored"), ["red"], "restored")
    restored, tuned = load_file("restored/model.safetensors"), load_file(RED)
    assert sorted(restored) == sorted(tuned)
    assert verify("zoo", base=BASE).lines[0].startswith("zoo: 2 tasks")
    assert capsys.readouterr() == ("", "")


def test_a_reporter_receives_progress_by_tensor(models: Path) -> None:
    recorder = Recorder()
    compress(RED, "red.fsw", base=BASE, reporter=recorder)
    assert recorder.lines == [
        "compressing 3 tensors of red.safetensors (3)", "embed.weight", "layer.bias", "layer.weight",
    ]  # fmt: skip


def test_the_default_method_is_t_switch_and_flexswitch_for_a_size(models: Path) -> None:
    assert compress(RED, "red.fsw", base=BASE).header.method.name == "t-switch"
    small = compress(
        RED, "small.fsw", base=BASE, settings={"objective": "none"}, target_size="1500", overwrite=True
    )
    assert small.header.method.name == "flexswitch"
    assert small.path.stat().st_size <= 1500


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"drop": 1.5}, "setting drop=1.5 of t-switch: expected a number of at least 0 and below 1"),
        ({"dorp": 0.5}, "no setting of t-switch is named 'dorp'; did you mean 'drop'?"),
    ],
)
def test_settings_are_checked_before_anything_is_opened(
    models: Path, settings: dict[str, float], expected: str
) -> None:
    found = message(UsageError, lambda: compress("none.safetensors", "o.fsw", base=BASE, settings=settings))
    assert found.startswith(expected)


def test_t_switch_loads_no_learner_router_evaluation_or_model(models: Path) -> None:
    code = """
import sys
sys.argv = ["flexswitch", "compress", "red.safetensors", "--base", "base.safetensors", "-o", "red.fsw", "-q"]
from flexswitch.cli.app import app
app(standalone_mode=False)
rooms = tuple("flexswitch.merging." + room for room in ("flex_switch", "routing", "evaluation", "switching", "models"))
print([name for name in sys.modules if name.startswith(rooms)])
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == "[]"
