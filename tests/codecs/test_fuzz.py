"""The targets of benchmarks/fuzz on inputs by chance, so that they stay alive; atheris is not needed."""

import random
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from flexswitch.codecs.errors import DecodeError
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.registry import CODECS
from flexswitch.codecs.sparse import MAX_BLOCK_ENTRIES

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS / "fuzz"), str(BENCHMARKS)]

import containers  # noqa: E402  # found by the line above
import decoders  # noqa: E402
import outcomes  # noqa: E402
from outcomes import Tally  # noqa: E402


@pytest.fixture(scope="module")
def decoder_seeds() -> list[bytes]:
    return list(decoders.seeds())


@pytest.fixture(scope="module")
def container_seeds(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return list(containers.seeds(tmp_path_factory.mktemp("seeds")))


def test_the_decoders_take_all_they_begin_with(decoder_seeds: list[bytes]) -> None:
    tally = Tally("decoders")
    for data in decoder_seeds:
        tally.run(decoders.target, data)
    assert tally.counts == {"inputs": 836, "decoded": 836, "refused": 0, "findings": 0}
    assert {decoders.case_of(data).codec.name for data in decoder_seeds} == set(CODECS)


def test_any_bytes_are_decoded_or_refused(decoder_seeds: list[bytes], tmp_path: Path) -> None:
    draw, tally = random.Random(0), Tally("decoders", tmp_path)
    with outcomes.memory_limit():
        for _ in range(500):
            data = draw.choice(decoder_seeds)
            for _ in range(draw.choice((1, 1, 2, 5))):
                data = decoders.mutate(data, draw, lambda part: containers.changed_bytes(part, draw))
            tally.run(decoders.target, data)
    assert tally.findings == {}, "".join(file.read_text() for file in tmp_path.glob("*.txt"))
    assert tally.decoded > 50
    assert tally.refused > 50


def test_an_artifact_is_read_as_it_is(container_seeds: list[bytes], tmp_path: Path) -> None:
    for data in container_seeds:
        containers.target(data, tmp_path / "seed.fsw")
        again = containers.put_together(containers.take_apart(data))
        containers.target(again, tmp_path / "again.fsw")
        first, second = open_artifact(tmp_path / "seed.fsw"), open_artifact(tmp_path / "again.fsw")
        assert first.header == second.header
        for name, record in first.header.tensors.items():
            for number in range(len(record.parts)):
                assert np.array_equal(first.sparse(name, number).mask, second.sparse(name, number).mask)
        for name in first.header.exact:
            assert first.packed_exact(name) == second.packed_exact(name)
        for name in first.header.extras:
            assert first.extra(name) == second.extra(name)
    others = 5 + 3 * len(
        containers.EXACT_DTYPES
    )  # two blocks, a zero point, two for a shared vector, parts; exact ones
    assert len(container_seeds) == len(CODECS) + others


def test_any_artifact_is_decoded_or_refused(container_seeds: list[bytes], tmp_path: Path) -> None:
    draw, tally = random.Random(0), Tally("containers", tmp_path / "findings")
    target = partial(containers.target, path=tmp_path / "fuzzed.fsw")
    with outcomes.memory_limit():
        for _ in range(500):
            data = draw.choice(container_seeds)
            for _ in range(draw.choice((1, 1, 2, 5))):
                data = containers.mutate(data, draw, lambda part: containers.changed_bytes(part, draw))
            tally.run(target, data)
    assert tally.findings == {}, "".join(file.read_text() for file in (tmp_path / "findings").glob("*.txt"))
    assert tally.decoded > 50
    assert tally.refused > 50


def test_an_input_stands_for_a_block_at_most() -> None:
    draw, sizes = random.Random(0), []
    for _ in range(2000):
        head = draw.randbytes(5)
        sizes.append(np.prod(decoders.shape_of(head), dtype=np.int64))
    assert max(sizes) <= MAX_BLOCK_ENTRIES
    assert min(sizes) == 0
    assert sum(size > 10_000 for size in sizes) > 200
    assert decoders.case_of(b"").layout.entries == 0


def test_what_is_no_flexswitch_error_is_a_finding_and_its_first_input_is_kept(tmp_path: Path) -> None:
    def target(data: bytes) -> None:
        if data == b"refused":
            raise DecodeError("refused")
        if data != b"decoded":
            raise ValueError(data.decode())

    tally = Tally("some", tmp_path)
    for data in (b"decoded", b"refused", b"one", b"two"):
        tally.run(target, data)
    assert tally.counts == {"inputs": 4, "decoded": 1, "refused": 1, "findings": 1}
    ((key, count),) = tally.findings.items()
    assert key.startswith("ValueError at test_fuzz.py:")
    assert count == 2
    assert (tmp_path / "some-1.bin").read_bytes() == b"one"
    assert (tmp_path / "some-1.txt").read_text().endswith("\nValueError: one\n")


def test_an_input_that_takes_too_long_is_a_finding() -> None:
    def endless(data: bytes) -> None:
        while True:
            pass

    tally = Tally("some")
    tally.run(endless, b"", seconds=0.05)
    assert [key.split(":")[0] for key in tally.findings] == ["FindingError at test_fuzz.py"]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not limit memory so")
def test_an_input_that_takes_too_much_memory_is_a_finding() -> None:
    def greedy(data: bytes) -> None:
        np.empty(outcomes.LIMIT_BYTES + 500_000_000, np.uint8)

    tally = Tally("some")
    with outcomes.memory_limit():
        tally.run(greedy, b"")
    tally.run(greedy, b"")
    assert [key.split(":")[0] for key in tally.findings] == ["MemoryError at test_fuzz.py"]
    assert tally.counts == {"inputs": 2, "decoded": 1, "refused": 0, "findings": 1}
