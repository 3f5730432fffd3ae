"""Every shared form against its plain reference: odd shapes, ties, zeros, one task, eight tasks."""

from typing import Any

import numpy as np
import pytest
from support import shared_references
from support.merge_case import Case
from support.shared_zoos import restored_deltas, shared_zoo, states
from support.static_merges import NAMES

from flexswitch.merging.methods.registry import method_names

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "emr": [{"rescale": "entries"}, {"shared_bits": 16}, {"shared_bits": 4}],
    "tall": [{"mask_lambda": 0.2, "shared_bits": 16}, {"merge": "ties", "mask_lambda": 0.6}],
    "rtvq": [{"shared_bits": 2, "bits": 1}, {"error_correction": False}, {"shared_bits": 32, "bits": 4}],
    "twin": [
        {"drop": 0.5, "lambda": 0.5},
        {"strategy": "magnitude", "drop": 0.7, "shared_bits": 16},
        {"drop": 0.0, "bits": 16},
    ],
}
CASES = [
    pytest.param(
        method, settings, tasks, kind,
        marks=[] if kind == "ties" and (tasks == 8 or not settings) else [pytest.mark.deep],
    )
    for method in method_names("shared")
    for settings in ({}, *VARIANTS[method])
    for tasks in (1, 3, 8)
    for kind in ("normal", "ties")
]  # fmt: skip


@pytest.mark.parametrize(("method", "settings", "tasks", "kind"), CASES, ids=str)
def test_each_task_is_its_reference_s(tmp_path, method, settings, tasks, kind):
    shared_zoo(tmp_path, method, tasks, kind, settings=settings)
    base, models = states(tasks, kind)
    deltas = [
        {name: (state[name] - base[name]).numpy().astype(np.float64) for name in base} for state in models
    ]
    plain = {name: tensor.numpy().astype(np.float64) for name, tensor in base.items()}
    expected = getattr(shared_references, method)(Case(plain, deltas, [1.0] * tasks, settings))
    found = restored_deltas(tmp_path / "zoo")
    assert list(found) == list(NAMES[:tasks])
    for task, reference in zip(found, expected, strict=True):
        for name, values in reference.items():
            restored = found[task].get(name, np.zeros_like(values))
            np.testing.assert_allclose(restored, values, rtol=2e-6, atol=1e-6, err_msg=f"{task} {name}")
