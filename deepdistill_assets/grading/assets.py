"""difficulty_grades: how hard each query is for each teacher."""

import dagster as dg
import polars as pl

from deepdistill_assets.grading.grades import grade
from deepdistill_assets.grading.levels import with_levels, with_spread
from deepdistill_assets.grading.runs import reduce_scores
from deepdistill_assets.grading.summary import histogram, null_cv_share, teacher_spread, teacher_table
from deepdistill_assets.partitions import Partitions
from deepdistill_assets.recipe import Recipe
from deepdistill_assets.scores import QUALITY_COLUMNS, SCORE_COLUMNS, CountingRules, counted_scores
from deepdistill_assets.stage import Stage, counts_table, frame_table, materialized
from deepdistill_assets.tables import GRADE
from deepdistill_resources.plots import svg_metadata

NULL_CV_SHARE = "null_cv_share"
MAX_NULL_CV_SHARE = 0.9


def build_assets(recipe: Recipe, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """Declare the assets of this room."""
    stage = Stage("grading", recipe)

    @stage.asset(
        schema=GRADE,
        version=2,
        knobs=[
            recipe.grading,
            {name: teacher.passes for name, teacher in recipe.teachers.items()},
            recipe.stops_early(),
            [recipe.quality.require_think, recipe.quality.require_answer],
        ],
        partitions_def=partitions.source,
        checks=[NULL_CV_SHARE],
    )
    def difficulty_grades(
        context: dg.AssetExecutionContext,
        distillation_queries: pl.LazyFrame,
        verified_responses: pl.LazyFrame,
        quality_checks: pl.LazyFrame,
    ) -> dg.MaterializeResult:
        """How hard each query is for each teacher: pass rate with its credible interval, coefficient of variation.

        Counts every response that was generated; a query with a missing, unresolved or unverifiable response gets no
        grade, and says why. Reads scores, never texts.
        """
        rules = CountingRules.of(recipe, context.partition_key)
        statistics = [_statistics(verified_responses, quality_checks, teacher, rules) for teacher in recipe.teachers]
        queries = distillation_queries.select("query_id", "source", "category").collect()
        graded = grade(queries, pl.concat(statistics), rules, recipe.grading.ddof, recipe.grading.interval)
        return _result(with_spread(with_levels(graded, recipe.grading.level_teachers)))

    return stage.declared


def _statistics(verified: pl.LazyFrame, quality: pl.LazyFrame, teacher: str, rules: CountingRules) -> pl.DataFrame:
    """Reduce the scores of one teacher; of the others nothing is in memory meanwhile."""
    own = pl.col("teacher") == teacher
    scores = counted_scores(
        verified.filter(own).select(SCORE_COLUMNS).collect(engine="streaming"),
        quality.filter(own).select(QUALITY_COLUMNS).collect(engine="streaming"),
        rules,
    )
    return reduce_scores(scores)


def _result(grades: pl.DataFrame) -> dg.MaterializeResult:
    share = null_cv_share(grades)
    statuses = dict(grades["grade_status"].value_counts(sort=True).iter_rows())
    metadata = {
        "queries": grades["query_id"].n_unique(),
        "mean_pass_rate": grades["pass_rate"].mean(),
        "mean_interval_width": (grades["interval_high"] - grades["interval_low"]).mean(),
        "null_cv_share": share,
        "grade_status": counts_table(statuses, "grade_status"),
        "teachers": frame_table(teacher_table(grades)),
        "pass_rate_histogram": svg_metadata(histogram(grades, "pass_rate", 1.0)),
        "cv_histogram": svg_metadata(histogram(grades, "cv", 2.0)),
        **teacher_spread(grades),
    }
    check = dg.AssetCheckResult(
        check_name=NULL_CV_SHARE,
        passed=share <= MAX_NULL_CV_SHARE,
        severity=dg.AssetCheckSeverity.WARN,
        description="Share of graded rows that the teacher never gets right, so that CV is undefined.",
        metadata={"null_cv_share": share, "limit": MAX_NULL_CV_SHARE},
    )
    return materialized(grades, {key: value for key, value in metadata.items() if value is not None}, [check])
