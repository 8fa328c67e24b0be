"""Grades: pass rate and coefficient of variation of each query under each teacher (DeepDistill section 3)."""

import polars as pl

from deepdistill_assets.scores import CountingRules
from deepdistill_assets.tables import GRADE, conform

GRADED = ("graded", "early_stopped")


def grade(
    queries: pl.DataFrame, statistics: pl.DataFrame, rules: CountingRules, ddof: int, interval: float
) -> pl.DataFrame:
    """Return one GRADE row per query and teacher, in the order of the queries, levels still null.

    `grade_status` is `graded`; `early_stopped` (graded, but on fewer passes: not comparable); `unverifiable`;
    `incomplete` (a response is missing or unresolved); `nothing_counted` (every response was left out). Only the first
    two carry numbers. CV is null, with its reason, where the mean is 0 or one response leaves no sample deviation.

    Args:
        queries: columns query_id, source, category.
        statistics: rows of `reduce_scores`, of all teachers.
        rules: `rules.passes` names the teachers that answer these queries.
        ddof: 0 divides by n (equation 6 as printed), 1 by n - 1 (its worked examples).
        interval: probability of the pass rate's credible interval.
    """
    grid = queries.select("query_id", "source", "category").join(_teachers(rules), how="cross")
    rows = grid.join(statistics, on=["query_id", "teacher"], how="left", maintain_order="left")
    rows = rows.with_columns(pl.col("responses", "n", "n_passed").fill_null(0)).with_columns(_status(rules))
    rows = rows.with_columns(_numbers(ddof)).join(
        credible_intervals(rows, interval), on=["n", "n_passed"], how="left", maintain_order="left"
    )
    graded = pl.col("grade_status").is_in(GRADED)
    rows = rows.with_columns(
        pl.when(graded).then(pl.col(_NUMBERS)),
        pl.when(~graded)
        .then("grade_status")
        .when(pl.col("mean") == 0)
        .then(pl.lit("mean_is_zero"))
        .when(pl.col("n") <= ddof)
        .then(pl.lit("single_response"))
        .alias("cv_null_reason"),
    )
    return conform(rows.select([name for name in GRADE if name in rows.columns]), GRADE)


_NUMBERS = ("pass_rate", "mean", "std", "cv", "max_score", "interval_low", "interval_high")


def _teachers(rules: CountingRules) -> pl.DataFrame:
    return pl.DataFrame(list(rules.passes.items()), schema={"teacher": pl.String, "passes": pl.Int64}, orient="row")


def _status(rules: CountingRules) -> pl.Expr:
    short = pl.col("responses") < pl.col("passes")
    stopped = short & (pl.col("n_passed") > 0) if rules.early_stopping else pl.lit(False)
    return (
        pl.when(pl.col("unverifiable").fill_null(False))
        .then(pl.lit("unverifiable"))
        .when(pl.col("unresolved").fill_null(False) | (short & ~stopped))
        .then(pl.lit("incomplete"))
        .when(pl.col("n") == 0)
        .then(pl.lit("nothing_counted"))
        .when(stopped)
        .then(pl.lit("early_stopped"))
        .otherwise(pl.lit("graded"))
        .alias("grade_status")
    )


def _numbers(ddof: int) -> list[pl.Expr]:
    n, mean = pl.col("n"), pl.col("mean")
    std = pl.when(n > ddof).then((pl.col("squares") / (n - ddof)).sqrt())
    return [
        pl.when(n > 0).then(pl.col("n_passed") / n).alias("pass_rate"),
        std.alias("std"),
        pl.when(mean > 0).then(std / mean).alias("cv"),
    ]


def credible_intervals(counts: pl.DataFrame, probability: float) -> pl.DataFrame:
    """Return interval_low and interval_high for each distinct (n, n_passed): the equal-tailed Jeffreys interval.

    Posterior Beta(passed + 1/2, failed + 1/2); the low end is 0 where none passed and the high end 1 where all did
    (Brown, Cai and DasGupta 2001). With n = 4 it is wide: 2 of 4 passed gives 0.12 to 0.88 at 0.95.
    """
    from scipy.stats import beta

    pairs = counts.filter(pl.col("n") > 0).select("n", "n_passed").unique().sort("n", "n_passed")
    n, passed = pairs["n"].to_numpy(), pairs["n_passed"].to_numpy()
    tail = (1 - probability) / 2
    low, high = beta.ppf([[tail], [1 - tail]], passed + 0.5, n - passed + 0.5) if len(n) else (passed, passed)
    low, high = pl.Series("low", low, pl.Float64), pl.Series("high", high, pl.Float64)
    return pairs.with_columns(
        pl.when(pl.col("n_passed") == 0).then(0.0).otherwise(low).alias("interval_low"),
        pl.when(pl.col("n_passed") == pl.col("n")).then(1.0).otherwise(high).alias("interval_high"),
    )
