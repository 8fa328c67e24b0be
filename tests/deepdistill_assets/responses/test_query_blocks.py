"""Queries in windows: every one once, in the order of their ids, whatever the order and size of the file."""

import random

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepdistill_assets.responses import query_blocks
from deepdistill_assets.responses.query_blocks import READ, QueryBlocks
from deepdistill_assets.tables import QUERY, conform


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numbers=st.sets(st.integers(0, 500), max_size=80),
    block=st.integers(1, 30),
    size=st.integers(1, 40),
    seed=st.integers(0, 9),
    closed=st.sets(st.integers(0, 500)),
)
def test_windows_are_the_sorted_queries_in_pieces(tmp_path_factory, numbers, block, size, seed, closed):
    ids = [f"q{number:03d}" for number in numbers]
    random.Random(seed).shuffle(ids)
    rows = pl.DataFrame({"query_id": ids, "query_text": [f"text of {name}" for name in ids]})
    file = tmp_path_factory.mktemp("queries") / "data.parquet"
    table = conform(rows.with_columns(category=pl.lit("math")), QUERY)
    table.write_parquet(file, row_group_size=7)
    without = {f"q{number:03d}" for number in closed}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(query_blocks, "BLOCK", block)
        blocks = QueryBlocks(pl.scan_parquet(file))
        windows = list(blocks.windows(size, without))
        assert pl.concat([table.select(*READ).clear(), *windows]).equals(
            table.select(*READ).filter(~pl.col("query_id").is_in(list(without))).sort("query_id")
        )
        assert all(window.height == size for window in windows[:-1])
        assert blocks.ids["query_id"].to_list() == sorted(ids)
        assert sorted(blocks.of(pl.Series(ids[:3], dtype=pl.String()))["query_text"]) == sorted(
            f"text of {name}" for name in ids[:3]
        )
