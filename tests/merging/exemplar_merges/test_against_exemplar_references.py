"""Every merge from examples against its plain reference: odd shapes, zeros, one task, eight tasks."""

from typing import Any

import numpy as np
import pytest
from support import exemplar_references
from support.checkpoints import assert_same_state
from support.perceptrons import SHAPES, perceptrons

from flexswitch.merging.methods.registry import METHODS, get_method

DEEP = pytest.mark.deep
# A method's settings that are tried beside its defaults.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "adamerging": [
        {"by": "task", "rate": 0.05},
        {"clamp": False, "rate": 0.2, "start": 0.1},
        {"clamp": True, "rate": 0.3, "start": 0.9, "by": "task"},
    ],
    "adamerging-plus": [{"density": 0.5, "rate": 0.1}],
    "concrete-am": [
        {"by": "task", "clamp": True, "final": "mean", "inner_rate": 0.1, "start": 0.4},
        {"temperature": 1.5, "seed": 3, "rate": 1e-3},
    ],
    "concrete-ta": [{"lambda": 0.6, "final": "mean"}, {"temperature": 1.5, "seed": 3}],
    "fisher": [{"expectation": "batch-sum"}, {"normalize": True, "floor": 1e-3}],
    "regmean": [{"shrinkage": 1.0}, {"shrinkage": 0.0, "ridge": 0.5}],
}
TRAINED = {
    "adamerging": {"steps": 12},
    "adamerging-plus": {"steps": 12},
    "concrete-am": {"mask_steps": 4, "steps": 4, "batch": 32, "mask_rate": 0.3, "rate": 0.1},
    "concrete-ta": {"steps": 6, "batch": 32, "rate": 0.3},
    "df-merge": {"points": 2, "steps": 1, "fisher_exemplars": 7},
}
NAMES = [method.name for method in METHODS if method.kind == "merge" and method.needs_exemplars]
# Those whose runs on other threads are quick, and those that share all they do there with these.
LONG = ["adamerging-plus", "concrete-am", "concrete-ta", "df-merge"]
FORWARD = [name for name in NAMES if name not in LONG]
CASES = [
    (method, TRAINED.get(method, {}) | settings)
    for method in NAMES
    for settings in ({}, *VARIANTS.get(method, []))
]
WEIGHTS = [1.0, 0.5, 2.0, 0.25, 1.5, 1.0, 0.75, 1.25]


@pytest.mark.parametrize("method", [*FORWARD, *(pytest.param(name, marks=DEEP) for name in LONG)])
def test_no_merge_depends_on_threads_or_memory(method: str) -> None:
    case = perceptrons(3, count=34)
    settings = TRAINED.get(method, {})
    expected, report = case.merged(method, settings, jobs=1)
    for jobs, memory in ((1, 1), (3, 1), (3, 10**9)):
        found = case.merged(method, settings, jobs=jobs, memory=memory)
        assert_same_state(found[0], expected)
        assert found[1] == report


@pytest.mark.parametrize(
    ("tasks", "kind"),
    [(2, "zeros"), pytest.param(1, "normal", marks=DEEP), pytest.param(8, "normal", marks=DEEP)],
)
@pytest.mark.parametrize(("method", "settings"), CASES, ids=str)
def test_a_merge_is_its_reference_s(method: str, settings: dict[str, Any], tasks: int, kind: str) -> None:
    case = perceptrons(tasks, kind=kind)
    reference = getattr(exemplar_references, method.replace("-", "_"))
    for weights in ([1.0] * tasks, *([WEIGHTS[:tasks]] if get_method(method, "merge").weighted else [])):
        found, report = case.merged(method, settings, weights)
        expected = reference(case, weights, settings | {"report": report})
        for name in SHAPES:
            np.testing.assert_allclose(
                found[name].numpy(), expected[name], rtol=2e-5, atol=2e-6, err_msg=name
            )
