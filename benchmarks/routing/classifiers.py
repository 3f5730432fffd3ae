"""Compares other classifiers of texts by task, trained on the same exemplars."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import hstack
from scoring import States
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from flexswitch.merging.routing.text_shape import shape_of

_LAYERS = (0, 4)
_FEW, _RANK = 32, 8  # exemplars of a task that span its subspace, and the dimensions of that

# (exemplars' points, their tasks, test points) → the tasks of the tests
Classify = Callable[[Any, NDArray[np.int32], Any], NDArray[np.int32]]


def _logistic(points: Any, ids: NDArray[np.int32], tests: Any) -> NDArray[np.int32]:
    found: NDArray[np.int32] = LogisticRegression(C=10, max_iter=500).fit(points, ids).predict(tests)
    return found


def _lda(points: Any, ids: NDArray[np.int32], tests: Any) -> NDArray[np.int32]:
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.6)
    found: NDArray[np.int32] = model.fit(points, ids).predict(tests)
    return found


def _subspaces(points: Any, ids: NDArray[np.int32], tests: Any) -> NDArray[np.int32]:
    """Returns the task whose exemplars' first singular vectors hold most of a test point's length."""
    kept = []
    for task in np.unique(ids):
        _, _, axes = np.linalg.svd(points[ids == task][:_FEW], full_matrices=False)  # (axis, width)
        kept.append(np.square(tests @ axes[:_RANK].T).sum(1))
    return np.unique(ids)[np.argmax(kept, axis=0)]


def rights(
    exemplars: States, texts: Sequence[str], tests: States, test_texts: Sequence[str]
) -> dict[str, NDArray[np.bool_]]:
    """Returns for each classifier whether each test text is given its own task, (text,)."""
    states = _centred(exemplars, exemplars), _centred(exemplars, tests)
    marks = _marks(texts, test_texts)
    both = tuple(hstack([one, other]).tocsr() for one, other in zip(marks, states, strict=True))
    ways: dict[str, tuple[Classify, Any]] = {
        "logistic regression on the same features": (_logistic, states),
        "LDA on the same features": (_lda, states),
        f"subspaces of {_FEW} exemplars by SVD, rank {_RANK}, the same features": (_subspaces, states),
        "logistic regression on runs of 1 to 4 characters, their shape, and words": (_logistic, marks),
        "logistic regression on all of these": (_logistic, both),
    }
    return {name: way(made[0], exemplars.ids, made[1]) == tests.ids for name, (way, made) in ways.items()}


def _centred(exemplars: States, some: States) -> NDArray[np.float32]:
    """Returns the shapes and layers of some texts, centred by the exemplars, each of length 1."""
    parts = [0, *(1 + layer for layer in _LAYERS)]
    points = some.parts[:, parts] - exemplars.parts[:, parts].mean(0)
    points = points / points.norm(dim=2, keepdim=True)
    found: NDArray[np.float32] = points.flatten(1).numpy()
    return found


def _marks(texts: Sequence[str], test_texts: Sequence[str]) -> tuple[Any, Any]:
    """Returns counts of runs of characters and words, for exemplars and tests, as sparse rows."""
    runs = {"analyzer": "char", "ngram_range": (1, 4), "lowercase": False, "sublinear_tf": True}
    vectorizers = [
        TfidfVectorizer(**runs, preprocessor=lambda text: f"\n{shape_of(text)}\n", use_idf=False),
        TfidfVectorizer(**runs, preprocessor=lambda text: f"\n{text}\n", min_df=2),
        TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True),
    ]
    exemplars = hstack([vectorizer.fit_transform(texts) for vectorizer in vectorizers])
    return exemplars.tocsr(), hstack([vectorizer.transform(test_texts) for vectorizer in vectorizers]).tocsr()
