"""The ids of models on the Hugging Face hub."""

import re

_NAME = r"\w(?:[\w.-]{0,94}\w)?"
HUB_ID = re.compile(
    r"(?![^@]*(?:--|\.\.))"  # the hub allows neither
    r"(?![^@]*\.(?:git|safetensors|bin|pt|pth|fsw)(?:@|$))"  # a mistyped file stays off the network
    rf"(?P<repo>{_NAME}/{_NAME})"
    r"(?:@(?P<revision>(?!.*(?:\.\.|//))\w(?:[\w./+-]*\w)?))?",
    re.ASCII,
)


def is_hub_id(text: str) -> bool:
    """Returns whether the text has the form `org/name` or `org/name@revision`; a local path may, too."""
    return HUB_ID.fullmatch(text) is not None
