"""The strict schema of the JSON documents in flexswitch's files."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A record without unknown fields or type conversions."""

    # The config.json of some models holds Infinity, which pydantic would write as null.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, ser_json_inf_nan="constants")
