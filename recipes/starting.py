"""What a new recipe begins with: the JSON Schema for editors, and recipes to copy."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from flexswitch.codecs.errors import UsageError, unknown_name
from flexswitch.codecs.format.atomic import atomic_file
from flexswitch.recipes.commands import COMMANDS
from flexswitch.recipes.recipe import Recipe

STARTERS = ("zoo", "compare")


def recipe_schema() -> dict[str, Any]:
    """Returns the JSON Schema of recipes, with the options of each subcommand."""
    schema = Recipe.model_json_schema()
    schema |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A recipe of flexswitch"}
    step = schema["$defs"]["Step"]
    step["properties"]["command"] = {"enum": list(COMMANDS)}
    step["allOf"] = [
        {
            "if": {"properties": {"command": {"const": name}}},
            "then": {"properties": {"options": {"propertyNames": {"enum": list(command.options)}}}},
        }
        for name, command in COMMANDS.items()
    ]
    values = {"type": "array", "items": {"type": "string"}, "minItems": 1}
    pattern = {"type": "object", "properties": {"glob": {"type": "string"}}, "required": ["glob"]}
    step["properties"]["foreach"] = {
        "type": "object",
        "properties": {"table": {"type": "string"}},
        "additionalProperties": {"anyOf": [values, pattern | {"additionalProperties": False}]},
    }
    return schema


def write_recipe(name: str, target: Path) -> Path:
    """Writes a recipe to begin with and returns its path. Raises: UsageError, InputError."""
    if name not in STARTERS:
        raise UsageError(f"--init: {unknown_name('recipe', name, STARTERS)}")
    text = (files("flexswitch.recipes") / f"{name}.yaml").read_text(encoding="utf-8")
    with atomic_file(target, overwrite=False) as partial:
        partial.write_text(text, encoding="utf-8")
    return target
