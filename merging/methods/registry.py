"""The methods that compress a task vector or merge several: one record each.

To add one, write its file, its record here and its test. A method's function is imported when it is used.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from flexswitch.codecs.errors import UsageError, unknown_name

Kind = Literal["compression", "merge", "shared"]
Need = Literal[
    "a tensor's delta", "the task vector", "exemplars", "the base",
    "the task vectors", "a tensor's statistics", "the model's statistics", "whole tensors",
    "labelled exemplars",
]  # fmt: skip


@dataclass(frozen=True)
class Method:
    """One method: its name, its function as "module:function", what it needs, and where it is published.

    A shared method stores tasks as one vector that they share and a small part each. The function's
    keyword-only arguments are the method's settings. A method that needs only the task vectors reads them
    once, block by block; statistics take further readings, whole tensors their memory. version: changes when
    the same input and settings give other bytes, and never otherwise; a recipe's lock has it.
    """

    name: str
    kind: Kind
    function: str
    needs: tuple[Need, ...]
    source: str
    tasks: tuple[int, int | None] = (1, None)  # how few and how many a merge takes
    weighted: bool = True  # whether a merge takes weights of tasks
    version: int = 1

    @property
    def needs_exemplars(self) -> bool:
        """Whether it reads examples of the tasks."""
        return "exemplars" in self.needs or "labelled exemplars" in self.needs

    def check_task_count(self, count: int) -> None:
        """Raises: UsageError where a merge takes more or fewer tasks."""
        few, many = self.tasks
        if not few <= count <= (many or count):
            expected = f"exactly {few}" if few == many else f"at least {few}"
            raise UsageError(f"{self.name} merges {expected} task{'s' * (few > 1)}, found {count}")

    def load(self) -> Callable[..., Any]:
        """Returns the method's function."""
        module, function = self.function.split(":")
        loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return loaded


_DELTA: tuple[Need, ...] = ("a tensor's delta",)
_WHOLE_DELTA: tuple[Need, ...] = ("a tensor's delta", "whole tensors")
_COMPRESSION = "flexswitch.merging.compression"
_STATIC = "flexswitch.merging.static"
_SHARED = "flexswitch.merging.shared"
_VECTORS: tuple[Need, ...] = ("the task vectors",)
_STATISTICS: tuple[Need, ...] = ("the task vectors", "a tensor's statistics")
_WHOLE: tuple[Need, ...] = ("the task vectors", "whole tensors")
_MODEL_STATISTICS: tuple[Need, ...] = ("the task vectors", "the model's statistics")
_T_SWITCH_PAPER = "Qi et al. 2025 (arXiv 2412.00054)"
_AVERAGING_PAPER = "Wortsman et al. 2022 (arXiv 2203.05482)"
_DARE_PAPER = "Yu et al. 2024 (arXiv 2311.03099)"
_DELLA_PAPER = "Deep et al. 2024 (arXiv 2406.11617)"
_CONCRETE_PAPER = "Tang et al. 2023 (arXiv 2312.06173)"
_TVQ_PAPER = "Kim et al. 2025 (arXiv 2503.06921)"
_CONSENSUS_PAPER = "Wang et al. 2024 (arXiv 2405.07813)"
_ADAMERGING_PAPER = "Yang et al. 2024 (arXiv 2310.02575)"
_BREADCRUMBS_PAPER = "Davari and Belilovsky 2024 (arXiv 2312.06795)"


def _merge(
    name: str,
    module: str,
    source: str,
    needs: tuple[Need, ...] = _VECTORS,
    tasks: tuple[int, int | None] = (1, None),
    weighted: bool = True,
) -> Method:
    function = f"{_STATIC}.{module}:{name.replace('-', '_')}"
    return Method(name, "merge", function, needs, source, tasks, weighted)


def _from_exemplars(
    name: str, module: str, source: str, need: Need = "exemplars", weighted: bool = True
) -> Method:
    function = f"flexswitch.merging.exemplar_merges.{module}:{name.replace('-', '_')}"
    return Method(name, "merge", function, ("the task vectors", need), source, (1, None), weighted)


