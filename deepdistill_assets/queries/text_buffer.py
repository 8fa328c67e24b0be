"""Many texts as one buffer of bytes, and kernels over it in as many threads as there are cores."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl


@dataclass(frozen=True)
class TextBuffer:
    """Texts in UTF-8: text i is `data[offsets[i]:offsets[i + 1]]`; both arrays are only read, mostly Arrow's memory."""

    data: np.ndarray
    offsets: np.ndarray

    @staticmethod
    def of(texts: pl.Series) -> "TextBuffer":
        """Return the buffer of a series without nulls."""
        if texts.null_count():
            raise ValueError(f"{texts.null_count()} texts of {texts.name!r} are null")
        arrow = texts.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()).cast("large_string")
        _, offsets, data = arrow.buffers() if len(arrow) else (None, bytes(8), b"")
        starts = np.frombuffer(offsets, np.int64)[arrow.offset : arrow.offset + len(arrow) + 1]
        return TextBuffer(np.frombuffer(data or b"", np.uint8), starts)

    @staticmethod
    def joined(parts: "Iterable[TextBuffer]") -> "TextBuffer":
        """Return the texts of all parts, one after the other; a part is copied and let go before the next is asked."""
        data, lengths = bytearray(), [np.zeros(1, np.int64)]  # grows in place
        for part in parts:
            data += part.data[part.offsets[0] : part.offsets[-1]].data
            lengths.append(np.diff(part.offsets))
        return TextBuffer(np.frombuffer(data, np.uint8), np.cumsum(np.concatenate(lengths)))

    def series(self, name: str = "") -> pl.Series:
        """Return the texts as a polars series that shares the bytes."""
        import pyarrow as pa

        arrow = pa.LargeStringArray.from_buffers(len(self), pa.py_buffer(self.offsets), pa.py_buffer(self.data))
        return pl.Series(name, arrow)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def part(self, start: int, end: int) -> "TextBuffer":
        """Return texts start..end; offsets stay absolute, no byte is copied."""
        return TextBuffer(self.data, self.offsets[start : end + 1])


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)), "kernels")


def in_threads(count: int, work: Callable[[int, int], None]) -> None:
    """Call `work(start, end)` on consecutive ranges that cover 0..count, one thread per core."""
    parts = min(len(os.sched_getaffinity(0)), count // 1024)
    if parts < 2:
        return work(0, count)
    bounds = np.linspace(0, count, parts + 1).astype(int)
    list(_pool().map(work, bounds[:-1], bounds[1:]))
