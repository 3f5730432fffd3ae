"""Random numbers that depend on a seed and on names alone, the same on any machine and in blocks of any size.

Source: docs/methods.md §6.4.
"""

import hashlib

import numpy as np


def seeded_generator(seed: int, task: str, tensor: str) -> np.random.PCG64:
    """Returns the generator of a task's tensor, whose seed is the SHA-256 of the three."""
    key = hashlib.sha256(f"{seed}\0{task}\0{tensor}".encode()).digest()
    return np.random.PCG64(int.from_bytes(key, "little"))
