"""Stage I and stage II: which responses are trained on, why, and the datasets that come of it."""

import dagster as dg
import polars as pl

from deepdistill_assets.partitions import Partitions
from deepdistill_assets.recipe import Recipe, StageTwo
from deepdistill_assets.selection.algorithm_one import capless_stage_one, capped_stage_one
from deepdistill_assets.selection.annealing import drawn_stage_two, kept_ids, ranked_stage_two
from deepdistill_assets.selection.blocks import Selected, select_in_blocks, selection_tables
from deepdistill_assets.selection.datasets import length_histogram, length_statistics, make_dataset
from deepdistill_assets.selection.report_assets import declare_reports
from deepdistill_assets.stage import Stage, counts_table, frame_table, materialized
from deepdistill_assets.tables import DATASET, DECISION
from deepdistill_resources.plots import bar_chart, svg_metadata
from deepdistill_resources.stage_result import TableParts

NO_EMPTY_QUERY = "no_empty_query"
DECISION_COUNT = "decision_count_equals_response_count"


def build_assets(recipe: Recipe, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """Declare the assets of this room; without a stage II in the recipe its two assets do not exist."""
    stage = Stage("selection", recipe)
    _declare_stage_one(stage, recipe)
    if recipe.selection.stage2 is not None:
        _declare_stage_two(stage, recipe, recipe.selection.stage2)
    reports = Stage("reports", recipe)
    declare_reports(reports, recipe)
    return [*stage.declared, *reports.declared]


def _declare_stage_one(stage: Stage, recipe: Recipe) -> None:
    options, thresholds = recipe.selection.stage1, recipe.verification.thresholds

    @stage.asset(
        schema=DECISION,
        version=2,
        knobs=[options, thresholds, recipe.seed],
        checks=[NO_EMPTY_QUERY, DECISION_COUNT],
    )
    def stage1_selection(
        difficulty_grades: pl.LazyFrame,
        verified_responses: pl.LazyFrame,
        quality_checks: pl.LazyFrame,
        responses: pl.LazyFrame,
    ) -> dg.MaterializeResult:
        """Algorithm 1: one decision per response, kept or not, with the reason and the numbers it was made on."""
        chosen = select_in_blocks(
            selection_tables(difficulty_grades, verified_responses, quality_checks, responses),
            lambda rows, _: capless_stage_one(rows, options, thresholds, recipe.seed),
            lambda rows: capped_stage_one(rows, options),
        )
        return _selected(chosen, "Stage I: kept responses", options.gate == "strict")

    @stage.asset(schema=DATASET, version=1, knobs=[recipe.training.validation_share, recipe.seed])
    def stage1_dataset(
        stage1_selection: pl.LazyFrame, responses: pl.LazyFrame, distillation_queries: pl.LazyFrame
    ) -> dg.MaterializeResult:
        """The rows of stage I training: chat messages, response in canonical form, train and validation split."""
        dataset = make_dataset(
            stage1_selection, responses, distillation_queries, recipe.training.validation_share, recipe.seed
        )
        return _dataset(dataset, "Stage I: completion tokens")


def _declare_stage_two(stage: Stage, recipe: Recipe, options: StageTwo) -> None:
    first = recipe.selection.stage1

    @stage.asset(
        schema=DECISION,
        version=2,
        knobs=[options, first.teacher, first.cv_thresholds, recipe.seed],
        checks=[NO_EMPTY_QUERY, DECISION_COUNT],
    )
    def stage2_selection(
        difficulty_grades: pl.LazyFrame,
        verified_responses: pl.LazyFrame,
        quality_checks: pl.LazyFrame,
        responses: pl.LazyFrame,
        stage1_selection: pl.LazyFrame,
    ) -> dg.MaterializeResult:
        """Annealing: the queries with the highest CV, one passing response each; every decision with its reason."""
        tables = selection_tables(difficulty_grades, verified_responses, quality_checks, responses)
        chosen = select_in_blocks(
            tables | {"stage1": stage1_selection.select("query_id", "response_id", "keep")},
            lambda rows, block: drawn_stage_two(rows, kept_ids(block["stage1"]), options, first, recipe.seed),
            lambda rows: ranked_stage_two(rows, options),
        )
        return _selected(chosen, "Stage II: kept responses", True)

    @stage.asset(schema=DATASET, version=1, knobs=[recipe.training.validation_share, recipe.seed])
    def stage2_dataset(
        stage2_selection: pl.LazyFrame, responses: pl.LazyFrame, distillation_queries: pl.LazyFrame
    ) -> dg.MaterializeResult:
        """The rows of stage II training (annealing): one response per query."""
        dataset = make_dataset(
            stage2_selection, responses, distillation_queries, recipe.training.validation_share, recipe.seed
        )
        return _dataset(dataset, "Stage II: completion tokens")


def _selected(selected: Selected, title: str, strict: bool) -> dg.MaterializeResult:
    reasons = dict(selected.reasons.most_common())
    by_category, decisions = selected.by_category, selected.decisions
    if not by_category["kept_responses"].sum():
        raise dg.Failure(
            description="No response is selected, so there is nothing to train on. Why: "
            + ", ".join(f"{reason} {rows:,}" for reason, rows in reasons.items())
            + ". Fix: look at the largest reason; more passes, a stronger teacher, or other thresholds in the recipe.",
            metadata={"reasons": counts_table(reasons)},
            allow_retries=False,
        )
    checks = [
        dg.AssetCheckResult(
            check_name=NO_EMPTY_QUERY,
            passed=selected.emptied == 0,
            # The printed gate lets a query through whose best score equals the threshold: none of its rows passes.
            severity=dg.AssetCheckSeverity.ERROR if strict else dg.AssetCheckSeverity.WARN,
            description="No selected query ends with zero responses, unless by quality, a cap or a draw.",
            metadata={"emptied_queries": selected.emptied},
        ),
        dg.AssetCheckResult(
            check_name=DECISION_COUNT,
            passed=decisions.rows == selected.responses == selected.distinct,
            metadata={"decisions": decisions.rows, "responses": selected.responses},
        ),
    ]
    metadata = {
        **{name: int(by_category[name].sum()) for name in ("kept_responses", "kept_queries", "kept_tokens")},
        "reasons": counts_table(reasons),
        "by_category": frame_table(by_category),
        "kept_plot": svg_metadata(bar_chart(by_category["category"].to_list(), _series(by_category), title)),
    }
    return materialized(decisions, metadata, checks)


def _series(table: pl.DataFrame) -> dict[str, list[float]]:
    return {name: table[name].to_list() for name in ("responses", "kept_responses", "kept_queries")}


def _dataset(dataset: TableParts, title: str) -> dg.MaterializeResult:
    rows = dataset.scan().select("category", "query_id", "split", "completion_tokens").collect(engine="streaming")
    sizes = dict(rows["split"].value_counts(sort=True).iter_rows())
    metadata = {
        "train_rows": sizes.get("train", 0),
        "validation_rows": sizes.get("validation", 0),
        "completion_tokens": int(rows["completion_tokens"].sum()),
        "lengths": frame_table(length_statistics(rows)),
        "length_histogram": svg_metadata(length_histogram(rows, title)),
    }
    return materialized(dataset, metadata)
