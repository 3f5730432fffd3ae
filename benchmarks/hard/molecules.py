"""Small molecules, at rest and shaken: what the ANI networks are compared on."""

import numpy as np
from numpy.typing import NDArray

ELEMENTS = "HCNO"
SHAKE = 0.08  # ångström, of each coordinate

# Element and position in ångström of each atom, near the equilibrium.
MOLECULES: dict[str, tuple[tuple[str, float, float, float], ...]] = {
    "water": (("O", 0, 0, 0.117), ("H", 0, 0.757, -0.469), ("H", 0, -0.757, -0.469)),
    "ammonia": (
        ("N", 0, 0, 0), ("H", 0.938, 0, -0.382), ("H", -0.469, 0.812, -0.382), ("H", -0.469, -0.812, -0.382),
    ),
    "methane": (
        ("C", 0, 0, 0), ("H", 0.629, 0.629, 0.629), ("H", 0.629, -0.629, -0.629),
        ("H", -0.629, 0.629, -0.629), ("H", -0.629, -0.629, 0.629),
    ),
    "formaldehyde": (
        ("C", 0, 0, -0.530), ("O", 0, 0, 0.677), ("H", 0, 0.937, -1.123), ("H", 0, -0.937, -1.123),
    ),
    "methanol": (
        ("C", -0.047, 0.664, 0), ("O", -0.047, -0.758, 0), ("H", -1.087, 0.976, 0),
        ("H", 0.438, 1.072, 0.889), ("H", 0.438, 1.072, -0.889), ("H", 0.861, -1.057, 0),
    ),
    "ethene": (
        ("C", 0.670, 0, 0), ("C", -0.670, 0, 0), ("H", 1.232, 0.929, 0), ("H", 1.232, -0.929, 0),
        ("H", -1.232, 0.929, 0), ("H", -1.232, -0.929, 0),
    ),
    "hydrogen cyanide": (("H", 0, 0, -1.066), ("C", 0, 0, 0), ("N", 0, 0, 1.153)),
    "formamide": (
        ("C", -0.161, 0.390, 0), ("O", -1.194, -0.252, 0), ("N", 1.086, -0.159, 0), ("H", -0.148, 1.491, 0),
        ("H", 1.913, 0.414, 0), ("H", 1.172, -1.159, 0),
    ),
}  # fmt: skip
MOST_ATOMS = max(map(len, MOLECULES.values()))


def shaken(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns elements (molecule, atom), -1 for no atom, and positions (molecule, atom, 3) in ångström."""
    generator = np.random.default_rng(seed)
    elements = np.full((count, MOST_ATOMS), -1, np.int64)
    positions = np.zeros((count, MOST_ATOMS, 3), np.float32)
    known = list(MOLECULES.values())
    for row in range(count):
        atoms = known[row % len(known)]
        elements[row, : len(atoms)] = [ELEMENTS.index(name) for name, *_ in atoms]
        positions[row, : len(atoms)] = [place for _, *place in atoms]
    return elements, positions + generator.normal(0, SHAKE, positions.shape).astype(np.float32)
