"""Chooses the stored form of a tensor: the smallest of the registered codecs.

Source: Gao et al. 2026 (arXiv 2604.28109), sparsity-aware storage strategy (SASS).
"""

from flexswitch.codecs.codec import Codec
from flexswitch.codecs.registry import CODECS, get_codec
from flexswitch.codecs.sparse import SparseTensor, sparse_stats


def choose_codec(sparse: SparseTensor, codec: str = "auto") -> Codec:
    """Returns the codec of that name fitted to the tensor, or with `auto` the smallest of all.

    On equal sizes the first one registered wins. Raises: UsageError on an unknown name.
    """
    stats = sparse_stats(sparse)
    candidates = CODECS.values() if codec == "auto" else [get_codec(codec)]
    return min((each.fitted(stats) for each in candidates), key=lambda fitted: fitted.estimate_bytes(stats))
