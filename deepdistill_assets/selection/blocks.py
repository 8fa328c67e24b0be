"""Selection in bounded memory: block by block of whole queries, in files between; the decisions are the same."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import polars as pl

from deepdistill_assets.selection.candidates import GRADE_COLUMNS, QUALITY_COLUMNS, VERIFICATION_COLUMNS, candidates
from deepdistill_assets.selection.ranking import rank_blocks
from deepdistill_assets.tables import DECISION
from deepdistill_resources.stage_result import TableParts

BLOCK_ROWS = 500_000  # responses decided on at a time
SAMPLED = 1000  # one response id in so many tells where the ids of the output are cut

Tables = Mapping[str, pl.DataFrame]
# A query's part of the decision: columns of a candidate, completion_tokens, reason, and those of `ranking`.
Decide = Callable[[pl.DataFrame, Tables], pl.DataFrame]
Settle = Callable[[pl.DataFrame], pl.DataFrame]  # given `category_rank`: DECISION rows, in the order of the rows
# A query may lose its last response to these; to anything else never.
LOSSES = (
    "quality:",
    "responses_per_query_cap",
    "category_cap",
    "easy_coin",
    "not_in_stage1",
    "below_top_k",
    "not_drawn",
)


@dataclass
class Selected:
    """The decisions of a stage, in the order of response_id, and what was counted on the way."""

    decisions: TableParts = field(default_factory=lambda: TableParts(DECISION))
    responses: int = 0  # that were to be decided on
    distinct: int = 0  # response ids decided on
    emptied: int = 0  # queries of `emptied_queries`
    reasons: Counter[str] = field(default_factory=Counter)
    by_category: pl.DataFrame = field(default_factory=pl.DataFrame)


def select_in_blocks(
    tables: Mapping[str, pl.LazyFrame], decide: Decide, settle: Settle, block_rows: int = BLOCK_ROWS
) -> Selected:
    """Return the decisions of a stage.

    Args:
        tables: `grades`, `verified`, `quality`, `tokens` (response_id, completion_tokens), and what else `decide`
            reads; all with query_id.
        decide: called with the candidates and all tables of some whole queries.
        settle: called with the same rows once the ranks over all queries are known.
        block_rows: responses decided on at a time, about.
    """
    selected = Selected(responses=_height(tables["verified"]))
    count = max(1, math.ceil(selected.responses / block_rows))
    split = {name: _split(table, count, block_rows) for name, table in tables.items()}
    decided: list[TableParts] = []
    for index in range(count):
        rows = _decided({name: blocks[index].scan().collect() for name, blocks in split.items()}, decide)
        decided.append(TableParts(rows.schema))
        decided[-1].add(rows)
    del split
    limits = _limits(decided, count)
    ranges = [TableParts(DECISION) for _ in range(count)]
    for rows in rank_blocks(decided):
        settled = settle(rows)
        _count(selected, settled, rows["completion_tokens"])
        for place, part in zip(ranges, cut(settled, limits), strict=True):
            place.add(part)
    selected.by_category = selected.by_category.group_by("category").agg(pl.all().sum()).sort("category")
    for place in ranges:
        rows = place.scan().collect().sort("response_id")
        selected.distinct += rows["response_id"].n_unique()
        selected.decisions.add(rows)
    return selected


def selection_tables(
    grades: pl.LazyFrame, verified: pl.LazyFrame, quality: pl.LazyFrame, responses: pl.LazyFrame
) -> dict[str, pl.LazyFrame]:
    """Return what both stages read: the columns that decisions are made on, no texts, no evidence."""
    return {
        "grades": grades.select(GRADE_COLUMNS),
        "verified": verified.select(VERIFICATION_COLUMNS),
        "quality": quality.select("query_id", *QUALITY_COLUMNS),
        "tokens": responses.select("query_id", "response_id", "completion_tokens"),
    }


def _height(table: pl.LazyFrame) -> int:
    return int(table.select(pl.len()).collect().item())


def _split(table: pl.LazyFrame, count: int, slice_rows: int) -> list[TableParts]:
    """Share out a table by query."""
    schema = dict(table.collect_schema())
    blocks = [TableParts(schema) for _ in range(count)]
    for start in range(0, _height(table), slice_rows):
        rows = table.slice(start, slice_rows).collect(engine="streaming")
        # The hash only says which queries are decided on together: no decision depends on it.
        keyed = rows.with_columns((pl.col("query_id").hash() % count).alias("block"))
        for (block,), part in keyed.partition_by("block", as_dict=True, include_key=False).items():
            blocks[int(block)].add(part)
    return blocks


def _decided(tables: Tables, decide: Decide) -> pl.DataFrame:
    rows = decide(candidates(tables["grades"], tables["verified"], tables["quality"]), tables)
    rows = rows.join(
        tables["tokens"].select("response_id", "completion_tokens"),
        on="response_id",
        how="left",
        maintain_order="left",
    )
    return rows.select(name for name in rows.columns if name in _WAITING)


_WAITING = {*DECISION, "completion_tokens", "contends", "first", "second", "name"}


def _limits(decided: Sequence[TableParts], count: int) -> list[str]:
    """Return `count - 1` response ids that cut all of them into ranges of about the same size."""
    samples = (block.scan().select(pl.col("response_id").gather_every(SAMPLED)).collect() for block in decided)
    # As Python's strings: a sample of polars would hold the ids of its whole block.
    ids = sorted(name for sample in samples for name in sample["response_id"].to_list())
    return [ids[len(ids) * index // count] for index in range(1, count)]


def cut(rows: pl.DataFrame, limits: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield rows, sorted by response_id, range by range; each limit begins a range."""
    places = [0, *(int(rows["response_id"].search_sorted(limit, side="left")) for limit in limits), rows.height]
    return (rows[start:end] for start, end in pairwise(places))


def _count(selected: Selected, decisions: pl.DataFrame, tokens: pl.Series) -> None:
    selected.reasons.update(dict(decisions["reason"].value_counts().iter_rows()))
    selected.emptied += emptied_queries(decisions)
    counted = counts_by_category(decisions.with_columns(tokens))
    selected.by_category = pl.concat([selected.by_category, counted], how="diagonal")


def counts_by_category(decisions: pl.DataFrame) -> pl.DataFrame:
    """Return per category: queries, responses and tokens decided on, and kept (columns `kept_*`)."""
    kept, tokens = pl.col("keep"), pl.col("completion_tokens")
    return decisions.group_by("category").agg(
        pl.col("query_id").n_unique().cast(pl.Int64).alias("queries"),
        pl.len().cast(pl.Int64).alias("responses"),
        tokens.sum().alias("tokens"),
        pl.col("query_id").filter(kept).n_unique().cast(pl.Int64).alias("kept_queries"),
        kept.sum().cast(pl.Int64).alias("kept_responses"),
        tokens.filter(kept).sum().alias("kept_tokens"),
    )


def emptied_queries(decisions: pl.DataFrame) -> int:
    """Return how many selected queries ended without a response for a reason outside `LOSSES`.

    Selected = past the gate: one of its responses was kept, was not passing, or was lost to one of those.
    """
    lost = pl.any_horizontal(pl.col("reason").str.starts_with(reason) for reason in LOSSES)
    chosen = decisions.filter(pl.col("keep") | lost | (pl.col("reason") == "not_passing"))
    survivors = chosen.group_by("query_id").agg((pl.col("keep") | lost).any().alias("survives"))
    return survivors.filter(~pl.col("survives")).height
