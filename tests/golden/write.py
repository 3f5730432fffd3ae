"""Writes the golden bytes of a new codec, once: cd tests && python -m golden.write NAME.

`NAME.bin` holds the parts of all cases, one after the other; `NAME.json` says what they decode to. Bytes
that have been released are never written again: another layout gets another name.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.sparse_tensors import SETTINGS, sparse_tensor

from flexswitch.codecs.registry import get_codec

SHAPE = (5, 59)
KEPT = [2, 3, 64, 65, 66, 67, 68, 69, 70, 71, 100, 131, 255, 256, 290, 294]
LARGER = (48, 59)
BITS = (0, 1, 2, 4, 8, 16, 32)  # all that there were when the first golden files were written
# Written before a tensor could be a mask alone, and before there was a larger case.
FIRST = ("bitmask", "grouped-coo", "flag4", "raw")


def cases(name: str) -> Iterator[dict[str, Any]]:
    """Yields what a codec's golden bytes hold: each of the tests' settings with all bits, and a larger one."""
    chosen = SETTINGS.get(name, [{}])
    for settings in chosen:
        for bits in BITS[name in FIRST :]:
            levels = [(0x9E3779B1 * (index + 1) >> 7) % (1 << bits) for index in range(len(KEPT))]
            yield {"settings": settings, "bits": bits, "shape": SHAPE, "kept": KEPT, "levels": levels}
    if name not in FIRST:
        kept, levels = patterned()
        more = {"bits": 4, "shape": LARGER, "kept": kept, "levels": levels}
        yield {"settings": chosen[len(chosen) // 2], **more}


def patterned() -> tuple[list[int], list[int]]:
    """Returns kept positions, none in ten rows, and levels whose signs follow one of three patterns."""
    draw = random.Random(0)
    rows, columns = LARGER
    patterns = [[draw.random() < 0.5 for _ in range(columns)] for _ in range(3)]
    kept = [place for place in range(rows * columns) if draw.random() < 0.12]
    kept = [place for place in kept if not 20 <= place // columns < 30]
    levels = []
    for place in kept:
        positive = patterns[place // columns % 3][place % columns] ^ (draw.random() < 0.15)
        magnitude = min(7, int(draw.expovariate(0.5)))
        levels.append(8 + magnitude if positive else 7 - magnitude)
    return kept, levels


def write(name: str) -> None:
    """Writes one codec's two files; fails where they exist."""
    data, written = b"", []
    for case in cases(name):
        sparse = sparse_tensor(case["shape"], case["kept"], case["levels"], case["bits"])
        parts = get_codec(name)(**case["settings"]).encode(sparse)
        sizes = {part: len(content) for part, content in parts.items()}
        written.append({"settings": case["settings"], "bits": case["bits"], "parts": sizes} | case)
        data += b"".join(parts.values())
    folder = Path(__file__).parent
    with (folder / f"{name}.bin").open("xb") as file:
        file.write(data)
    with (folder / f"{name}.json").open("x", encoding="utf-8") as document:
        document.write("[\n" + ",\n".join(map(json.dumps, written)) + "\n]\n")


if __name__ == "__main__":
    for each in sys.argv[1:]:
        write(each)
