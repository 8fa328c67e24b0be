"""Where rows went: counts per stage, source and reason, read from the tables without their texts."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import polars as pl

from deepdistill_assets.recipe import Recipe
from deepdistill_assets.tables import FUNNEL, conform
from deepdistill_resources.io_managers import DATA_FILE, DROPPED_FILE, partition_directory
from deepdistill_resources.lake import Lake

Counts = dict[tuple[str, str | None], int]  # (category, reason) -> rows; reason None: the kept rows
Reader = Callable[[Lake, str], pl.LazyFrame]  # columns query_id, category (null: not there), reason (null: kept)


def drops_beside(lake: Lake, directory: str) -> pl.LazyFrame:
    """Read the kept rows of a partition and the dropped ones that lie beside them."""
    kept = _labelled(lake, directory, pl.lit(True), pl.lit(None, pl.String))
    path = f"{directory}/{DROPPED_FILE}"
    if not lake.exists(path):
        return kept
    dropped = lake.scan_tables([path])
    return pl.concat([kept, dropped.select(query_id="row_id", category=pl.lit(None, pl.String), reason="reason")])


def statuses(lake: Lake, directory: str) -> pl.LazyFrame:
    """Read responses: `ok` is kept, every other status is a reason."""
    return _labelled(lake, directory, pl.col("status") == "ok", pl.col("status"))


def verdicts(lake: Lake, directory: str) -> pl.LazyFrame:
    """Read verified responses: passed is kept, else the verdict."""
    return _labelled(lake, directory, pl.col("passed").fill_null(value=False), pl.col("verdict"))


def quality(lake: Lake, directory: str) -> pl.LazyFrame:
    """Read quality checks: keep, else the reason."""
    return _labelled(lake, directory, pl.col("keep"), pl.col("drop_reason"), category=pl.lit(None, pl.String))


def _labelled(
    lake: Lake, directory: str, kept: pl.Expr, reason: pl.Expr, category: pl.Expr | None = None
) -> pl.LazyFrame:
    scan = lake.scan_tables([f"{directory}/{DATA_FILE}"])
    category = pl.col("category") if category is None else category
    label = pl.when(kept).then(None).otherwise(reason.fill_null("no_reason"))
    return scan.select("query_id", category.alias("category"), label.alias("reason"))


@dataclass(frozen=True)
class SourceCategories:
    """The categories of one source's queries; a table is only looked up in where they are not all the same.

    Args:
        otherwise: category of a row that has none (a malformed one), or of all rows.
        by_query: columns query_id, own_category; None: all queries are `otherwise`.
    """

    otherwise: str
    by_query: pl.LazyFrame | None

    @staticmethod
    def of(lake: Lake, source: str, category: str) -> "SourceCategories":
        """Look at the queries of a source whose own category is `category`."""
        path = f"{partition_directory('raw_queries', {'partition': source})}/{DATA_FILE}"
        if not lake.exists(path):
            return SourceCategories(category, None)
        scan = lake.scan_tables([path])
        found = scan.select(pl.col("category").drop_nulls().unique()).collect()["category"].to_list()
        if len(found) < 2:
            return SourceCategories(found[0] if found else category, None)
        return SourceCategories(category, scan.group_by("query_id").agg(pl.col("category").min().alias("own_category")))

    def counts(self, rows: pl.LazyFrame) -> Counts:
        """Count the rows of a reader."""
        own = pl.lit(None, pl.String)
        if self.by_query is not None:
            rows, own = rows.join(self.by_query, on="query_id", how="left"), pl.col("own_category")
        category = pl.coalesce("category", own, pl.lit(self.otherwise)).alias("category")
        counted = rows.select(category, "reason").group_by("category", "reason").len().collect(engine="streaming")
        return {(name, reason): number for name, reason, number in counted.iter_rows()}


@dataclass(frozen=True)
class Step:
    """One stage of the funnel: its asset, how its rows are counted, and whether it is per teacher."""

    asset: str
    read: Reader
    unit: str
    by_teacher: bool = False


STEPS = (
    Step("raw_queries", drops_beside, "queries"),
    Step("clean_queries", drops_beside, "queries"),
    Step("deduped_queries", drops_beside, "queries"),
    Step("distillation_queries", drops_beside, "queries"),
    Step("responses", statuses, "responses", by_teacher=True),
    Step("verified_responses", verdicts, "responses", by_teacher=True),
    Step("quality_checks", quality, "responses", by_teacher=True),
)
SELECTIONS = ("stage1_selection", "stage2_selection")


def count_rows(lake: Lake, recipe: Recipe) -> pl.DataFrame:
    """Return the funnel (columns of `FUNNEL`): what is not materialized yet is left out.

    A row's category is its query's own, which in a mixed source differs from row to row.
    """
    categories = {name: SourceCategories.of(lake, name, source.category) for name, source in recipe.sources.items()}
    rows = [row for order, step in enumerate(STEPS) for row in _step_rows(lake, recipe, order, step, categories)]
    for order, asset in enumerate(SELECTIONS, start=len(STEPS)):
        rows += _selection_rows(lake, recipe, order, asset)
    return conform(pl.DataFrame(rows, schema=FUNNEL), FUNNEL)


def _step_rows(
    lake: Lake, recipe: Recipe, order: int, step: Step, categories: Mapping[str, SourceCategories]
) -> Iterator[dict]:
    for source in recipe.sources:
        keys = (
            [{"source": source, "teacher": t} for t in recipe.teachers] if step.by_teacher else [{"partition": source}]
        )
        directories = [partition_directory(step.asset, key) for key in keys]
        tables = [step.read(lake, place) for place in directories if lake.exists(f"{place}/{DATA_FILE}")]
        if tables:
            yield from _rows(order, step.asset, source, categories[source].counts(pl.concat(tables)))


def _selection_rows(lake: Lake, recipe: Recipe, order: int, asset: str) -> Iterator[dict]:
    path = f"{asset}/{DATA_FILE}"
    if not lake.exists(path):
        return
    reason = pl.when("keep").then(None).otherwise(pl.col("reason")).alias("reason")
    groups = ["source", "category", "reason"]
    rows = lake.scan_tables([path]).select("source", "category", reason)
    counted = rows.group_by(groups).len().collect(engine="streaming")
    for source, category in recipe.sources.items():
        mine = counted.filter(pl.col("source") == source).drop("source")
        counts = {(name or category.category, reason): number for name, reason, number in mine.iter_rows()}
        yield from _rows(order, asset, source, counts)


def _rows(order: int, stage: str, source: str, counts: Counts) -> Iterator[dict]:
    for category in sorted({category for category, _ in counts}):
        mine = {reason: number for (name, reason), number in counts.items() if name == category}
        whole = {
            "stage": stage,
            "order": order,
            "source": source,
            "category": category,
            "rows_in": sum(mine.values()),
            "rows_kept": mine.get(None, 0),
        }
        yield {**whole, "reason": None, "rows": whole["rows_kept"]}
        dropped = [(number, reason) for reason, number in mine.items() if reason is not None]
        for number, reason in sorted(dropped, key=lambda item: (-item[0], item[1])):
            yield {**whole, "reason": reason, "rows": number}


def breaches_of_the_row_law(funnel: pl.DataFrame) -> list[str]:
    """Return, per source, where a stage of queries counted other rows than the stage before it kept.

    Within a stage the law holds by construction; between stages a breach means that one of them is stale.
    """
    kept = funnel.filter(pl.col("reason").is_null())
    kept = kept.group_by("source", "stage", maintain_order=True).agg(pl.col("rows_in", "rows_kept").sum())
    places = {(row["source"], row["stage"]): row for row in kept.iter_rows(named=True)}
    stages = [step.asset for step in STEPS if step.unit == "queries"]
    pairs = [
        (source, before, after)
        for source in kept["source"].unique(maintain_order=True)
        for before, after in pairwise(stages)
        if (source, before) in places and (source, after) in places
    ]
    return [
        f"{after} of {source} was given {places[source, after]['rows_in']} rows, "
        f"{before} kept {places[source, before]['rows_kept']}"
        for source, before, after in pairs
        if places[source, after]["rows_in"] != places[source, before]["rows_kept"]
    ]


def stage_totals(funnel: pl.DataFrame) -> pl.DataFrame:
    """Return rows in, kept and the kept share of each stage over all sources, in order."""
    kept = funnel.filter(pl.col("reason").is_null())
    totals = kept.group_by("order", "stage").agg(pl.col("rows_in", "rows_kept").sum()).sort("order").drop("order")
    return totals.with_columns((pl.col("rows_kept") / pl.col("rows_in")).alias("kept_share"))


def category_totals(funnel: pl.DataFrame) -> pl.DataFrame:
    """Return rows in and kept of each stage and category over all sources, in order."""
    kept = funnel.filter(pl.col("reason").is_null())
    totals = kept.group_by("order", "stage", "category").agg(pl.col("rows_in", "rows_kept").sum())
    return totals.sort("order", "category").drop("order")


def drop_reasons(funnel: pl.DataFrame) -> pl.DataFrame:
    """Return dropped rows by stage and reason over all sources, most first within a stage."""
    dropped = funnel.filter(pl.col("reason").is_not_null())
    counted = dropped.group_by("order", "stage", "reason").agg(pl.col("rows").sum())
    return counted.sort(["order", "rows", "reason"], descending=[False, True, False]).drop("order")
