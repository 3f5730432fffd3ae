"""A subcommand's options and the arguments of the function that it calls: same defaults, same choices."""

import inspect
import typing
from typing import Any, get_args, get_origin

import pytest

from flexswitch.cli import compress as cli_compress
from flexswitch.cli import export as cli_export
from flexswitch.cli import extract as cli_extract
from flexswitch.cli import index as cli_index
from flexswitch.cli import merge as cli_merge
from flexswitch.cli import pack as cli_pack
from flexswitch.cli import route as cli_route
from flexswitch.cli import verify as cli_verify
from flexswitch.codecs.byte_size import parse_size
from flexswitch.codecs.storage import EFFORTS
from flexswitch.merging.commands import compress, export, extract, index, merge, pack, route, verify
from flexswitch.merging.routing.mixing import MIXES
from flexswitch.merging.routing.vote import VOTES
from flexswitch.merging.routing.voting_options import VotingOptions

PAIRS = [
    pytest.param(getattr(ours, name), function, id=name)
    for name, ours, function in (
        ("compress", cli_compress, compress.compress),
        ("export", cli_export, export.export),
        ("extract", cli_extract, extract.extract),
        ("index", cli_index, index.index),
        ("merge", cli_merge, merge.merge),
        ("pack", cli_pack, pack.pack),
        ("route", cli_route, route.route),
        ("verify", cli_verify, verify.verify),
    )
]
SIZES = ("memory", "max_shard_size")  # texts on the command line, bytes in the function
TABLES = {"effort": EFFORTS, "vote": VOTES, "mix": MIXES}  # the function takes a text that names an entry
# The command line shows this default; the function takes None, "not given", which --add distinguishes.
SHOWN_ALONE = {("index", "features")}


def choices(annotation: Any) -> tuple[Any, ...]:
    """Returns the values of the Literal in an annotation, or () if it has none."""
    if get_origin(annotation) is typing.Literal:
        return get_args(annotation)
    return next((found for part in get_args(annotation) if (found := choices(part))), ())


def same_choices(name: str, option: inspect.Parameter, argument: inspect.Parameter) -> bool:
    return set(choices(option.annotation)) == set(TABLES.get(name) or choices(argument.annotation))


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    found = inspect.signature(function).parameters.values()
    return {each.name.strip("_"): each for each in found}


@pytest.mark.parametrize(("command", "function"), PAIRS)
def test_a_shared_argument_has_the_same_default_and_the_same_choices(command, function):
    options, arguments = parameters(command), parameters(function)
    shared = options.keys() & arguments.keys()
    assert shared - {"reporter"}
    for name in shared:
        assert same_choices(name, options[name], arguments[name]), name
        shown, default = options[name].default, arguments[name].default
        if name in SIZES:
            shown = parse_size(shown)
        if (default in ((), None) and shown is None) or shown is default is inspect.Parameter.empty:
            continue
        if (function.__name__, name) not in SHOWN_ALONE and default is not inspect.Parameter.empty:
            assert shown == default, name


def test_the_voting_options_of_route_are_those_of_the_record():
    options, fields = parameters(cli_route.route), parameters(VotingOptions)
    assert fields.keys() <= options.keys()
    for name, field in fields.items():
        assert same_choices(name, options[name], field), name
        assert options[name].default == field.default, name
