"""The table of an artifact: the records of its tensors, compressed at the end of the file."""

from flexswitch.codecs.errors import ArtifactError, DecodeError
from flexswitch.codecs.format.documents import validated
from flexswitch.codecs.format.records import (
    DATA,
    TABLE,
    ArtifactDocument,
    TensorTable,
    crc32,
)
from flexswitch.codecs.format.safetensors_file import Header, RangeReader
from flexswitch.codecs.zstd import zstd_decompress

# The table of a model of 10^11 entries that did not change; more is an attack on memory and time.
_FREE_TABLE_BYTES, _TABLE_GROWTH = 8 << 20, 4


def read_table(file: RangeReader, document: ArtifactDocument, stored: Header) -> TensorTable:
    """Returns an artifact's table. Raises: ArtifactError if it is damaged or does not fit the file."""
    path = file.path
    if set(stored.tensors) != {DATA, TABLE}:
        raise ArtifactError(
            f"{path}: holds the tensors {sorted(stored.tensors)}, expected {[DATA, TABLE]}; it is damaged"
        )
    table, data = stored.tensors[TABLE], stored.tensors[DATA]
    for name, tensor in stored.tensors.items():
        if tensor.dtype != "U8" or len(tensor.shape) != 1:
            raise ArtifactError(
                f"{path}: its tensor '{name}' is {tensor.dtype} {list(tensor.shape)}, expected U8 of one "
                "dimension"
            )
    frame = file.read(table.offset, table.size).tobytes()
    if table.size != document.table.size or crc32(frame) != document.table.crc32:
        raise ArtifactError(f"{path}: its table of tensors is damaged: its size or checksum does not fit")
    try:
        text = zstd_decompress(frame, most_table_bytes(data.size + table.size)).decode()
    except (DecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: its table of tensors does not decode: {error}") from error
    found = validated(TensorTable, path, text)
    listed = sum(extra.size for extra in found.extras.values())
    listed += sum(record.whole_size for record in found.tensors.values())
    listed += sum(record.size for record in found.exact.values())
    if listed != data.size:
        raise ArtifactError(
            f"{path}: its table lists {listed:,} bytes of data, and it holds {data.size:,}; it is damaged"
        )
    return found


def most_table_bytes(stored_bytes: int) -> int:
    """Returns the size of the largest JSON table, given the stored bytes of an artifact's data and table."""
    return _FREE_TABLE_BYTES + _TABLE_GROWTH * stored_bytes
