"""Feature specs: the values of `--features` that a query set records."""

from dataclasses import dataclass

from flexswitch.codecs.errors import UsageError, unknown_name

FROM_FILE = "file"
AUTO = "auto"
_SHAPE, _AVERAGE = "shape+", "average:"
_KNOWN = (
    "pooled",
    "input",
    "layer:N",
    "layers:A+B",
    "average:SPEC",
    "auto",
    "shape+SPEC",
    "FILE.safetensors",
)


@dataclass(frozen=True)
class FeatureSpec:
    """The features of a model: means of hidden states over the tokens.

    layers: as for `layer_means`, empty for the last hidden state; averaged: whether the weight-averaged model
    computes them instead of the base; shaped: whether the text's shape (text_shape.py) comes before them.
    """

    layers: tuple[int, ...] = ()
    averaged: bool = False
    shaped: bool = False

    @property
    def parts(self) -> int:
        """The number of parts of equal width: one for the shape, and one for each layer."""
        return self.shaped + max(1, len(self.layers))


def parse_feature_spec(text: str) -> FeatureSpec:
    """Returns the parsed spec. Raises: UsageError if it is unknown.

    >>> parse_feature_spec("layers:2+4")
    FeatureSpec(layers=(2, 4), averaged=False, shaped=False)
    """
    name = model_spec(text)
    shaped = text.startswith(_SHAPE)
    averaged = text.removeprefix(_SHAPE).startswith(_AVERAGE)
    if name == "pooled":
        return FeatureSpec((), averaged, shaped)
    if name == "input":
        return FeatureSpec((0,), averaged, shaped)
    word, _, numbers = name.partition(":")
    parts = numbers.split("+")
    if all(part.isdecimal() and len(part) < 10 for part in parts) and word == (
        "layer" if len(parts) == 1 else "layers"
    ):
        return FeatureSpec(tuple(int(part) for part in parts), averaged, shaped)
    raise UsageError(f"--features: {unknown_name('feature spec', text, _KNOWN)}")


def model_spec(text: str) -> str:
    """Returns the part of a spec that names the layers.

    >>> model_spec("shape+average:layer:4")
    'layer:4'
    """
    return text.removeprefix(_SHAPE).removeprefix(_AVERAGE)


def is_auto(features: str) -> bool:
    """Returns whether the layers are chosen automatically."""
    return features.removeprefix(_SHAPE) == AUTO


def is_shaped(features: str) -> bool:
    """Returns whether the texts' shape is among the features."""
    return features.startswith(_SHAPE)


def is_file(features: str) -> bool:
    """Returns whether the features are read from a file."""
    return features.endswith(".safetensors")


def layers_spec(layers: tuple[int, ...], shaped: bool = False) -> str:
    """Returns the spec of the base's features of these layers, with or without the texts' shape.

    >>> layers_spec((0,)), layers_spec((3,)), layers_spec((0, 3))
    ('input', 'layer:3', 'layers:0+3')
    """
    before = _SHAPE if shaped else ""
    if layers == (0,):
        return f"{before}input"
    return f"{before}layer{'s' if len(layers) > 1 else ''}:{'+'.join(map(str, layers))}"
