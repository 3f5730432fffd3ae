"""Writers of examples files in every format, for the tests of reading them."""

import csv
import gzip
import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet

TEXTS = ["a plain text", 'with "quotes", commas\nand a line break', "ünïcödé 🐦\u2028", "  "]
LABELS = [2, 0, 1, 0]
RECORDS = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]


def jsonl(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def npz(**arrays):
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    return data.getvalue()


def parquet(records, schema=None):
    data = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records, schema), data)
    return data.getvalue()


def table(records):
    data = io.StringIO(newline="")
    writer = csv.DictWriter(data, list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return data.getvalue().encode()


WRITERS = {
    ".jsonl": jsonl,
    ".jsonl.gz": lambda records: gzip.compress(jsonl(records), mtime=0),
    ".csv": table,
    ".parquet": parquet,
}


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path
