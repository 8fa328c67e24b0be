"""The reports that look back over all stages: where rows went, what was contaminated, what the responses cost."""

import dagster as dg
import polars as pl

from deepdistill_assets.partitions import Partitions
from deepdistill_assets.recipe import Recipe
from deepdistill_assets.reports.contamination import contamination_counts, contamination_page, shown_matches
from deepdistill_assets.reports.cost import cost_of, cost_totals
from deepdistill_assets.reports.row_counts import (
    SELECTIONS,
    STEPS,
    breaches_of_the_row_law,
    category_totals,
    count_rows,
    drop_reasons,
    stage_totals,
)
from deepdistill_assets.reports.scale_plan import Cluster, measured, scale_plan
from deepdistill_assets.stage import Stage, frame_table, materialized
from deepdistill_assets.tables import CONTAMINATION_REPORT, COST, FUNNEL
from deepdistill_resources.lake import Lake
from deepdistill_resources.plots import bar_chart, funnel_chart, svg_metadata


def build_assets(recipe: Recipe, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """Return `funnel`, `contamination_report` and `cost_report`; all are unpartitioned: `partitions` goes unused."""
    stage = Stage("reports", recipe)
    selections = SELECTIONS if recipe.selection.stage2 else SELECTIONS[:1]
    read = [step.asset for step in STEPS] + list(selections)

    @stage.asset(schema=FUNNEL, version=2, knobs=[list(recipe.sources)], deps=read, checks=["rows_add_up"])
    def funnel(lake: Lake) -> dg.MaterializeResult:
        """Where the rows went: rows in and kept by stage, source and category, and why the others left."""
        counted = count_rows(lake, recipe)
        totals = stage_totals(counted)
        breaches = breaches_of_the_row_law(counted)
        add_up = dg.AssetCheckResult(
            check_name="rows_add_up", passed=not breaches, metadata={"breaches": "; ".join(breaches[:20]) or "none"}
        )
        steps = list(totals.select("stage", "rows_kept").iter_rows())
        return materialized(
            counted,
            metadata={
                "stages": frame_table(totals),
                "categories": frame_table(category_totals(counted), rows=60),
                "drops": frame_table(drop_reasons(counted), rows=60),
                "plot": svg_metadata(funnel_chart(steps, "Rows kept by each stage")),
            },
            checks=[add_up],
        )

    @stage.asset(
        schema=CONTAMINATION_REPORT,
        version=1,
        ins={"contamination": dg.AssetIn(metadata={"allow_missing_partitions": True})},
    )
    def contamination_report(contamination: pl.LazyFrame, lake: Lake) -> dg.MaterializeResult:
        """Which queries give away which benchmark problems: a page with both texts of each match side by side."""
        counts, shown = contamination_counts(contamination), shown_matches(contamination)
        page = contamination_page(counts, shown, f"Contamination: {recipe.title}")
        written = lake.write_bytes("contamination_report/report.html", page.encode("utf-8", "replace"))
        texts = shown.select("benchmark", "method", "similarity", "query_text", "problem_text")
        return materialized(
            counts,
            metadata={
                "page": dg.MetadataValue.path(written.uri),
                "matches": int(counts["matches"].sum()),
                "by_kind": frame_table(counts, 60),
                "side_by_side": frame_table(texts.group_by("benchmark", "method", maintain_order=True).head(3), 40),
            },
        )

    prices = {name: (teacher.prompt_price, teacher.completion_price) for name, teacher in recipe.teachers.items()}
    tolerant = {"responses": dg.AssetIn(metadata={"allow_missing_partitions": True})}

    @stage.asset(schema=COST, version=2, knobs=[prices], ins=tolerant)
    def cost_report(responses: pl.LazyFrame, stage1_selection: pl.LazyFrame) -> dg.MaterializeResult:
        """What the responses cost: tokens, engine seconds and money per teacher and source, and per accepted sample."""
        cost = cost_of(responses, stage1_selection, recipe.teachers)
        totals = cost_totals(cost)
        bars = {"tokens per accepted sample": totals["completion_tokens_per_accepted_sample"].fill_null(0).to_list()}
        return materialized(
            cost,
            metadata={
                "by_teacher": frame_table(totals),
                "money": float(cost["money"].sum()),
                # All teachers' money, of the ones whose responses are not trained on too.
                "money_per_accepted_sample": float(cost["money"].sum()) / max(1, int(cost["accepted_samples"].sum())),
                "completion_tokens": int(cost["completion_tokens"].sum()),
                "engine_seconds": float(cost["engine_seconds"].sum()),
                # Nodes of 64 cores or 8 such engines, for two weeks (docs/cluster.md).
                "at_paper_size": frame_table(scale_plan(*measured(cost), Cluster())),
                "plot": svg_metadata(bar_chart(totals["teacher"].to_list(), bars, "Tokens per accepted sample")),
            },
            volatile=("engine_seconds", "engine_seconds_per_accepted_sample"),
        )

    return stage.declared
