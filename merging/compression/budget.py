"""The budget of a compression: the share of answers to keep, and how the smallest artifact is searched.

A method's size follows from one of its settings. Its values are tried as if a larger artifact never kept
fewer answers: in strides until one value keeps enough and another does not, then by bisection between them.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from flexswitch.codecs.errors import UsageError
from flexswitch.merging.methods.registry import get_method, method_names
from flexswitch.merging.methods.settings import describe_settings

_STRIDE = 8  # values in a factor of four
_FIRST_TARGET = 0.5  # % of float32
_TARGET_STEPS = 3 * _STRIDE  # to both sides of the first: from 1/64 to 64 times its size
_SHARE_STEPS = 5 * _STRIDE  # from 1/1024 of the entries to all
_WIDTHS = range(1, 9)


@dataclass(frozen=True)
class SizeSetting:
    """A setting that decides the size of a method's artifacts.

    values: from the smallest artifact to the largest. first: number of the value that is tried first. down,
    up: strides to smaller and larger artifacts.
    """

    name: str
    values: tuple[Any, ...]
    first: int
    down: int
    up: int

    def next_number(self, fails: int | None, passes: int | None) -> int | None:
        """Returns the number of the value to try next, None if there is none.

        fails: the largest that is known to keep too few answers. passes: the smallest known to keep enough.
        """
        last = len(self.values) - 1
        if fails is None and passes is None:
            return self.first
        if passes is None:
            return min(fails + self.up, last) if fails is not None and fails < last else None
        if fails is None:
            return max(passes - self.down, 0) if passes > 0 else None
        return (fails + passes) // 2 if passes - fails > 1 else None


def _power(step: int) -> float:
    return math.pow(4.0, step / _STRIDE)


_SHARES = [f"{_power(-step):.3g}" for step in range(_SHARE_STEPS, -1, -1)]
_QUARTER = len(_SHARES) - 1 - _STRIDE
_SIZE_SETTINGS = (
    SizeSetting(
        "target_size",
        tuple(f"{_FIRST_TARGET * _power(step):.3g}%" for step in range(-_TARGET_STEPS, _TARGET_STEPS + 1)),
        first=_TARGET_STEPS,
        down=_STRIDE,
        up=_STRIDE,
    ),
    # Signs of nearly all entries under one scale fit none well: shorter strides up find where they do.
    SizeSetting(
        "drop",
        tuple(float(1 - Fraction(share)) for share in _SHARES),
        _QUARTER,
        down=_STRIDE,
        up=_STRIDE // 2,
    ),
    SizeSetting("density", tuple(map(float, _SHARES)), _QUARTER, down=_STRIDE, up=_STRIDE // 2),
    SizeSetting("rank", tuple(1 << step for step in range(11)), first=3, down=2, up=2),
    SizeSetting("entry_bits", tuple(2.0**step for step in range(-6, 4)), first=6, down=2, up=1),
    SizeSetting("bits", tuple(_WIDTHS), first=1, down=1, up=2),
)


def size_setting(method: str) -> SizeSetting:
    """Returns the setting that decides the size of a method's artifacts. Raises: UsageError if none does."""
    found = _size_setting(method)
    if found is None:
        able = [name for name in method_names("compression") if _size_setting(name) is not None]
        raise UsageError(
            f"--budget: {method} has no setting that decides its size; those that do: {', '.join(able)}"
        )
    return found


def _size_setting(method: str) -> SizeSetting | None:
    names = {setting.name for setting in describe_settings(get_method(method, "compression"))}
    return next((setting for setting in _SIZE_SETTINGS if setting.name in names), None)


def parse_budget(text: str) -> float:
    """Returns the share of answers that `agreement=99%` or `agreement=0.99` asks for. Raises: UsageError.

    >>> parse_budget("agreement=99.5%"), parse_budget("agreement=0.99")
    (0.995, 0.99)
    """
    found = re.fullmatch(r"agreement=(\d{1,3}(?:\.\d{1,9})?|\.\d{1,9})(%?)", text, re.ASCII)
    share = Fraction(found[1]) / (100 if found[2] else 1) if found else Fraction(0)
    if not 0 < share <= 1:
        raise UsageError(f"--budget {text}: expected agreement=SHARE, a share such as 99% or 0.99")
    return float(share)


def shown_budget(share: float) -> str:
    """Returns a budget as it is given.

    >>> shown_budget(0.995)
    'agreement=99.5%'
    """
    return f"agreement={100 * share:.6g}%"


def answers_to_tell(share: float) -> int:
    """Returns the least number of answers of which one may differ within a budget below 1.

    >>> answers_to_tell(0.99), answers_to_tell(0.95)
    (100, 20)
    """
    return math.ceil(1 / (1 - Fraction(str(share))))
