"""The id of a base is an id of the hub, so that it can stand in a model card."""

import pytest
from pydantic import ValidationError

from flexswitch.codecs.format.records import BaseIdentity

WRONG = [
    "", "base", "org/x\nlicense: mit", "org/x\n", "org/<b>", "org/x: y", "org/x@a b", "../x", "/etc/passwd", "org/x|y",
    "org/\x1b[31m", "org/\u202ex", "org/x@main\n---",
]  # fmt: skip


@pytest.mark.parametrize("text", WRONG, ids=repr)
def test_a_base_id_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="expected a hub id, org/name or org/name@revision"):
        BaseIdentity(fingerprint="0" * 64, id=text)


@pytest.mark.parametrize("text", [None, "org/base", "a/b@main", "org/base@refs/pr/1"])
def test_an_id_of_the_hub_or_none_is_taken(text: str | None) -> None:
    assert BaseIdentity(fingerprint="0" * 64, id=text).id == text
