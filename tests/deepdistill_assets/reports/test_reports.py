import dagster as dg
import polars as pl
from world import recipe_of

from deepdistill_assets import tables
from deepdistill_assets.partitions import Partitions
from deepdistill_assets.reports.assets import build_assets
from deepdistill_assets.reports.cost import cost_of, cost_totals
from deepdistill_assets.reports.row_counts import breaches_of_the_row_law, count_rows, drop_reasons, stage_totals
from deepdistill_resources.io_managers import ParquetIOManager


def test_each_stage_counts_what_came_in_what_was_kept_and_why_the_rest_left(world):
    funnel = count_rows(world.lake, recipe_of())
    totals = {row["stage"]: (row["rows_in"], row["rows_kept"]) for row in stage_totals(funnel).iter_rows(named=True)}
    assert totals == {
        "raw_queries": (6, 5),
        "clean_queries": (4, 3),
        "deduped_queries": (3, 2),
        "distillation_queries": (2, 1),
        "responses": (6, 4),
        "verified_responses": (6, 2),
        "quality_checks": (6, 4),
        "stage1_selection": (2, 1),
    }
    reasons = {(stage, reason): rows for stage, reason, rows in drop_reasons(funnel).iter_rows()}
    assert reasons["raw_queries", "malformed_json"] == 1
    assert reasons["responses", "truncated"] == 2
    assert reasons["verified_responses", "failed"] == 4
    assert reasons["quality_checks", "no_think"] == 2
    assert reasons["stage1_selection", "not_passed"] == 1


def test_rows_in_are_always_rows_kept_plus_rows_dropped(world):
    funnel = count_rows(world.lake, recipe_of())
    sums = funnel.group_by("stage", "source").agg(pl.col("rows").sum(), pl.col("rows_in").first())
    assert (sums["rows"] == sums["rows_in"]).all()
    assert breaches_of_the_row_law(funnel) == []


def test_a_stage_that_was_not_materialized_again_is_named(world):
    world.put("clean_queries", {"partition": "sums"}, tables.QUERY, [{"query_id": "q1"}], [])
    breaches = breaches_of_the_row_law(count_rows(world.lake, recipe_of()))
    assert breaches == [
        "clean_queries of sums was given 1 rows, raw_queries kept 4",
        "deduped_queries of sums was given 3 rows, clean_queries kept 1",
    ]


def test_a_mixed_source_is_counted_by_each_querys_own_category(world):
    sums = {"partition": "sums"}
    queries = [
        {"query_id": name, "source": "sums", "category": "code" if name == "q2" else "math"}
        for name in ("q1", "q2", "q3", "q4")
    ]
    malformed = [("f.jsonl:9", "sums", "malformed_json", "line 9: not JSON")]
    world.put("raw_queries", sums, tables.QUERY, queries, malformed)
    world.put("clean_queries", sums, tables.QUERY, queries[:1], [(f"q{n}", "sums", "url", "") for n in (2, 3, 4)])
    funnel = count_rows(world.lake, recipe_of()).filter(pl.col("source") == "sums")
    counts = {
        (row["stage"], row["category"]): (row["rows_in"], row["rows_kept"])
        for row in funnel.filter(pl.col("reason").is_null()).iter_rows(named=True)
    }
    assert counts["raw_queries", "math"] == (4, 3)  # a malformed row counts under its source's category
    assert counts["raw_queries", "code"] == (1, 1)
    assert counts["clean_queries", "math"] == (3, 1)
    assert counts["clean_queries", "code"] == (1, 0)
    assert counts["quality_checks", "math"] == (6, 4)
    sums = funnel.group_by("stage", "category").agg(pl.col("rows").sum(), pl.col("rows_in").first())
    assert (sums["rows"] == sums["rows_in"]).all()


def test_an_empty_lake_gives_an_empty_funnel(tmp_path):
    from world import World

    funnel = count_rows(World(tmp_path).lake, recipe_of())
    assert funnel.is_empty()
    assert dict(funnel.schema) == tables.FUNNEL


def test_cost_is_tokens_times_price_per_million(world):
    recipe = recipe_of()
    responses = pl.concat(
        world.lake.scan_tables([f"responses/source=sums/teacher={teacher}/data.parquet"]) for teacher in recipe.teachers
    )
    cost = cost_of(responses, world.lake.scan_tables(["stage1_selection/data.parquet"]), recipe.teachers)
    weak, strong = cost_totals(cost).sort("teacher", descending=True).iter_rows(named=True)
    assert (weak["money"], strong["money"]) == (60.0, 60.0)
    assert (weak["accepted_samples"], weak["completion_tokens_per_accepted_sample"]) == (1, 60.0)
    assert (strong["accepted_samples"], strong["completion_tokens_per_accepted_sample"]) == (0, None)
    per_sample = [weak[f"{name}_per_accepted_sample"] for name in ("prompt_tokens", "engine_seconds", "money")]
    assert per_sample == [30.0, 1.5, 60.0]


def test_both_reports_materialize_and_tolerate_sources_without_responses(world):
    recipe = recipe_of()
    partitions = Partitions.of(recipe)

    resources = {"lake": world.lake, "io_manager": ParquetIOManager(lake=world.lake)}
    sources = [
        dg.SourceAsset("responses", partitions_def=partitions.source_teacher, io_manager_key="io_manager"),
        dg.SourceAsset("stage1_selection", io_manager_key="io_manager"),
        dg.SourceAsset("contamination", partitions_def=partitions.source, io_manager_key="io_manager"),
    ]
    result = dg.materialize(
        [*build_assets(recipe, partitions), *sources], selection=["funnel", "cost_report"], resources=resources
    )
    assert result.success
    metadata = result.asset_materializations_for_node("funnel")[0].metadata
    assert metadata["plot"].value.startswith("![plot](data:image/svg+xml")
    assert all(check.passed for check in result.get_asset_check_evaluations())
