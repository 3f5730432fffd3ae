"""How many examples hypothesis tries: a quarter of a law's own number, and all of them in `make test-deep`."""

import os
from typing import Any

import hypothesis

DEEP = os.environ.get("FLEXSWITCH_TEST_DEPTH") == "deep"
_QUICK_SHARE = 4
_LEAST = 5


def settings(
    max_examples: int, parent: hypothesis.settings | None = None, **others: Any
) -> hypothesis.settings:
    """Returns hypothesis' settings, the parent's where nothing else is given; max_examples: those of a deep run.

    There is no deadline: the first example may compile a kernel.
    """
    quick = max(_LEAST, max_examples // _QUICK_SHARE)
    examples = max_examples if DEEP else min(quick, max_examples)
    return hypothesis.settings(parent, max_examples=examples, **{"deadline": None, **others})
