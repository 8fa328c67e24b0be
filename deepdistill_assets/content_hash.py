"""A hash of what tables hold, whatever lies behind: blocks, buffers and the bytes under a null do not count."""

import hashlib
from collections.abc import Iterable

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc


class ContentHash:
    """SHA-256 of a table that is given block by block; equal rows in the same order make equal digests.

    Arrow lets equal columns differ in memory (how strings share buffers, what is left under a null, where a block
    ends), so each column is read as streams of plain numbers and bytes, one for every level of nesting.
    """

    def __init__(self) -> None:
        self._streams: dict[str, hashlib._Hash] = {}
        self._schema = ""

    def add(self, block: pl.DataFrame) -> None:
        """Append rows; raises ValueError if they have another schema."""
        schema = str(block.schema)
        if self._schema not in ("", schema):
            raise ValueError(f"a block has schema {schema}, those before have {self._schema}")
        self._schema = schema
        for name in block.columns:
            self._column(name, block[name].rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()))

    def digest(self) -> bytes:
        """Return the hash of schema and rows, 32 bytes."""
        total = hashlib.sha256(self._schema.encode())
        for path, stream in sorted(self._streams.items()):
            total.update(path.encode() + b"\0" + stream.digest())
        return total.digest()

    def _column(self, path: str, array: pa.Array) -> None:
        kind = array.type
        if pa.types.is_dictionary(kind):
            return self._column(path, array.dictionary_decode())
        self._numbers(f"{path}\0valid", array.is_valid())
        if pa.types.is_null(kind):
            return None
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            self._numbers(f"{path}\0length", pc.list_value_length(array))
            return self._column(f"{path}\0item", array.flatten())  # nulls have no items
        if pa.types.is_struct(kind):
            for field, values in zip(kind, array.flatten(), strict=True):
                self._column(f"{path}\0{field.name}", values)
            return None
        if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
            self._numbers(f"{path}\0length", pc.binary_length(array))
            return self._stream(f"{path}\0bytes", _joined_bytes(array))
        if pa.types.is_temporal(kind):
            array = array.view(pa.int64() if kind.bit_width == 64 else pa.int32())
        return self._numbers(path, array)

    def _numbers(self, path: str, array: pa.Array) -> None:
        if array.null_count:
            array = pc.fill_null(array, pa.scalar(0).cast(array.type))
        values = array.to_numpy(zero_copy_only=False)
        if values.dtype == object:
            raise TypeError(f"no content hash of {array.type}")
        self._stream(path, memoryview(values))

    def _stream(self, path: str, content: bytes | pa.Buffer | memoryview) -> None:
        self._streams.setdefault(path, hashlib.sha256()).update(content)


def content_digest(blocks: Iterable[pl.DataFrame]) -> bytes:
    """Return the digest of a table in blocks."""
    found = ContentHash()
    for block in blocks:
        found.add(block)
    return found.digest()


def _joined_bytes(array: pa.Array) -> pa.Buffer | bytes:
    """Return the bytes of all texts of a large string or binary array, without what is left under a null."""
    whole = array.cast(pa.large_binary())
    whole = whole.drop_null() if whole.null_count else whole
    if not len(whole):
        return b""
    offsets = pa.Array.from_buffers(pa.int64(), len(whole) + 1, [None, whole.buffers()[1]], offset=whole.offset)
    start, end = offsets[0].as_py(), offsets[-1].as_py()
    return whole.buffers()[2].slice(start, end - start) if end > start else b""
