"""What counts as a score: the one place that turns verdicts into numbers. Texts are never read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

from deepdistill_assets.recipe import Recipe
from deepdistill_resources.errors import DeepDistillError

SCORE_COLUMNS = ("response_id", "query_id", "teacher", "status", "verdict", "verify_score", "passed")
QUALITY_COLUMNS = ("response_id", "has_think", "has_answer", "keep")
SCORED_VERDICTS = ("passed", "failed")
TRANSIENT_STATUSES = ("server_error",)


class GradingError(DeepDistillError):
    """The score tables contradict each other; nothing is written."""


@dataclass(frozen=True)
class CountingRules:
    """The recipe's choices on what counts.

    Args:
        passes: responses wanted per query, by teacher.
        require_think, require_answer: a response without that part counts as 0.
        quality_drops_count: whether a response that a quality check drops keeps its score (else it leaves n).
        early_stopping: whether sampling ends at the first passing response (arXiv 2505.14464).
    """

    passes: Mapping[str, int] = field(default_factory=dict)
    require_think: bool = True
    require_answer: bool = True
    quality_drops_count: bool = True
    early_stopping: bool = False

    @staticmethod
    def of(recipe: Recipe, source: str | None = None) -> "CountingRules":
        """Return what counts in the grades of one source; without a source, every teacher answers."""
        teachers = {
            name: teacher.passes
            for name, teacher in recipe.teachers.items()
            if source is None or recipe.answers(source, name)
        }
        return CountingRules(
            passes=teachers,
            require_think=recipe.quality.require_think,
            require_answer=recipe.quality.require_answer,
            quality_drops_count=recipe.grading.quality_drops_count,
            early_stopping=recipe.stops_early(),
        )


def counted_scores(verified: pl.DataFrame, quality: pl.DataFrame, rules: CountingRules) -> pl.DataFrame:
    """Return one row per response: what it counts as.

    | a response that is | counts as |
    |---|---|
    | truncated, empty, refused, over the context, without think or answer part | 0 |
    | server_error (not final) | unresolved |
    | passed, failed | its verify_score |
    | timeout | 0 |
    | unverifiable | unverifiable |
    | infra_error | unresolved |
    | dropped by another quality check | its verify_score, or left out (`quality_drops_count=False`) |

    Args:
        verified: `SCORE_COLUMNS` of verified_responses.
        quality: `QUALITY_COLUMNS` of quality_checks, one row for each of the same responses.
        rules: the recipe's choices.

    Returns:
        columns response_id, query_id, teacher, score (0 unless counted), passed, counted, unverifiable, unresolved.

    Raises:
        GradingError: the two tables hold different responses, or a scored response has no finite score.
    """
    rows = _beside(verified.select(SCORE_COLUMNS), quality.select(QUALITY_COLUMNS))
    status, verdict = pl.col("status"), pl.col("verdict")
    transient = status.is_in(TRANSIENT_STATUSES)
    incomplete_text = pl.lit(False)
    if rules.require_think:
        incomplete_text |= ~pl.col("has_think").fill_null(True)
    if rules.require_answer:
        incomplete_text |= ~pl.col("has_answer").fill_null(True)
    zero = ~transient & ((status != "ok") | incomplete_text)
    judged = ~transient & ~zero
    scored = judged & verdict.is_in(SCORED_VERDICTS).fill_null(False)
    timeout = judged & (verdict == "timeout").fill_null(False)
    unverifiable = judged & (verdict == "unverifiable").fill_null(False)
    left_out = pl.lit(False) if rules.quality_drops_count else scored & ~pl.col("keep")
    flagged = (
        rows.lazy()
        .select(  # lazy: what several columns share is computed once
            "response_id",
            "query_id",
            "teacher",
            pl.when(scored).then(pl.col("verify_score")).otherwise(0.0).alias("score"),
            (scored & pl.col("passed")).fill_null(False).alias("passed"),
            ((zero | scored | timeout) & ~left_out).alias("counted"),
            unverifiable.alias("unverifiable"),
            (~(zero | scored | timeout | unverifiable)).alias("unresolved"),
        )
        .collect()
    )
    _refuse_bad_scores(flagged)
    return flagged


def _beside(verified: pl.DataFrame, quality: pl.DataFrame) -> pl.DataFrame:
    """Join one to one; tables in the same order (the usual case) are only compared."""
    if verified["response_id"].equals(quality["response_id"]):
        return pl.concat([verified, quality.drop("response_id")], how="horizontal")
    for name, table in (("verified_responses", verified), ("quality_checks", quality)):
        if table["response_id"].n_unique() < table.height:
            raise GradingError(f"{name} holds a response_id twice.", "materialize it again.")
    joined = verified.join(quality, on="response_id", how="inner", maintain_order="left")
    if not joined.height == verified.height == quality.height:
        raise GradingError(
            f"verified_responses ({verified.height} rows) and quality_checks ({quality.height} rows) share only "
            f"{joined.height} responses.",
            "materialize both again from the same responses.",
        )
    return joined


def _refuse_bad_scores(rows: pl.DataFrame) -> None:
    bad = rows.filter(pl.col("counted") & ~(pl.col("score").is_finite() & (pl.col("score") >= 0)).fill_null(False))
    if bad.height:
        row = bad.row(0, named=True)
        raise GradingError(
            f"response {row['response_id']} is verified with score {row['score']}; a score is a number from 0 up "
            f"({bad.height} such rows).",
            "materialize verified_responses again.",
        )
