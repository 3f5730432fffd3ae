"""Checks the figures of a step's result against the bounds that a recipe expects."""

from typing import Any

from flexswitch.codecs.errors import ExpectationError, InputError, unknown_name
from flexswitch.recipes.plan import PlannedStep
from flexswitch.recipes.recipe import Bound


def check_expectations(step: PlannedStep, result: dict[str, Any]) -> None:
    """Raises: ExpectationError where a figure of a step's result is outside its bound; InputError."""
    for path, bound in step.expect.items():
        found: Any = result
        for key in path.split("/"):
            if not isinstance(found, dict) or key not in found:
                known = found if isinstance(found, dict) else ()
                raise InputError(unknown_name("figure", key, known))
            found = found[key]
        for holds, expected in _comparisons(found, bound, path):
            if not holds:
                raise ExpectationError(f"{path} is {found}, expected {expected}")


def _comparisons(found: Any, bound: Bound, where: str) -> list[tuple[bool, str]]:
    """Returns whether each part of a bound holds, and the part in words. Raises: InputError."""
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if not is_number and (bound.at_least is not None or bound.at_most is not None):
        raise InputError(f"{where} is {found!r}, no number, so it can only be compared by 'equals'")
    same = found == bound.equals and isinstance(found, bool) == isinstance(bound.equals, bool)
    return [
        (bound.at_least is None or found >= bound.at_least, f"at least {bound.at_least}"),
        (bound.at_most is None or found <= bound.at_most, f"at most {bound.at_most}"),
        (bound.equals is None or same, f"{bound.equals}"),
    ]
