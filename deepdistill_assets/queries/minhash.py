"""MinHash of queries: the signatures of datasketch 2.0's default scheme, bit for bit, by a compiled kernel."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial

import numpy as np
import polars as pl

from deepdistill_assets.queries.text_buffer import TextBuffer, in_threads
from deepdistill_assets.queries.text_normalisation import normalised_buffer
from deepdistill_assets.recipe import DIFFICULTIES, Deduplication
from deepdistill_assets.tables import QUERY_SIGNATURE, conform

BLOCK = 16_384  # rows; small enough for the allocator to use the same memory again
_READ = ("query_id", "source", "query_text", "reference_answer", "test_cases", "existing_responses")
_ANSWERED = {
    "has_reference": pl.any_horizontal(pl.col("reference_answer", "test_cases").fill_null("").str.len_bytes() > 0),
    "has_responses": pl.col("existing_responses").fill_null(0) > 0,
}
MapBlocks = Callable[[Callable[[TextBuffer], pl.DataFrame], Iterable[TextBuffer]], Iterable[pl.DataFrame]]


@lru_cache(maxsize=4)
def permutations(count: int) -> np.ndarray:
    """Return datasketch's affine32 permutations, uint32 (2, count): the factors and the summands."""
    from datasketch import MinHash

    return np.ascontiguousarray(MinHash(num_perm=count).permutations)


def query_signatures(
    queries: pl.LazyFrame,
    priority: int,
    settings: Deduplication,
    labels: pl.LazyFrame | None = None,
    map_blocks: MapBlocks = map,
) -> Iterator[pl.DataFrame]:
    """Yield what duplicates are found by, block by block: one row of `QUERY_SIGNATURE` per query, in their order.

    Args:
        queries: columns of `QUERY`, one source.
        priority: the source's; the lower one survives.
        settings: number of permutations, bands, rows and shingle words count here.
        labels: columns query_id and label_difficulty of the same source.
        map_blocks: calls a function for each block of texts; the results come in order.
    """
    difficulty, start = _difficulties(queries, labels), 0
    waiting = deque[pl.DataFrame]()  # what else is known of the blocks whose keys are being computed

    def texts() -> Iterator[TextBuffer]:
        # Columns as they are: with expressions in the query, polars would hold many more blocks.
        for block in queries.select(_READ).collect_batches(chunk_size=BLOCK, engine="streaming"):
            waiting.append(block.select("query_id", "source", **_ANSWERED, priority=pl.lit(priority)))
            # Arrays, which travel between processes as they are; a series would be encoded.
            yield TextBuffer.of(block["query_text"].fill_null(""))

    for keys in map_blocks(partial(_keys, settings=settings), texts()):
        block = waiting.popleft()
        levels = pl.lit(0) if difficulty is None else difficulty[start : start + block.height]
        yield conform(block.with_columns(difficulty=levels).hstack(keys), QUERY_SIGNATURE)
        start += block.height


def _difficulties(queries: pl.LazyFrame, labels: pl.LazyFrame | None) -> pl.Series | None:
    """Return the level of each query, int8, 0 where it has none; None without labels."""
    if labels is None:
        return None
    levels = {name: level for level, name in enumerate(DIFFICULTIES, start=1)}
    level = pl.col("label_difficulty").replace_strict(levels, default=0, return_dtype=pl.Int8)
    known = labels.select("query_id", difficulty=level).filter(pl.col("difficulty") > 0).unique("query_id")
    joined = queries.select("query_id").join(known, on="query_id", how="left", maintain_order="left")
    return joined.select(pl.col("difficulty").fill_null(0)).collect(engine="streaming").to_series()


def _keys(texts: TextBuffer, settings: Deduplication) -> pl.DataFrame:
    """Return what is computed from the texts alone; only this goes to other processes and back."""
    buffer = normalised_buffer(texts.series())
    numbers, _ = number_keys(buffer)
    return pl.DataFrame(
        {
            "characters": character_counts(buffer),  # white space makes no text longer
            "exact_hash": exact_hashes(buffer),
            "number_key": numbers,
            "band_keys": pl.Series(band_keys(buffer, numbers, settings)),
        }
    )


