import re
from pathlib import Path

import polars as pl
import pytest

from deepdistill_assets.reports.scale_plan import Cluster, Size, UnitCosts, measured, scale_plan, storage_gigabytes
from deepdistill_assets.tables import COST, conform

PAGE = (Path(__file__).parents[3] / "docs" / "cluster.md").read_text()


def test_hours_are_units_times_seconds_and_nodes_make_the_deadline():
    size, costs = Size(queries=3600, raw_per_query=2, teachers=1, passes=1, tokens=100), UnitCosts(tokens_per_second=10)
    plan = scale_plan(size, costs, Cluster(engines=1, days=1 / 24, use=1.0))
    assert dict(plan.select("stage", "hours").iter_rows())["generation"] == 10.0
    assert dict(plan.select("stage", "nodes").iter_rows())["generation"] == 10
    assert storage_gigabytes(size, costs) == pytest.approx(3600 * 100 * 3.4 / 1e9)


def test_a_cost_report_gives_tokens_and_speed():
    rows = [
        {"responses": 10, "completion_tokens": 500, "engine_seconds": 5.0},
        {"responses": 90, "completion_tokens": 9, "engine_seconds": 0.0},  # came with the source
    ]
    size, costs = measured(conform(pl.DataFrame(rows), COST))
    assert (size.tokens, costs.tokens_per_second) == (50.0, 100.0)
    assert measured(pl.DataFrame(schema=COST)) == (Size(), UnitCosts())


def test_the_page_shows_what_the_function_says():
    plan = scale_plan(Size(), UnitCosts(), Cluster())
    for row in plan.iter_rows(named=True):
        shown = re.search(rf"^\| {row['stage']} \|.*\| ([\d,.]+) \| (\d+) \|$", PAGE, re.M)
        assert float(shown[1].replace(",", "")) == pytest.approx(row["hours"], rel=0.05), row["stage"]
        assert int(shown[2]) == row["nodes"]
    assert f"{storage_gigabytes(Size(), UnitCosts()):.0f} GB" in PAGE
