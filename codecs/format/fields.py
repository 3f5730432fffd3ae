"""The types of fields in flexswitch's JSON documents."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from flexswitch.codecs.format.hub_id import is_hub_id

TASK_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
LONGEST_TASK_NAME = 128
_RESERVED = r"con|prn|aux|nul|com\d|lpt\d"

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
RelativeError = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Crc32 = Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Blake3 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def check_task_name(name: str) -> str:
    """Returns a task's name. Raises: ValueError where a file cannot be named after it on every system."""
    if not re.fullmatch(TASK_NAME, name):
        raise ValueError("expected letters, digits, '.', '_' and '-', a letter or digit first")
    if len(name) > LONGEST_TASK_NAME:
        raise ValueError(
            f"has {len(name)} letters, expected {LONGEST_TASK_NAME} at most; files are named after it"
        )
    if re.fullmatch(_RESERVED, name.split(".")[0], re.IGNORECASE):
        raise ValueError("is reserved on Windows, where no file can be named after it")
    return name


def _check_hub_id(text: str) -> str:
    if not is_hub_id(text):
        raise ValueError("expected a hub id, org/name or org/name@revision")
    return text


HubId = Annotated[str, AfterValidator(_check_hub_id)]
TaskName = Annotated[str, AfterValidator(check_task_name)]
