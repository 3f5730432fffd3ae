"""Writes the golden bytes of a new codec, once: cd tests && python -m golden.write NAME.

`NAME.bin` holds the parts of all cases, one after the other; `NAME.json` says what they decode to. Bytes
that have been released are never written again: another layout gets another name.
"""

import json
import sys
from pathlib import Path

from sparse_tensors import BITS, SETTINGS, sparse_tensor

from flexswitch.codecs.registry import get_codec

SHAPE = (5, 59)
KEPT = [2, 3, 64, 65, 66, 67, 68, 69, 70, 71, 100, 131, 255, 256, 290, 294]


def write(name: str) -> None:
    """Writes one codec's two files; fails where they exist."""
    data, cases = b"", []
    for settings in SETTINGS.get(name, [{}]):
        for bits in BITS:
            levels = [(0x9E3779B1 * (index + 1) >> 7) % (1 << bits) for index in range(len(KEPT))]
            parts = get_codec(name)(**settings).encode(sparse_tensor(SHAPE, KEPT, levels, bits))
            sizes = {part: len(content) for part, content in parts.items()}
            case = {"settings": settings, "bits": bits, "parts": sizes}
            cases.append(case | {"shape": SHAPE, "kept": KEPT, "levels": levels})
            data += b"".join(parts.values())
    folder = Path(__file__).parent
    with (folder / f"{name}.bin").open("xb") as file:
        file.write(data)
    with (folder / f"{name}.json").open("x", encoding="utf-8") as document:
        document.write("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n")


if __name__ == "__main__":
    for each in sys.argv[1:]:
        write(each)
