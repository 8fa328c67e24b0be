"""Candidate pairs of duplicates: texts that share a MinHash band, and vectors that lie close together.

Texts are numbered in the order of the survivor policy, so that the smaller number of a pair is the better survivor.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from deepdistill_assets.queries.vectors import matrix
from deepdistill_resources.compute import Compute, LocalCompute, Log, Worker
from deepdistill_resources.lake import Lake

TEXT_BITS = 32  # a packed pair is two numbers of so many bits
BATCH = 65_536  # rows of band keys read at a time
VECTOR_BLOCK = 2048  # rows of one block of the similarity matrix
HELD_BYTES = 2**29  # of band keys, by one worker
READINGS = 4  # of the table, at least: so many parts of its band keys are held one after the other
WORK, SECONDS_TO_KEEP = "_work/candidates", 7 * 86_400.0  # what a killed process left there is removed later


@dataclass(frozen=True)
class CandidateSearch:
    """Finds near candidates band by band, on all workers; what they read lies in the lake, what they return is small.

    Args:
        lake: shared by the workers; only for workers in other processes.
    """

    compute: Compute = field(default_factory=LocalCompute)
    lake: Lake | None = None
    log: Log | None = None

    def pairs(self, signatures: pl.LazyFrame, texts: np.ndarray) -> np.ndarray:
        """Return the packed pairs of all bands, ascending, uint64; see `near_candidates`.

        Args:
            signatures: column band_keys of `QUERY_SIGNATURE`.
            texts: number of each row's text, int64; negative: the row is left out.
        """
        edges = np.empty(0, np.uint64)
        if not len(texts):
            return edges
        with self._shared(texts) as numbers:
            opener = OpenFinder(signatures, numbers)
            for outcome in self.compute.map_batches(
                self._groups(signatures, len(texts)), opener, name="bands", ordered=False, log=self.log
            ):
                edges = np.union1d(edges, outcome.value())
        return edges

    def _groups(self, signatures: pl.LazyFrame, rows: int) -> list[range]:
        """Return the bands of each batch: as many as one worker may hold at once."""
        bands = signatures.select(pl.col("band_keys").list.len()).head(1).collect().item()
        size = max(1, min(-(-bands // max(READINGS, self.compute.workers())), HELD_BYTES // (4 * rows)))
        return [range(start, min(start + size, bands)) for start in range(0, bands, size)]

    @contextmanager
    def _shared(self, texts: np.ndarray) -> Iterator[np.ndarray | pl.LazyFrame]:
        """Yield numbers as workers can have them: here as they are, elsewhere as a table in the lake."""
        if self.lake is None or not self.compute.spreads():
            yield texts
            return
        for left in self.lake.list_old_files(WORK, SECONDS_TO_KEEP):
            self.lake.delete(left)
        path = f"{WORK}/{secrets.token_hex(8)}.parquet"
        self.lake.write_table(path, pl.DataFrame({"text": texts}))
        try:
            yield self.lake.scan_tables([path])
        finally:
            self.lake.delete(path)


@dataclass(frozen=True)
class OpenFinder:
    """Opens a finder wherever it is called; tables are read there."""

    signatures: pl.LazyFrame
    texts: np.ndarray | pl.LazyFrame

    def __call__(self) -> "Finder":
        """Return a worker."""
        texts = self.texts
        return Finder(self.signatures, texts if isinstance(texts, np.ndarray) else texts.collect()["text"].to_numpy())


class Finder(Worker[range, np.ndarray]):
    """Finds the pairs of some bands; holds the number of every text, and the keys of these bands."""

    def __init__(self, signatures: pl.LazyFrame, texts: np.ndarray) -> None:
        self.signatures, self.texts = signatures, texts

    def __call__(self, batch: range) -> np.ndarray:
        """Return packed pairs."""
        return near_candidates(stored_band_keys(self.signatures, len(self.texts), batch), self.texts)


def stored_band_keys(signatures: pl.LazyFrame, rows: int, bands: range) -> np.ndarray:
    """Return some band keys of all rows, uint32 (bands, rows): the one thing that is held of every query."""
    out, start = np.empty((len(bands), rows), np.uint32), 0
    for batch in signatures.select("band_keys").collect_batches(chunk_size=BATCH, engine="streaming"):
        keys = matrix(batch["band_keys"])
        out[:, start : start + len(keys)] = keys[:, bands.start : bands.stop].T
        start += len(keys)
    return out


def near_candidates(band_keys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return packed pairs (see `unpacked`) of each text with the first one of every bucket it is in.

    Per bucket only the pairs with its first text: templated texts make huge buckets.

    Args:
        band_keys: uint32 (bands, rows).
        numbers: number of each row's text, int64 (rows); negative: the row is left out.
    """
    from deepdistill_assets.queries import kernels

    rows = len(numbers)
    if rows >> TEXT_BITS:
        raise ValueError(f"{rows:,} texts are more than {1 << TEXT_BITS:,}")
    words = 1 << min(26, (rows // 4).bit_length())  # 16 to 32 bits for each key
    once, twice, packed = np.empty(words, np.uint64), np.empty(words, np.uint64), np.empty(rows, np.uint64)
    room, edges = np.empty(rows, np.uint64), np.empty(0, np.uint64)
    for keys in band_keys:
        repeated = packed[: kernels.repeated_keys(keys, numbers, once, twice, packed)]
        repeated.sort()
        found = kernels.star_edges(repeated, room)
        edges = np.union1d(edges, room[:found])
    return edges


def unpacked(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both texts of packed pairs `first << 32 | other`, int64."""
    low = np.uint64((1 << TEXT_BITS) - 1)
    return (pairs >> np.uint64(TEXT_BITS)).astype(np.int64), (pairs & low).astype(np.int64)


def packed(first: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return pairs as one number each, uint64."""
    return first.astype(np.uint64) << np.uint64(TEXT_BITS) | other.astype(np.uint64)


def semantic_candidates(vectors: np.ndarray, number_keys: np.ndarray, threshold: float) -> np.ndarray:
    """Return the packed pairs whose cosine is above the threshold and whose numbers are equal.

    The upper triangle of the similarity matrix, block by block: exact, and quadratic in the number of texts.

    Args:
        vectors: unit vectors, float32 (texts, dimension).
        number_keys: hash of the number sequence of each text.
        threshold: cosine.
    """
    found = [np.empty(0, np.uint64)]
    for start in range(0, len(vectors), VECTOR_BLOCK):
        block = vectors[start : start + VECTOR_BLOCK]
        for column in range(start, len(vectors), VECTOR_BLOCK):
            left, right = np.nonzero(block @ vectors[column : column + VECTOR_BLOCK].T > threshold)
            left, right = left + start, right + column
            kept = (left < right) & (number_keys[left] == number_keys[right])
            found.append(packed(left[kept], right[kept]))
    return np.unique(np.concatenate(found))
