"""Stage II: the queries with the highest CV, one passing response each (DeepDistill section 3.2)."""

import polars as pl

from deepdistill_assets.recipe import StageOne, StageTwo
from deepdistill_assets.seeded import with_draws
from deepdistill_assets.selection.algorithm_one import DEFAULT_CV_THRESHOLD, decisions, excluded, quality_drop
from deepdistill_assets.selection.candidates import by_category
from deepdistill_assets.selection.ranking import with_ranks

KEPT = ("kept_annealing",)
_POOL = "in the draw"


def select_stage_two(
    candidates: pl.DataFrame, stage1: pl.DataFrame, options: StageTwo, first: StageOne, seed: int
) -> pl.DataFrame:
    """Return one DECISION row per response, in the order of response_id; `rank` is the query's place by CV.

    A response is in the draw if its query's CV > CV_t, its normalised score > the one threshold of all categories,
    no quality check drops it and stage I kept it (stage II refines what stage I trained on). Of those queries the
    top k of each category by CV stay (ties by seeded draw), each with one response, drawn by seed.

    Args:
        candidates: rows of `candidates.candidates`.
        stage1: decisions of stage I.
        options: the recipe's stage II.
        first: the recipe's stage I (its teacher; its CV thresholds where stage II has none of its own).
        seed: of the draws.
    """
    rows = drawn_stage_two(candidates, kept_ids(stage1), options, first, seed)
    return ranked_stage_two(with_ranks(rows), options)


def kept_ids(decisions: pl.DataFrame) -> pl.Series:
    """Return the ids of the kept responses."""
    return decisions.filter("keep")["response_id"]


def drawn_stage_two(
    candidates: pl.DataFrame, kept_before: pl.Series, options: StageTwo, first: StageOne, seed: int
) -> pl.DataFrame:
    """Return the rows with the `reason` of all that their own query decides, and the columns of `ranking`.

    What is left is the top k per category, for which each query contends with the response that is drawn of it.

    Args:
        kept_before: response ids that stage I kept.
    """
    limits = options.cv_thresholds if options.cv_thresholds is not None else first.cv_thresholds
    rows = candidates.with_columns(
        pl.col("verify_score_normalised").max().over("query_id", "teacher").alias("max_score"),
        pl.col("response_id").is_in(kept_before.implode()).alias("in_stage1"),
        threshold=pl.lit(options.threshold),
        cv_threshold=by_category(limits, default=DEFAULT_CV_THRESHOLD),
    )
    rows = rows.with_columns(_reason(first.teacher).alias("reason"))
    in_pool = pl.col("reason") == _POOL
    rows = with_draws(rows, "query_id", seed, "stage2 ties", "tie", where=in_pool)
    rows = with_draws(rows, "response_id", seed, "stage2 response", "draw", where=in_pool)
    pool = rows.filter(in_pool).sort("draw", "response_id")
    drawn = pool.unique("query_id", keep="first", maintain_order=True)["response_id"]
    contends = in_pool & pl.col("response_id").is_in(drawn.implode())
    return rows.with_columns(contends.alias("contends"), first=-pl.col("cv"), second="tie", name="query_id")


def ranked_stage_two(rows: pl.DataFrame, options: StageTwo) -> pl.DataFrame:
    """Return the decisions on rows of `drawn_stage_two` with their `category_rank`."""
    in_pool = pl.col("reason") == _POOL
    rows = rows.with_columns(pl.col("category_rank").max().over("query_id").alias("rank"))
    top = pl.col("rank") <= by_category(options.top_k, default=float("inf"))
    rows = rows.with_columns(
        pl.when(in_pool & ~top)
        .then(pl.lit("below_top_k"))
        .when(in_pool & ~pl.col("contends"))
        .then(pl.lit("not_drawn"))
        .when(in_pool)
        .then(pl.lit(KEPT[0]))
        .otherwise("reason")
        .alias("reason"),
        pl.when(in_pool).then("rank").alias("rank"),
    )
    return decisions(rows, "stage2", KEPT)


def _reason(teacher: str) -> pl.Expr:
    # A score of null (unverified) compares as null: filled, so that no row slips through.
    best = (pl.col("max_score") > pl.col("threshold")).fill_null(False)
    passing = (pl.col("verify_score_normalised") > pl.col("threshold")) & pl.col("passed")
    return pl.coalesce(
        excluded(teacher),
        pl.when(~best).then(pl.lit("max_score_below_threshold")),
        pl.when(pl.col("cv").is_null()).then(pl.lit("cv_undefined")),
        pl.when(pl.col("cv") <= pl.col("cv_threshold")).then(pl.lit("cv_below_threshold")),
        pl.when(~passing.fill_null(False)).then(pl.lit("not_passing")),
        quality_drop(),
        pl.when(~pl.col("in_stage1")).then(pl.lit("not_in_stage1")),
        pl.lit(_POOL),
    )