METHODS = (
    Method("t-switch", "compression", f"{_COMPRESSION}.t_switch:t_switch", _DELTA, _T_SWITCH_PAPER),
    Method("p-discard", "compression", f"{_COMPRESSION}.p_discard:p_discard", _DELTA, _T_SWITCH_PAPER),
    Method("bin-discard", "compression", f"{_COMPRESSION}.bin_discard:bin_discard", _DELTA, _T_SWITCH_PAPER),
    Method("dare", "compression", f"{_COMPRESSION}.dare:dare", _DELTA, _DARE_PAPER),
    Method("tvq", "compression", f"{_COMPRESSION}.tvq:tvq", _DELTA, _TVQ_PAPER),
    Method(
        "bitdelta", "compression", f"{_COMPRESSION}.bitdelta:bitdelta", _DELTA,
        "Liu et al. 2024 (arXiv 2402.10193)",
    ),
    Method(
        "compeft", "compression", f"{_COMPRESSION}.compeft:compeft", ("the task vector",),
        "Yadav et al. 2023 (arXiv 2311.13171)",
    ),
    Method(
        "svd", "compression", f"{_COMPRESSION}.svd:svd", _WHOLE_DELTA, "Ryu et al. 2023 (arXiv 2305.18425)",
    ),
    Method(
        "delta-come", "compression", f"{_COMPRESSION}.delta_come:delta_come", _WHOLE_DELTA,
        "Ping et al. 2024 (arXiv 2406.08903)",
    ),
    Method(
        "ultradelta", "compression", f"{_COMPRESSION}.ultradelta:ultradelta", ("the task vector",),
        "Wang et al. 2025 (arXiv 2505.13563)",
    ),
    Method(
        "lossless", "compression", f"{_COMPRESSION}.lossless:lossless", ("the task vector", "the base"),
        "docs/methods.md §6.19",
    ),
    Method(
        "flexswitch", "compression", "flexswitch.merging.flex_switch.flex_switch:flexswitch",
        ("the task vector", "exemplars", "the base"), "Gao et al. 2026 (arXiv 2604.28109)",
    ),
    _merge("average", "average", _AVERAGING_PAPER),
    _merge("linear", "average", _AVERAGING_PAPER, ("the task vectors", "the base")),
    _merge("task-arithmetic", "task_arithmetic", "Ilharco et al. 2023 (arXiv 2212.04089)"),
    _merge("ties", "ties", "Yadav et al. 2023 (arXiv 2306.01708)", _MODEL_STATISTICS),
    _merge("dare-linear", "dare", _DARE_PAPER),
    _merge("dare-ties", "dare", _DARE_PAPER),
    _merge("della", "della", _DELLA_PAPER),
    _merge("della-linear", "della", _DELLA_PAPER),
    _merge("breadcrumbs", "breadcrumbs", _BREADCRUMBS_PAPER, _STATISTICS),
    _merge("breadcrumbs-ties", "breadcrumbs", _BREADCRUMBS_PAPER, _STATISTICS),
    _merge("consensus-ta", "consensus", _CONSENSUS_PAPER),
    _merge("consensus-ties", "consensus", _CONSENSUS_PAPER, _MODEL_STATISTICS),
    _merge("iso-c", "singular_values", "Marczak et al. 2025 (arXiv 2502.04959)", _WHOLE),
    _merge("tsv-m", "singular_values", "Gargiulo et al. 2025 (arXiv 2412.00081)", _WHOLE),
    _merge("pcb", "pcb", "Du et al. 2024 (arXiv 2410.02396)", _MODEL_STATISTICS),
    _merge("slerp", "spherical", "Shoemake 1985", _STATISTICS, tasks=(2, 2), weighted=False),
    _merge("nuslerp", "spherical", "Shoemake 1985", _STATISTICS, tasks=(2, 2)),
    _merge("multislerp", "spherical", "Goddard 2024, Multi-SLERP", _STATISTICS),
    _merge("karcher", "spherical", "Karcher 1977; arXiv 2603.04972", _STATISTICS),
    _merge(
        "model-stock", "model_stock", "Jang et al. 2024 (arXiv 2403.19522)", _STATISTICS,
        tasks=(2, None), weighted=False,
    ),
    _merge("sce", "sce", "Wan et al. 2024 (arXiv 2408.07990)", _STATISTICS, weighted=False),
    _merge("nearswap", "nearswap", "alchemonaut 2024, QuartetAnemoi", tasks=(1, 1), weighted=False),
    _merge("arcee-fusion", "arcee_fusion", "Arcee, mergekit", _STATISTICS, tasks=(1, 1), weighted=False),
    _merge("ram", "ram", "arXiv 2601.13572", weighted=False),
    _merge("ram-plus", "ram", "arXiv 2601.13572", _STATISTICS, weighted=False),
    _from_exemplars("regmean", "regmean", "Jin et al. 2023 (arXiv 2212.09849)"),
    _from_exemplars("fisher", "fisher", "Matena and Raffel 2022 (arXiv 2111.09832)"),
    _from_exemplars(
        "df-merge", "df_merge", "Lee et al. 2025 (arXiv 2504.18992)", "labelled exemplars", weighted=False
    ),
    _from_exemplars("adamerging", "adamerging", _ADAMERGING_PAPER, weighted=False),
    _from_exemplars("adamerging-plus", "adamerging", _ADAMERGING_PAPER, weighted=False),
    _from_exemplars("concrete-ta", "concrete", _CONCRETE_PAPER, weighted=False),
    _from_exemplars("concrete-am", "concrete", _CONCRETE_PAPER, weighted=False),
    Method("emr", "shared", f"{_SHARED}.emr:emr", _STATISTICS, "Huang et al. 2024 (arXiv 2405.17461)"),
    Method("tall", "shared", f"{_SHARED}.tall:tall", _VECTORS, _CONSENSUS_PAPER),
    Method("rtvq", "shared", f"{_SHARED}.rtvq:rtvq", _STATISTICS, _TVQ_PAPER),
    Method("twin", "shared", f"{_SHARED}.twin:twin", _WHOLE, "Lu et al. 2024 (arXiv 2406.15479)"),
)  # fmt: skip


def method_names(kind: Kind, need: Need | None = None) -> list[str]:
    """Returns the names of the methods of a kind, or of those among them that have a need."""
    return [each.name for each in METHODS if each.kind == kind and need in (None, *each.needs)]


def get_method(name: str, kind: Kind) -> Method:
    """Returns the method of that name and kind. Raises: UsageError."""
    for method in METHODS:
        if (method.name, method.kind) == (name, kind):
            return method
    raise UsageError(unknown_name(f"{kind} method", name, method_names(kind)))


STATIC_MERGES = [each.name for each in METHODS if each.kind == "merge" and not each.needs_exemplars]

# What `eval` scores: the base, the fine-tuned models, every method here that merges without examples, and
# both methods that route by the zoo's query index, of which the second has a learned metric.
ROUTED = ("auto-switch", "auto-flexswitch")
STORED = (*method_names("compression"), *method_names("shared"))
EVALUATED = ("base", "individual", *STATIC_MERGES, *STORED, *ROUTED)
