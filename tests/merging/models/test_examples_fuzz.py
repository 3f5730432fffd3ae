"""Readers of examples on changed files: they end in examples or in an InputError of one line.

`python test_examples_fuzz.py SECONDS FOLDER` goes on for longer than the test.
"""

import gzip
import io
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support.laws import settings

from flexswitch.codecs.errors import InputError
from flexswitch.merging.models.examples import first, read_examples

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=9)
    | st.sampled_from(
        [
            10**400,
            -(10**400),
            "9" * 5000,
            "\ud800",
            "\udfff\ud800",
            "\0",
            "\r",
            "\u2028",
            "\x85",
            "a" * 70_000,
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "label", "x", ""]), inner, max_size=3)
    ),
    max_leaves=6,
)
RECORDS = st.lists(
    VALUES
    | st.fixed_dictionaries(
        {"text": st.text(max_size=9) | VALUES}, optional={"label": st.integers(-1, 9) | VALUES}
    ),
    max_size=4,
)
DTYPES = ["<f4", "|u1", "<i8", "<U3", "|b1", "<c8", "|S2", "<M8[s]", "<f2"]
SUFFIXES = [".jsonl", ".jsonl.gz", ".csv", ".npz"]


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draws the suffix and the bytes of a file of examples, some of them damaged."""
    suffix = draw(st.sampled_from(SUFFIXES))
    data = _arrays(draw) if suffix == ".npz" else _lines(draw)
    if suffix == ".jsonl.gz":
        data = gzip.compress(data, 1, mtime=0)
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(data)))
        data = data[:place] + draw(st.binary(max_size=3)) + data[place + draw(st.integers(0, 9)) :]
    return suffix, data


def _lines(draw: st.DrawFn) -> bytes:
    ascii_only = draw(st.booleans())
    lines = [
        json.dumps(record, ensure_ascii=ascii_only).replace("Infinity", "1e999") for record in draw(RECORDS)
    ]
    deep = draw(st.sampled_from(["", "", "", "[" * 5000, '{"text":' * 5000]))
    text = draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n", ","])).join(
        ["text,label"] * draw(st.integers(0, 1)) + lines + [deep]
    )
    return text.encode(errors="surrogatepass")


def _arrays(draw: st.DrawFn) -> bytes:
    file, arrays = io.BytesIO(), {}
    for name in draw(st.lists(st.sampled_from(["x", "y", "z"]), max_size=3, unique=True)):
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
        arrays[name] = np.zeros(shape, draw(st.sampled_from(DTYPES)))
    np.savez(file, **arrays)  # type: ignore[arg-type]
    data = file.getvalue()
    if draw(st.booleans()):  # a header that claims another shape or type, of the same length
        data = data.replace(
            b"'shape': (",
            draw(st.sampled_from([b"'shape': (9", b"'shape': [", b"'shape': (-", b"'descr': ("])),
        )
    return data


def run(path: Path, data: bytes) -> str:
    """Returns what reading ends in."""
    path.write_bytes(data)
    ends = []
    for labelled, choose in ((True, None), (False, first(1)), (False, lambda count: np.arange(count)[::2])):
        try:
            examples = read_examples(path, labelled, choose)
            assert len(examples) <= examples.available
            for text in examples.inputs if isinstance(examples.inputs, list) else ():
                text.encode()
            ends.append("read")
        except InputError as reason:
            ends.append("refused" if len(str(reason)) < 1000 and "\n" not in str(reason) else str(reason))
    assert {*ends} <= {"read", "refused"}
    return ends[0]


@given(file=files())
@settings(
    100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], deadline=None
)
def test_any_file_is_read_or_refused(file: tuple[str, bytes], tmp_path_factory: Any) -> None:
    suffix, data = file
    run(tmp_path_factory.getbasetemp() / f"birds.test{suffix}", data)


def main(seconds: float, folder: Path) -> None:
    """Prints the number of files of each kind, what they ended in, and the findings."""
    counts: Counter[tuple[str, str]] = Counter()
    end = time.monotonic() + seconds

    @given(file=files())
    @hypothesis_settings(
        max_examples=500,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def some(file: tuple[str, bytes]) -> None:
        suffix, data = file
        if time.monotonic() > end:
            return
        try:
            found = run(folder / f"birds.test{suffix}", data)
        except Exception as error:
            found = f"FINDING {type(error).__name__}: {str(error)[:100]}"
            (folder / f"finding-{len(counts)}{suffix}").write_bytes(data)
        counts[suffix, found] += 1

    while time.monotonic() < end:
        random.seed(time.monotonic_ns())
        some()
    for (suffix, found), count in sorted(counts.items()):
        print(suffix, found, count)


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]))
