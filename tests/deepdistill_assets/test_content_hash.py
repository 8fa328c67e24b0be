"""The data version of a table depends on its rows, not on how they lie in memory."""

from datetime import UTC, date, datetime
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepdistill_assets.content_hash import ContentHash, content_digest
from deepdistill_assets.stage import content_version

SCHEMA = {
    "text": pl.String(),
    "number": pl.Int64(),
    "share": pl.Float64(),
    "flag": pl.Boolean(),
    "when": pl.Datetime("us", "UTC"),
    "day": pl.Date(),
    "words": pl.List(pl.String()),
    "messages": pl.List(pl.Struct({"role": pl.String(), "content": pl.String()})),
    "kind": pl.Enum(["math", "code"]),
}
TEXTS = st.none() | st.sampled_from(["", "a", "ab", "b", "a text that is longer than twelve bytes", "é"])
ROWS = st.lists(
    st.tuples(
        TEXTS,
        st.none() | st.integers(0, 2),
        st.none() | st.sampled_from([0.0, 0.5]),
        st.none() | st.booleans(),
        st.none() | st.just(datetime(2026, 1, 1, tzinfo=UTC)),
        st.none() | st.just(date(2026, 1, 1)),
        st.none() | st.lists(TEXTS, max_size=3),
        st.none() | st.lists(st.none() | st.fixed_dictionaries({"role": TEXTS, "content": TEXTS}), max_size=2),
        st.none() | st.sampled_from(["math", "code"]),
    ),
    max_size=8,
)


def table_of(rows):
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


@settings(max_examples=60, deadline=None)
@given(ROWS, st.lists(st.integers(0, 8), max_size=4))
def test_blocks_and_buffers_do_not_count(rows, cuts):
    table = table_of(rows)
    expected = content_digest([table])
    bounds = [0, *sorted(min(cut, table.height) for cut in cuts), table.height]
    assert content_digest(table[start:end] for start, end in pairwise(bounds)) == expected
    # The same rows cut out of a larger table, once as one piece and once row by row.
    larger = pl.concat([table] * 3).with_row_index()
    middle = larger.filter(pl.col("index").is_between(table.height, 2 * table.height, closed="left"))
    assert content_digest([middle.drop("index")]) == expected
    assert content_digest([larger[list(range(table.height))].drop("index")]) == expected


@settings(max_examples=100, deadline=None)
@given(ROWS, ROWS)
def test_other_rows_have_another_hash(left, right):
    one, other = table_of(left), table_of(right)
    assert (content_digest([one]) == content_digest([other])) == one.equals(other)


def test_what_lies_under_a_null_does_not_count():
    offsets, valid = pa.py_buffer(np.array([0, 2, 4], np.int64)), pa.py_buffer(bytes([0b01]))
    dirty = pa.LargeStringArray.from_buffers(2, offsets, pa.py_buffer(b"abcd"), valid)
    numbers = pa.Array.from_buffers(pa.int64(), 2, [valid, pa.py_buffer(np.array([7, 9], np.int64))])
    table = pl.DataFrame({"text": pl.Series(dirty), "number": pl.Series(numbers)})
    assert table.rows() == [("ab", 7), (None, None)]
    assert content_digest([table]) == content_digest([pl.DataFrame({"text": ["ab", None], "number": [7, None]})])


def test_the_schema_counts_and_stays_the_same():
    numbers = pl.DataFrame({"a": [1, 2]})
    assert content_digest([numbers]) != content_digest([numbers.cast(pl.Int32)])
    assert content_digest([numbers]) != content_digest([numbers.rename({"a": "b"})])
    assert content_digest([numbers.clear()]) != content_digest([numbers.clear().cast(pl.Int32)])
    found = ContentHash()
    found.add(numbers)
    with pytest.raises(ValueError, match="a block has schema"):
        found.add(numbers.cast(pl.Int32))


def test_a_data_version_leaves_out_volatile_columns_and_keeps_tables_apart():
    one, two = pl.DataFrame({"a": [1, 2], "seconds": [0.1, 0.2]}), pl.DataFrame({"a": [3], "seconds": [0.3]})
    changed = one.with_columns(seconds=pl.lit(9.0))
    assert content_version([one], volatile=["seconds"]) == content_version([changed], volatile=["seconds"])
    assert content_version([one]) != content_version([changed])
    assert content_version([one, two]) == content_version([pl.concat([one, two])])
    assert content_version([one], [two]) != content_version([one, two])
