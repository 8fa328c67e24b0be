"""Which chunk of a store holds a key: 20 bytes a key, so that a store of ten million rows fits in memory."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

KEY_BYTES = 16
MERGED_AT = 2**17  # keys that wait in a dict until they are sorted into the arrays
_HEXADECIMAL = re.compile(r"[0-9a-f]*")
_VALUE = np.dtype("<u8")
Numbers = npt.NDArray[np.uint32]


def packed(keys: Sequence[str]) -> bytes:
    """Return 16 bytes per key: those that a key of 32 hexadecimal digits stands for, a hash of any other key."""
    joined = "".join(keys)
    if {*map(len, keys)} == {2 * KEY_BYTES} and _HEXADECIMAL.fullmatch(joined):
        return bytes.fromhex(joined)
    return b"".join(map(_packed, keys))


def _packed(key: str) -> bytes:
    if len(key) == 2 * KEY_BYTES and _HEXADECIMAL.fullmatch(key):
        return bytes.fromhex(key)
    return hashlib.blake2b(key.encode(), digest_size=KEY_BYTES).digest()


class KeyTwice(ValueError):
    """Two chunks hold the same key."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"chunks {first} and {second} have a key in common")
        self.chunks = (first, second)


class CommittedKeys:
    """The chunk number of every key, in arrays sorted by the first half of the key, and a dict of the newest ones.

    >>> keys = CommittedKeys()
    >>> keys.add(packed(["a", "b"]), [7, 7])
    >>> keys.chunks_of(["b", "c"]).tolist()
    [7, 0]
    """

    def __init__(self) -> None:
        self._first, self._second = np.empty(0, _VALUE), np.empty(0, _VALUE)
        self._chunk: Numbers = np.empty(0, np.uint32)
        self._longest = 1  # of the runs of keys with an equal first half
        self._newest: dict[bytes, int] = {}

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._chunk) + len(self._newest)

    def chunks_of(self, keys: Sequence[str]) -> Numbers:
        """Return the number of each key's chunk; 0 where there is none."""
        wanted = packed(keys)
        found = self._in_arrays(wanted)
        if self._newest:
            for place, value in enumerate(_split(wanted)):
                found[place] = self._newest.get(value, found[place])
        return found

    def add(self, values: bytes, chunks: Sequence[int] | Numbers) -> None:
        """Add packed keys with their chunks' numbers; raises KeyTwice if a key is there already."""
        numbers = np.asarray(chunks, np.uint32)
        if len(numbers) + len(self._newest) > MERGED_AT:
            self._merge(b"".join([*self._newest, values]), np.concatenate([self._newest_chunks(), numbers]))
            self._newest = {}
            return
        known = self._in_arrays(values)
        for value, before, number in zip(_split(values), known.tolist(), numbers.tolist(), strict=True):
            before = before or self._newest.get(value, 0)
            if before:
                raise KeyTwice(before, number)
            self._newest[value] = number

    def of_chunks(self, first: int, last: int) -> bytes:
        """Return the packed keys of chunks `first` to `last`, in the order of the chunks."""
        here = (self._chunk >= first) & (self._chunk <= last)
        newest = [(value, number) for value, number in self._newest.items() if first <= number <= last]
        values = np.stack([self._first[here], self._second[here]], axis=1)
        added = np.frombuffer(b"".join(value for value, _ in newest), _VALUE).reshape(-1, 2)
        chunks = np.concatenate([self._chunk[here], np.array([number for _, number in newest], np.uint32)])
        order = np.argsort(chunks, kind="stable")
        return np.concatenate([values, added])[order].tobytes()

    def _newest_chunks(self) -> Numbers:
        return np.fromiter(self._newest.values(), np.uint32, len(self._newest))

    def _in_arrays(self, values: bytes) -> Numbers:
        first, second = _halves(values)
        found = np.zeros(len(first), np.uint32)
        place = np.searchsorted(self._first, first)
        for step in range(self._longest if len(self._first) else 0):
            at = np.minimum(place + step, len(self._first) - 1)
            same = (self._first[at] == first) & (self._second[at] == second)
            found[same] = self._chunk[at[same]]
        return found

    def _merge(self, values: bytes, chunks: Numbers) -> None:
        first, second = _halves(values)
        order = np.argsort(first)
        first, second, chunks = first[order], second[order], chunks[order]
        if len(self._first):
            place = np.searchsorted(self._first, first)
            first = np.insert(self._first, place, first)
            second = np.insert(self._second, place, second)
            chunks = np.insert(self._chunk, place, chunks)
        self._longest = _longest_run(first, second, chunks)
        self._first, self._second, self._chunk = first, second, chunks


def _halves(values: bytes) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    halves = np.frombuffer(values, _VALUE).reshape(-1, 2)
    return np.ascontiguousarray(halves[:, 0]), np.ascontiguousarray(halves[:, 1])


def _split(values: bytes) -> list[bytes]:
    return [values[start : start + KEY_BYTES] for start in range(0, len(values), KEY_BYTES)]


def _longest_run(first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64], chunks: Numbers) -> int:
    """Return how many keys share a first half at most; raises KeyTwice if two of them share both halves."""
    longest, start, before = 1, 0, -2
    for place in np.flatnonzero(first[1:] == first[:-1]).tolist():
        start, before = (start if place == before + 1 else place), place
        for other in range(start, place + 1):
            if second[other] == second[place + 1]:
                raise KeyTwice(*sorted((int(chunks[other]), int(chunks[place + 1]))))
        longest = max(longest, place + 2 - start)
    return longest
