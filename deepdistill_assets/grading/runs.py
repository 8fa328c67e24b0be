"""Reduces score rows to one row per query and teacher, by runs: rows of one query lie together, so no hash table."""

from collections.abc import Sequence

import numpy as np
import polars as pl

KEYS = ("query_id", "teacher")
COUNTS = ("responses", "n", "n_passed")
NUMBERS = ("mean", "squares", "max_score")
FLAGS = ("unverifiable", "unresolved")


def reduce_scores(scores: pl.DataFrame) -> pl.DataFrame:
    """Return statistics per (query_id, teacher) of the rows of `counted_scores`.

    Rows of one query and teacher need not lie together; where they do (as partitions are written), nothing is sorted,
    and where the ids ascend besides, nothing is hashed.

    Returns:
        columns query_id, teacher, responses, n, n_passed, mean, squares (sum of squared deviations from the mean),
        max_score, unverifiable, unresolved. `mean`, `squares` and `max_score` are NaN where n is 0.
    """
    teacher = scores["teacher"]
    if scores.is_empty() or (teacher == teacher[0]).all():  # a partition has one, and texts are dear to move
        starts = _run_starts(scores, KEYS[:1])
        keys = scores.select(pl.col("query_id").gather(starts), pl.lit(teacher.head(1)).first().alias("teacher"))
        distinct = _distinct(keys["query_id"])
    else:
        starts = _run_starts(scores, KEYS)
        keys = scores.select(pl.col(KEYS).gather(starts))
        distinct = all(_distinct(part["query_id"]) for part in keys.partition_by("teacher"))
    if not distinct:
        return reduce_scores(scores.sort(KEYS, maintain_order=True))
    return keys.with_columns(_statistics(scores, starts))


def _run_starts(scores: pl.DataFrame, names: Sequence[str]) -> np.ndarray:
    """Return the first row of each run of equal values of `names`."""
    changed = np.zeros(scores.height, np.bool_)
    changed[:1] = True
    for name in names:
        values = scores[name]
        changed[1:] |= values.slice(1).ne_missing(values.slice(0, max(0, len(values) - 1))).to_numpy()
    return np.flatnonzero(changed)


def _distinct(ids: pl.Series) -> bool:
    ascending = (ids.slice(1) > ids.slice(0, max(0, len(ids) - 1))).all()
    return bool(ascending) or ids.n_unique() == len(ids)


def _statistics(scores: pl.DataFrame, starts: np.ndarray) -> list[pl.Series]:
    from deepdistill_assets.grading import kernels

    runs = len(starts)
    counts, numbers, flags = np.empty((3, runs), np.int64), np.empty((3, runs)), np.zeros((2, runs), np.bool_)
    columns = [scores[name].to_numpy() for name in ("score", "counted", "passed", *FLAGS)]
    kernels.run_statistics(starts, *columns, counts, numbers, flags)
    values = zip((*COUNTS, *NUMBERS, *FLAGS), (*counts, *numbers, *flags), strict=True)
    return [pl.Series(name, column) for name, column in values]