def exact_hashes(buffer: TextBuffer) -> np.ndarray:
    """Return xxHash64 (seed 0) of each text, padded with zeros to a multiple of eight bytes, uint64."""
    from deepdistill_assets.queries import kernels

    out = np.empty(len(buffer), np.uint64)
    in_threads(len(buffer), lambda start, end: kernels.text_hashes(*_arrays(buffer, start, end), out[start:end]))
    return out


def character_counts(buffer: TextBuffer) -> np.ndarray:
    """Return the number of characters of each text, int64."""
    from deepdistill_assets.queries import kernels

    out = np.empty(len(buffer), np.int64)
    in_threads(len(buffer), lambda start, end: kernels.character_counts(*_arrays(buffer, start, end), out[start:end]))
    return out


def signatures(buffer: TextBuffer, num_permutations: int, shingle_words: int) -> np.ndarray:
    """Return MinHash signatures, uint32 (texts, permutations).

    A row is what `datasketch.MinHash(num_permutations, hashfunc=f)` holds after an update with each shingle of the
    text, where f is the lower half of xxHash64 of the shingle padded with zeros to a multiple of eight bytes;
    `MinHash(hashvalues=row, scheme="affine32")` makes it such an object.
    """
    from deepdistill_assets.queries import kernels

    a, b = permutations(num_permutations)
    out = np.empty((len(buffer), num_permutations), np.uint32)
    in_threads(
        len(buffer),
        lambda start, end: kernels.signatures(*_arrays(buffer, start, end), shingle_words, a, b, out[start:end]),
    )
    return out


def number_keys(buffer: TextBuffer) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash of the sequence of numbers of each normalised text (uint64), and how many there are (int64)."""
    from deepdistill_assets.queries import kernels

    keys, counts = np.empty(len(buffer), np.uint64), np.empty(len(buffer), np.int64)
    in_threads(
        len(buffer),
        lambda start, end: kernels.number_keys(*_arrays(buffer, start, end), keys[start:end], counts[start:end]),
    )
    return keys, counts


def band_keys(buffer: TextBuffer, numbers: np.ndarray, settings: Deduplication) -> np.ndarray:
    """Return the keys of the LSH bands, uint32 (texts, bands): `rows` values of the signature, and the numbers, hashed.

    Texts whose `numbers` (see `number_keys`) differ share a key only by chance: a key finds candidates, the texts
    decide, so 32 bits are enough.
    """
    from deepdistill_assets.queries import kernels

    if settings.bands * settings.rows > settings.num_permutations:
        raise ValueError(f"{settings.bands} bands of {settings.rows} need more than {settings.num_permutations} values")
    a, b = permutations(settings.num_permutations)
    out = np.empty((len(buffer), settings.bands), np.uint32)
    words, rows = settings.shingle_words, settings.rows

    def work(start: int, end: int) -> None:
        kernels.band_keys(*_arrays(buffer, start, end), numbers[start:end], words, a, b, rows, out[start:end])

    in_threads(len(buffer), work)
    return out


def jaccards(buffer: TextBuffer, left: np.ndarray, right: np.ndarray, shingle_words: int) -> np.ndarray:
    """Return the exact Jaccard similarity of the shingle sets of texts left[i] and right[i], float64."""
    from deepdistill_assets.queries import kernels

    out = np.empty(len(left))
    in_threads(
        len(left),
        lambda start, end: kernels.jaccards(
            buffer.data, buffer.offsets, shingle_words, left[start:end], right[start:end], out[start:end]
        ),
    )
    return out


def _arrays(buffer: TextBuffer, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    part = buffer.part(start, end)
    return part.data, part.offsets
