"""The targets of benchmarks/fuzz that read files which people write or download, on inputs by chance."""

import random
import sys
from functools import partial
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS / "fuzz"), str(BENCHMARKS)]

import outcomes  # noqa: E402  # found by the line above
from containers import changed_bytes  # noqa: E402
from model_readers import MODEL_READERS  # noqa: E402
from text_readers import TEXT_READERS  # noqa: E402

READERS = TEXT_READERS | MODEL_READERS
INPUTS = {"recipe": 15, "config": 30}
CAN_WARN = pytest.mark.filterwarnings("ignore")  # torch and numpy warn of damaged files


@CAN_WARN
@pytest.mark.parametrize("name", READERS)
def test_any_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    draw, reader, tally = random.Random(0), READERS[name], outcomes.Tally(name, tmp_path / "findings")
    seeds, target = list(reader.seeds(tmp_path)), partial(reader.target, work=tmp_path)
    for data in seeds:
        tally.run(target, data)
    assert tally.decoded
    with outcomes.memory_limit():
        for _ in range(INPUTS.get(name, 150)):
            data = draw.choice(seeds)
            for _ in range(draw.choice((1, 1, 2))):
                data = reader.mutate(data, draw, lambda part: changed_bytes(part, draw))
            tally.run(target, data)
    assert tally.findings == {}, "".join(file.read_text() for file in (tmp_path / "findings").glob("*.txt"))
    assert tally.refused > 5
