"""The search of `compress --budget`, on tiny state dicts and with answers that are counted by rule."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.commands import files_below
from support.tiny_models import changed_state, save_state, tiny_state

from flexswitch.codecs.errors import InputError, TargetSizeError
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.quality_records import BudgetRecord
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.commands.compress_budget import Budget, compress_within
from flexswitch.merging.commands.reporter import Silent
from flexswitch.merging.compression.compress import compress
from flexswitch.merging.flex_switch.held_out_answers import HeldOutAnswers
from flexswitch.merging.task_vectors.open_vector import open_finetuned


def density(artifact: Artifact) -> float:
    """Returns the share of entries kept: an agreement that grows with the size."""
    return sum(each.kept for each in artifact.header.tensors.values()) / artifact.header.parameters


class Notes(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@dataclass
class Search:
    """Searches of one task vector, whose compressions are listed by their values."""

    folder: Path
    method: str = "p-discard"
    setting: str = "drop"
    kept: Callable[[Artifact], float] = density
    examples: int = 100
    tried: list[Any] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)
    most: int = 99  # compressions before an interrupt

    def __post_init__(self) -> None:
        state = tiny_state()
        self._base = save_state(self.folder / "base.safetensors", state)
        self._finetuned = save_state(self.folder / "red.safetensors", changed_state(state, 1))
        self.output = self.folder / "out" / "red.fsw"
        self.output.parent.mkdir()

    def compressed(self, path: Path, value: Any) -> Artifact:
        vector = open_finetuned(str(self._finetuned), open_checkpoint(str(self._base)))
        compress(vector, path, "red", self.method, {self.setting: value}, overwrite=True)
        return open_artifact(path)

    def write(self, path: Path, settings: Mapping[str, Any]) -> None:
        if len(self.tried) == self.most:
            raise KeyboardInterrupt
        self.tried.append(settings[self.setting])
        self.compressed(path, settings[self.setting])

    def __call__(self, share: float, run: str | None = None, overwrite: bool = False) -> Artifact:
        budget = Budget(share, self.method, {}, HeldOutAnswers(self.examples, "digest", self.kept))
        compress_within(budget, self.output, overwrite, self.write, run, self.notes)
        return open_artifact(self.output)

    def left(self) -> list[str]:
        return files_below(self.output.parent)


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return Search(tmp_path)


def record_of(artifact: Artifact) -> BudgetRecord:
    assert artifact.header.budget is not None
    return artifact.header.budget


@pytest.mark.parametrize("share", [0.03, 0.3, 0.61])
def test_the_value_found_keeps_enough_and_the_next_smaller_does_not(search: Search, share: float) -> None:
    found = record_of(search(share))
    by_value = {each.value: each.agreement for each in found.tries}
    taken = search.tried.index(open_artifact(search.output).header.method.settings["drop"])
    drop = search.tried[taken]
    next_smaller = min(value for value in search.tried if value > drop)
    assert by_value[next_smaller] < share <= by_value[drop] == found.kept
    assert (found.asked, found.setting, found.examples) == (share, "drop", 100)
    assert [each.value for each in found.tries] == search.tried
    # The grid has eight values to a factor of four.
    assert (1 - drop) / (1 - next_smaller) == pytest.approx(4 ** (1 / 8), rel=0.01)
    assert search.left() == ["red.fsw"]


def test_a_lower_budget_gives_a_smaller_file(search: Search) -> None:
    sizes = [search(share, overwrite=True).file_bytes() for share in (0.6, 0.4, 0.2, 0.05)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_the_artifact_is_that_of_the_value_found_but_for_the_record(search: Search, tmp_path: Path) -> None:
    found = search(0.3)
    drop = found.header.method.settings["drop"]
    plain = search.compressed(tmp_path / "plain.fsw", drop)
    header = found.header.model_copy(update={"budget": None})
    assert header == plain.header
    for name in plain.header.tensors:
        assert found.packed_tensor(name) == plain.packed_tensor(name)
    tries = {each.value: each.bytes for each in record_of(found).tries}
    assert tries[drop] == plain.file_bytes() < found.file_bytes()


def test_of_the_tries_that_keep_enough_the_smallest_file_is_taken(search: Search) -> None:
    def write(path: Path, settings: Mapping[str, Any]) -> None:
        search.tried.append(settings["drop"])
        search.compressed(path, settings["drop"] or 0.99)  # as where signs of all entries need no mask

    search.write = write  # type: ignore[method-assign]  # the same, but for a drop of 0
    search.kept = lambda artifact: 1.0 if search.tried[-1] < 0.4 else 0.0
    found = search(0.5)
    enough = [each for each in record_of(found).tries if each.agreement == 1.0]
    assert enough[0].value == 0.0 < enough[-1].value
    assert found.header.method.settings["drop"] == 0.99
    assert enough[0].bytes < min(each.bytes for each in enough[1:])


def test_nothing_is_written_where_nothing_reaches_the_budget(search: Search) -> None:
    search.kept = lambda artifact: 0.25 + density(artifact) / 2
    with pytest.raises(InputError) as raised:
        search(0.9, run="run")
    tries = [0.75, 0.5, 0.0]
    assert search.tried == tries
    assert str(raised.value).startswith(
        f"{search.output}: nothing that was tried reaches agreement=90% on 100 held-out examples: the best is "
        "75.0 % at "
    )
    assert str(raised.value).endswith(" bytes (drop=0.0); ask for less, or take another method")
    assert search.left() == []


def test_a_target_too_small_for_the_head_counts_as_keeping_too_little(search: Search) -> None:
    write, refused = search.write, []

    def write_small(path: Path, settings: Mapping[str, Any]) -> None:
        if settings["drop"] > 0.9:
            refused.append(settings["drop"])
            raise TargetSizeError("too small")
        write(path, settings)

    search.write = write_small  # type: ignore[method-assign]  # the same, but for small ones
    found = search(0.01)
    assert len(refused) > 1
    assert found.header.method.settings["drop"] == max(search.tried) <= 0.9
    assert [each.value for each in record_of(found).tries] == search.tried

    def refuse(path: Path, settings: Mapping[str, Any]) -> None:
        raise TargetSizeError("too small")

    search.write = refuse  # type: ignore[method-assign]  # as above
    with pytest.raises(TargetSizeError, match="too small"):
        search(0.01, overwrite=True)
    assert record_of(open_artifact(search.output)) == record_of(found)


def test_an_interrupted_search_goes_on_from_its_finished_tries(search: Search) -> None:
    whole = search(0.3)
    expected, tries = search.output.read_bytes(), list(search.tried)
    search.output.unlink()
    for most in range(1, len(tries)):
        search.tried.clear()
        search.most = 1
        if most == 1:
            assert search.left() == []
        with pytest.raises(KeyboardInterrupt):
            search(0.3, run="run")
        assert search.left() == ["red.fsw.tries"]
        assert search.tried == [tries[most - 1]]
    search.tried.clear()
    assert search(0.3, run="run").header == whole.header
    assert search.tried == tries[-1:]
    assert search.output.read_bytes() == expected
    assert search.left() == ["red.fsw"]


def test_another_search_does_not_go_on_from_it(search: Search) -> None:
    search.most = 2
    with pytest.raises(KeyboardInterrupt):
        search(0.3, run="one")
    with pytest.raises(
        InputError, match=r"red\.fsw\.tries: belongs to a training with other inputs or settings"
    ):
        search(0.3, run="two")
    path = search.output.with_name("red.fsw.tries")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"red\.fsw\.tries: is damaged"):
        search(0.3, run="one")
    assert search.left() == ["red.fsw.tries"]


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ([0, 99], "its tries are of other values than the 41 to try"),
        ([0], "different counts"),
        ([[0, 1]], "counts"),
    ],
)
def test_tries_of_values_that_there_are_not_are_refused(
    search: Search, numbers: list[object], told: str
) -> None:
    search.most = 2
    with pytest.raises(KeyboardInterrupt):
        search(0.3, run="one")
    path = search.output.with_name("red.fsw.tries")
    with np.load(path) as stored:
        arrays = dict(stored)
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **(arrays | {"numbers": np.array(numbers)}))
    with pytest.raises(InputError, match=rf"red\.fsw\.tries: is damaged \(.*{told}\); delete it"):
        search(0.3, run="one")


def test_without_an_identity_nothing_is_kept(search: Search) -> None:
    search.most = 2
    with pytest.raises(KeyboardInterrupt):
        search(0.3)
    assert search.left() == []


@pytest.mark.parametrize(("examples", "notes"), [(19, 1), (20, 0)])
def test_too_few_examples_to_tell_the_budget_are_noted(search: Search, examples: int, notes: int) -> None:
    search.examples = examples
    search.kept = lambda artifact: 1.0
    search(0.95)
    assert (
        search.notes.texts[:notes]
        == [
            "the budget is measured on only 19 examples: with one answer each, agreement=95% asks for all of them; from 20 "
            "on one may differ"
        ][:notes]
    )
    assert all(text.startswith("try ") for text in search.notes.texts[notes:])


def test_a_setting_of_a_few_whole_numbers_is_searched(tmp_path: Path) -> None:
    levels = {bits: bits / 8 for bits in range(1, 9)}
    search = Search(
        tmp_path, "tvq", "bits", kept=lambda found: levels[int(found.header.method.settings["bits"])]
    )
    assert search(0.6).header.method.settings["bits"] == 5
    assert set(search.tried) >= {4, 5}
    assert np.all(np.diff([each.bytes for each in sorted(record_of(open_artifact(search.output)).tries)]) > 0)
