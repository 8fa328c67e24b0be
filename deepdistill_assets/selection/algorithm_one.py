"""Stage I: Algorithm 1 of DeepDistill (arXiv 2504.17565), every ambiguity a named option of the recipe."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from deepdistill_assets.recipe import StageOne
from deepdistill_assets.seeded import with_draws
from deepdistill_assets.selection.candidates import by_category, cutoff
from deepdistill_assets.selection.ranking import with_ranks
from deepdistill_assets.tables import DECISION, conform

GRADED = ("graded", "early_stopped")
DEFAULT_CV_THRESHOLD = 0.05  # of a category that the recipe leaves out, as printed in the paper's first versions
KEPT = ("kept_challenging", "kept_easy")


def select_stage_one(
    candidates: pl.DataFrame, options: StageOne, thresholds: Mapping[Any, float], seed: int
) -> pl.DataFrame:
    """Return one DECISION row per response, in the order of response_id.

    For each query of the training teacher: drop it if its best score does not exceed the category's threshold (gate
    `strict`; `printed` drops only below it); if CV > CV_t it is challenging and its passing responses are kept; else
    it is easy and kept with the category's probability, by a coin per query or per response. Then quality drops, and
    caps per query and per category by seeded draw. Quality decides what is trained on, never a grade.

    Args:
        candidates: rows of `candidates.candidates`.
        options: the recipe's stage I.
        thresholds: pass threshold per category, on the paper's scale; a row's `cutoff` goes first.
        seed: of the coin and of the caps.
    """
    rows = capless_stage_one(candidates, options, thresholds, seed)
    return capped_stage_one(with_ranks(rows), options)


def capless_stage_one(
    candidates: pl.DataFrame, options: StageOne, thresholds: Mapping[Any, float], seed: int
) -> pl.DataFrame:
    """Return the rows with the `reason` of all that their own query decides, and the columns of `ranking`.

    What is left is the cap per category, for which kept responses contend by seeded draw.
    """
    rows = with_limits(candidates, options, thresholds)
    tossed = (pl.col("teacher") == options.teacher) & ~pl.col("challenging") & (pl.col("probability") > 0)
    rows = with_draws(rows, f"{options.coin}_id", seed, "stage1 easy", "coin", where=tossed)
    rows = rows.with_columns(_reason(options).alias("reason"))
    draw = pl.lit(None, pl.Float64)
    if options.max_responses_per_query is not None or options.category_caps:
        rows = with_draws(rows, "response_id", seed, "stage1 cap", "draw", where=pl.col("reason").is_in(KEPT))
        draw = pl.col("draw")
    if options.max_responses_per_query is not None:
        rows = _cap_queries(rows, options.max_responses_per_query)
    contends = pl.col("reason").is_in(KEPT) & bool(options.category_caps)
    return rows.with_columns(contends.alias("contends"), first=draw, second=pl.lit(0.0), name="response_id")


def capped_stage_one(rows: pl.DataFrame, options: StageOne) -> pl.DataFrame:
    """Return the decisions on rows of `capless_stage_one` with their `category_rank`."""
    if options.category_caps:
        over = pl.col("contends") & (pl.col("category_rank") > by_category(options.category_caps))
        # The one column shows the rank of the last cap that a row met; a row that met none of this cap's shows none.
        rows = rows.with_columns(
            pl.when(over).then(pl.lit("category_cap")).otherwise("reason").alias("reason"),
            pl.col("category_rank").alias("rank"),
        )
    return decisions(rows, "stage1", KEPT)


def with_limits(candidates: pl.DataFrame, options: StageOne, thresholds: Mapping[Any, float]) -> pl.DataFrame:
    """Return the rows with `threshold`, `cv_threshold`, easy `probability`, and whether they are `challenging`."""
    return candidates.with_columns(
        threshold=cutoff(candidates, thresholds),
        probability=by_category(options.easy_keep_probability, default=0.0),
        cv_threshold=by_category(options.cv_thresholds, default=DEFAULT_CV_THRESHOLD),
    ).with_columns(challenging=pl.col("cv") > pl.col("cv_threshold"))


def below_gate(options: StageOne) -> pl.Expr:
    """Whether a query's best score does not pass the gate (columns of `with_limits`)."""
    highest, threshold = pl.col("max_score"), pl.col("threshold")
    return highest <= threshold if options.gate == "strict" else highest < threshold


def excluded(teacher: str) -> pl.Expr:
    """Return why a response takes no part at all in a selection: another teacher's, or its query has no grade."""
    return (
        pl.when(pl.col("teacher") != teacher)
        .then(pl.lit("not_training_teacher"))
        .when(~pl.col("grade_status").is_in(GRADED))
        .then(pl.col("grade_status"))
    )


def quality_drop() -> pl.Expr:
    """Return `quality:<reason>` for a response that a quality check drops, else null."""
    reason = pl.concat_str(pl.lit("quality:"), pl.col("drop_reason").fill_null("unknown"))
    return pl.when(~pl.col("quality_keep")).then(reason)


def _reason(options: StageOne) -> pl.Expr:
    challenging, probability = pl.col("challenging"), pl.col("probability")
    only_passing = challenging if options.easy_keep == "all" else pl.lit(True)
    return pl.coalesce(
        excluded(options.teacher),
        pl.when(below_gate(options)).then(pl.lit("max_score_below_threshold")),
        pl.when(pl.col("cv").is_null()).then(pl.lit("cv_undefined")),
        pl.when(~challenging & (probability == 0)).then(pl.lit("easy_dropped")),
        pl.when(~challenging & (pl.col("coin") >= probability)).then(pl.lit("easy_coin")),
        pl.when(only_passing & ~pl.col("passed").fill_null(False)).then(pl.lit("not_passing")),
        quality_drop(),
        pl.when(challenging).then(pl.lit("kept_challenging")).otherwise(pl.lit("kept_easy")),
    )


def _cap_queries(rows: pl.DataFrame, limit: int) -> pl.DataFrame:
    kept = pl.col("reason").is_in(KEPT)
    # Rows come in the order of response_id, which therefore settles ties.
    rows = rows.with_columns(pl.when(kept).then(pl.col("draw").rank("ordinal").over("query_id", kept)).alias("rank"))
    over = kept & (pl.col("rank") > limit)
    return rows.with_columns(pl.when(over).then(pl.lit("responses_per_query_cap")).otherwise("reason").alias("reason"))


def decisions(rows: pl.DataFrame, stage: str, kept: tuple[str, ...]) -> pl.DataFrame:
    """Return the rows as a DECISION table of one stage."""
    rows = rows.with_columns(pl.lit(stage).alias("stage"), pl.col("reason").is_in(kept).alias("keep"))
    return conform(rows.select(name for name in DECISION if name in rows.columns), DECISION)
