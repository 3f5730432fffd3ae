"""The names of features: what `--features` takes, and what a query set records."""

from dataclasses import dataclass

from flexswitch.codecs.errors import UsageError, unknown_name

FROM_FILE = "file"
AUTO = "auto"
_KNOWN = ("pooled", "input", "layer:N", "layers:A+B", "average:KIND", "auto", "FILE.safetensors")


@dataclass(frozen=True)
class Kind:
    """What a model's features are the means of.

    layers: numbers of `layer_means`, none of them for the last hidden state; averaged: of the
    weight-averaged model, and not of the base.
    """

    layers: tuple[int, ...] = ()
    averaged: bool = False


def parse_kind(text: str) -> Kind:
    """Returns the kind of a name. Raises: UsageError with the known ones.

    >>> parse_kind("layers:2+4")
    Kind(layers=(2, 4), averaged=False)
    """
    name = text.removeprefix("average:")
    averaged = name != text
    if name == "pooled":
        return Kind((), averaged)
    if name == "input":
        return Kind((0,), averaged)
    word, _, numbers = name.partition(":")
    parts = numbers.split("+")
    if all(part.isdecimal() for part in parts) and word == ("layer" if len(parts) == 1 else "layers"):
        return Kind(tuple(int(part) for part in parts), averaged)
    raise UsageError(f"--features: {unknown_name('kind', text, _KNOWN)}")


def is_file(features: str) -> bool:
    """Returns whether `--features` names a file."""
    return features.endswith(".safetensors")


def layers_kind(layers: tuple[int, ...]) -> str:
    """Returns the name of the base's features of these layers.

    >>> layers_kind((0,)), layers_kind((3,)), layers_kind((0, 3))
    ('input', 'layer:3', 'layers:0+3')
    """
    if layers == (0,):
        return "input"
    return f"layer{'s' if len(layers) > 1 else ''}:{'+'.join(map(str, layers))}"
