"""Twin-Merging with random entries: of the matrices about the share, scaled up, and the rest of the model whole."""

import numpy as np
import pytest
from support.shared_zoos import restored_deltas, shared_zoo, states


def test_random_entries_are_divided_by_the_share_that_is_kept(tmp_path):
    settings = {"strategy": "random", "drop": 0.75, "lambda": 0.5, "seed": 3}
    shared_zoo(tmp_path, "twin", 3, settings=settings)
    base, models = states(3)
    deltas = [{name: (state[name] - base[name]).numpy() for name in base} for state in models]
    kept = 0
    for delta, (task, found) in zip(deltas, restored_deltas(tmp_path / "zoo").items(), strict=True):
        for name, values in found.items():
            shared = 0.5 * sum(each[name] for each in deltas)
            rest = delta[name] - shared
            own = values - shared
            if rest.ndim != 2:
                np.testing.assert_allclose(own, rest, atol=1e-6, err_msg=f"{task} {name}")
                continue
            taken = np.abs(own) > 1e-5
            np.testing.assert_allclose(own[taken], rest[taken] / 0.25, atol=1e-5, err_msg=f"{task} {name}")
            kept += np.count_nonzero(taken)
    matrices = sum(base[name].numel() for name in base if base[name].ndim == 2 and name != "zero")
    assert kept == pytest.approx(3 * 0.25 * matrices, rel=0.1)
