"""mergekit's methods and parameters by ours: where each belongs, and what has no counterpart."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flexswitch.codecs.errors import InputError, unknown_name

_MEAN_OR_SUM = {True: {"merge": "mean"}, False: {"merge": "sum"}}
_L1 = {True: {"rescale": "l1"}, False: {"rescale": "none"}}
_ONLY_FALSE: dict[Any, dict[str, Any]] = {False: {}}


@dataclass(frozen=True)
class PeerMethod:
    """A method of mergekit.

    name: ours. defaults: our settings that give its defaults. renamed: its parameters that are settings of
    another name. chosen: its parameters of a few values, each with our settings. base: whether it takes a
    base model; base_first: whether that is the first of the two models. of_base: our settings with, and
    without a base.
    """

    name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    chosen: Mapping[str, Mapping[Any, Mapping[str, Any]]] = field(default_factory=dict)
    base: Literal["required", "optional", "none"] = "required"
    required: tuple[str, ...] = ()
    base_first: bool = False
    of_base: bool = False

    def fixed(self, has_base: bool) -> dict[str, Any]:
        """Returns our settings before any parameter."""
        return {**self.defaults, **({"of": "deltas" if has_base else "models"} if self.of_base else {})}

    def translated(self, path: Path, key: str, value: Any) -> dict[str, Any]:
        """Returns our settings for a parameter. Raises: InputError where there is no counterpart."""
        if key in self.renamed:
            return {self.renamed[key]: value}
        if key not in self.chosen:
            known = [*self.renamed, *self.chosen]
            raise InputError(f"{path}: {unknown_name(f'parameter handled for {self.name}', key, known)}")
        if isinstance(value, list) or value not in self.chosen[key]:
            choices = ", ".join(str(choice).lower() for choice in self.chosen[key])
            found = f"{value!r:.80}" if isinstance(value, str) else str(value).lower()
            raise InputError(f"{path}: {key}: {found} is not handled, only {choices}")
        return dict(self.chosen[key][value])


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_SUMMED = _same("weight", "density", "lambda")
_NORMALIZED = {True: {"normalize": True}, False: {"normalize": False}}

PEER_METHODS = {
    "linear": PeerMethod(
        "linear", {}, _same("weight"), {"normalize": _NORMALIZED}, base="none", required=("weight",)
    ),
    "task_arithmetic": PeerMethod(
        "task-arithmetic", {"lambda": 1.0}, _same("weight", "lambda"),
        {"normalize": _NORMALIZED, "rescale": _ONLY_FALSE}, required=("weight",),
    ),
    "ties": PeerMethod(
        "ties", {"scope": "tensor", "density": 1.0}, _SUMMED,
        {"normalize": _MEAN_OR_SUM, "rescale": _ONLY_FALSE}, required=("weight",),
    ),
    "dare_ties": PeerMethod(
        "dare-ties", {"density": 1.0, "merge": "sum", "rescale": "l1"}, _SUMMED,
        {"normalize": _MEAN_OR_SUM, "rescale": _L1}, required=("weight",),
    ),
    "dare_linear": PeerMethod(
        "dare-linear", {"density": 1.0, "lambda": 1.0, "rescale": "l1"}, _SUMMED,
        {"normalize": _NORMALIZED, "rescale": _L1}, required=("weight",),
    ),
    "breadcrumbs": PeerMethod(
        "breadcrumbs", {"density": 1.0, "lambda": 1.0}, {**_SUMMED, "gamma": "gamma"},
        {"normalize": _NORMALIZED, "rescale": _ONLY_FALSE}, required=("weight",),
    ),
    "breadcrumbs_ties": PeerMethod(
        "breadcrumbs-ties", {"density": 1.0, "merge": "sum"}, {**_SUMMED, "gamma": "gamma"},
        {"normalize": _MEAN_OR_SUM, "rescale": _ONLY_FALSE}, required=("weight",),
    ),
    "della": PeerMethod(
        "della", {"density": 1.0, "epsilon": 0.15, "rescale": "l1"}, {**_SUMMED, "epsilon": "epsilon"},
        {"normalize": _MEAN_OR_SUM, "rescale": _L1}, required=("weight",),
    ),
    "della_linear": PeerMethod(
        "della-linear", {"density": 1.0, "epsilon": 0.15, "lambda": 1.0, "rescale": "l1"},
        {**_SUMMED, "epsilon": "epsilon"}, {"normalize": _NORMALIZED, "rescale": _L1}, required=("weight",),
    ),
    "slerp": PeerMethod("slerp", {}, _same("t"), required=("t",), base_first=True),
    "nuslerp": PeerMethod(
        "nuslerp", {}, _same("weight"),
        {
            "nuslerp_flatten": {True: {"flatten": True}, False: {"flatten": False}},
            "nuslerp_row_wise": {True: {"columns": True}, False: {"columns": False}},
        },
        base="optional", required=("weight",), of_base=True,
    ),
    "multislerp": PeerMethod(
        "multislerp", {}, {"weight": "weight", "normalize_weights": "normalize"},
        base="optional", required=("weight",), of_base=True,
    ),
    "karcher": PeerMethod("karcher", {}, _same("max_iter", "tol"), base="none"),
    "model_stock": PeerMethod(
        "model-stock", {}, {}, {"filter_wise": {True: {"flatten": False}, False: {"flatten": True}}}
    ),
    "sce": PeerMethod("sce", {}, {"select_topk": "density"}),
    "nearswap": PeerMethod("nearswap", {}, _same("t"), required=("t",)),
    "arcee_fusion": PeerMethod("arcee-fusion"),
    "ram": PeerMethod("ram", {}, _same("epsilon")),
    "ramplus_tl": PeerMethod("ram-plus", {}, _same("r", "alpha", "epsilon")),
}  # fmt: skip
