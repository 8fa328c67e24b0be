"""Repeated n-grams (DeepDistill section 2.5: 20-token strings that occur more than 20 times).

A token is a word between ASCII white space: the paper's tokeniser is not known, and texts of all teachers are to be
counted alike. Occurrences may overlap: a loop of p <= n tokens over m tokens counts about m / p times. Text without
white space (Chinese) makes few, long words and is seldom flagged.
"""

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import polars as pl

from deepdistill_assets.tables import FREQUENT_NGRAM, conform, empty

MAX_LIMIT = 65_000  # the sketch counts in 16 bits
EXAMPLE_CHARACTERS = 300


def ngrams_of(text: str, size: int) -> Counter[tuple[bytes, ...]]:
    """Return how often each n-gram occurs in a text: the slow reference of the compiled counters below."""
    words = text.encode().split()
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def max_repeats(texts: pl.Series, size: int) -> pl.Series:
    """Return, per text, how often its most frequent n-gram occurs in it (0 where it has none)."""
    from deepdistill_assets.quality import kernels

    return pl.Series("max_repeated_ngram", kernels.max_repeats(*_buffer(texts), size), pl.Int64)


def max_token_repeats(token_ids: pl.Series, size: int) -> pl.Series:
    """Return the same of responses that are there as token ids (a list of integers each), as a sampler gives them."""
    from deepdistill_assets.quality import kernels

    offsets = np.concatenate([[0], token_ids.list.len().cast(pl.Int64).cum_sum().to_numpy()])
    tokens = token_ids.explode().drop_nulls().cast(pl.UInt32).to_numpy()  # an empty list explodes to a null
    return pl.Series("max_repeated_ngram", kernels.max_token_repeats(tokens, offsets, size), pl.Int64)


def highest_corpus_counts(texts: pl.Series, frequent: pl.DataFrame, size: int) -> pl.Series:
    """Return, per text, the highest corpus count of its frequent n-grams (0 where none of them is frequent)."""
    from deepdistill_assets.quality import kernels

    hashes, counts = frequent["ngram_hash"].to_numpy(), frequent["count"].to_numpy()
    return pl.Series("max_repeated_ngram", kernels.highest_counts(*_buffer(texts), size, hashes, counts), pl.Int64)


def frequent_ngrams(
    batches: Callable[[], Iterable[pl.Series]], size: int, max_count: int, sketch_slots: int
) -> pl.DataFrame:
    """Return the FREQUENT_NGRAM rows of a corpus, sorted by hash: n-grams that occur more than `max_count` times.

    Reads the corpus twice. The first time it counts hashes in a table of fixed size, whose slots are upper bounds; the
    second time it counts exactly only those n-grams whose slot exceeds the limit. Memory: 2 bytes per slot, one batch,
    and the few n-grams that may be frequent. Exact up to collisions of 64-bit hashes.

    Args:
        batches: gives the texts anew at each call, in the same order.
        size: words per n-gram.
        max_count: the limit, at most `MAX_LIMIT`.
        sketch_slots: a power of two; about the number of n-grams or more keeps the second count small.
    """
    from deepdistill_assets.quality import kernels

    if not 0 < max_count <= MAX_LIMIT:
        raise ValueError(f"ngram_max_count {max_count} is not between 1 and {MAX_LIMIT}")
    sketch = np.zeros(sketch_slots, np.uint16)
    for texts in batches():
        kernels.add_to_sketch(*_buffer(texts), size, sketch)
    found = empty(FREQUENT_NGRAM)
    for texts in batches():
        data, offsets = _buffer(texts)
        hashes, starts = kernels.occurrences(data, offsets, size, sketch, max_count)
        found = pl.concat([found, _counted(data, hashes, starts, size)])
        found = found.group_by("ngram_hash", maintain_order=True).agg(pl.col("count").sum(), pl.col("example").first())
    return conform(found.filter(pl.col("count") > max_count).sort("ngram_hash"), FREQUENT_NGRAM)


def _counted(data: np.ndarray, hashes: np.ndarray, starts: np.ndarray, size: int) -> pl.DataFrame:
    unique, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    examples = [_example(data, int(start), size) for start in starts[first]]
    return pl.DataFrame({"ngram_hash": unique, "count": counts, "example": examples}, schema=FREQUENT_NGRAM)


def _example(data: np.ndarray, start: int, size: int) -> str:
    near = data[start : start + 4 * EXAMPLE_CHARACTERS].tobytes().decode(errors="ignore")
    return " ".join(near.split()[:size])[:EXAMPLE_CHARACTERS]


def sketch_slots(words: int) -> int:
    """Return the slots for a corpus of so many words: a power of two from 2**16 to 2**30 (2 GB)."""
    return 1 << min(max(int(words).bit_length(), 16), 30)


def _buffer(texts: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    arrow = texts.fill_null("").rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()).cast("large_string")
    if not len(arrow):
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, data = arrow.buffers()
    starts = np.frombuffer(offsets, np.int64)[arrow.offset : arrow.offset + len(arrow) + 1]
    return np.frombuffer(data or b"", np.uint8), starts
