"""Budgets as they are given, and the search for the smallest value that meets one."""

import pytest

from flexswitch.codecs.errors import UsageError
from flexswitch.merging.compression.budget import (
    SizeSetting,
    answers_to_tell,
    parse_budget,
    shown_budget,
    size_setting,
)
from flexswitch.merging.flex_switch.size_target import target_bytes
from flexswitch.merging.methods.registry import get_method, method_names
from flexswitch.merging.methods.settings import check_settings, describe_settings

OF_ONE_SIZE = ("bitdelta", "lossless")
MOST_TRIES = {"target_size": 7, "drop": 8, "density": 8, "rank": 5, "entry_bits": 5, "bits": 5}
SIZED = [
    name
    for name in method_names("compression")
    if MOST_TRIES.keys() & {each.name for each in describe_settings(get_method(name, "compression"))}
]


def tried(setting: SizeSetting, least: int) -> list[int]:
    """Returns the numbers that are tried, in order, if those from `least` on keep enough."""
    found: list[int] = []
    fails: int | None = None
    passes: int | None = None
    while (number := setting.next_number(fails, passes)) is not None:
        found.append(number)
        fails, passes = (fails, number) if number >= least else (number, passes)
    return found


@pytest.mark.parametrize("method", SIZED)
def test_the_search_ends_at_the_smallest_value_that_keeps_enough(method: str) -> None:
    setting = size_setting(method)
    count = len(setting.values)
    for least in range(count):
        numbers = tried(setting, least)
        assert min(number for number in numbers if number >= least) == least
        assert least == 0 or least - 1 in numbers
        assert len(numbers) == len(set(numbers)) <= MOST_TRIES[setting.name]
    assert tried(setting, count)[-1] == count - 1
    assert max(len(tried(setting, least)) for least in range(count + 1)) == MOST_TRIES[setting.name]


@pytest.mark.parametrize("method", SIZED)
def test_a_method_takes_every_value_that_is_tried(method: str) -> None:
    setting = size_setting(method)
    assert len(set(setting.values)) == len(setting.values)
    for value in setting.values:
        checked = check_settings(get_method(method, "compression"), {setting.name: value})
        assert getattr(checked, setting.name) == value


def test_the_values_go_from_small_artifacts_to_large_ones() -> None:
    targets = size_setting("flexswitch")
    sizes = [target_bytes(value, 10_000_000) for value in targets.values]
    assert sizes == sorted(sizes)
    assert (targets.values[targets.first], sizes[0], sizes[-1]) == ("0.5%", 3124, 12_800_000)
    drops, densities = size_setting("t-switch"), size_setting("compeft")
    assert drops.values[0] == 1 - densities.values[0] == 0.999023
    assert (drops.values[-1], densities.values[-1]) == (0.0, 1.0)
    assert list(drops.values) == sorted(drops.values, reverse=True)
    assert (drops.values[drops.first], densities.values[densities.first]) == (0.75, 0.25)
    assert size_setting("tvq").values == (1, 2, 3, 4, 5, 6, 7, 8)


@pytest.mark.parametrize("method", OF_ONE_SIZE)
def test_a_method_of_one_size_takes_no_budget(method: str) -> None:
    with pytest.raises(UsageError, match=f"^--budget: {method} has no setting that decides its size; those "):
        size_setting(method)


@pytest.mark.parametrize(
    ("text", "share", "shown"),
    [
        ("agreement=99%", 0.99, "agreement=99%"),
        ("agreement=0.99", 0.99, "agreement=99%"),
        ("agreement=.5", 0.5, "agreement=50%"),
        ("agreement=99.95%", 0.9995, "agreement=99.95%"),
        ("agreement=100%", 1.0, "agreement=100%"),
        ("agreement=1", 1.0, "agreement=100%"),
    ],
)
def test_a_budget_is_a_share_of_answers(text: str, share: float, shown: str) -> None:
    assert (parse_budget(text), shown_budget(share)) == (share, shown)


@pytest.mark.parametrize(
    "text",
    ["", "99%", "agreement", "agreement=", "agreement=99", "agreement=0", "agreement=101%", "agreement=-1%",
     "agreement=nan", "agreement=9e-1", "agreement=1/2", "accuracy=99%", "agreement=99%\n", "agreement=٩٩%",
     "agreement=0." + "9" * 5000],
)  # fmt: skip
def test_another_budget_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected agreement=SHARE, a share such as 99% or 0\.99$"):
        parse_budget(text)


def test_one_of_as_many_answers_may_differ() -> None:
    assert [answers_to_tell(share) for share in (0.5, 0.95, 0.99, 0.995, 0.999)] == [2, 20, 100, 200, 1000]
