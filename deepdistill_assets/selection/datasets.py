"""What the trainer reads: the selected responses in canonical form beside their queries' messages."""

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from deepdistill_assets.seeded import draws
from deepdistill_assets.selection.blocks import cut
from deepdistill_assets.tables import DATASET, conform
from deepdistill_resources.engines.prompting import join_response
from deepdistill_resources.plots import bar_chart
from deepdistill_resources.stage_result import TableParts

BINS = 12
RANGE_ROWS = 10_000  # rows of the dataset that are put together at a time
BATCH_BYTES = 256 * 2**20  # texts held before they are put aside
READ_ROWS = 1000
RESPONSE_COLUMNS = ("response_id", "think", "answer", "completion_tokens")


def make_dataset(
    decisions: pl.LazyFrame,
    responses: pl.LazyFrame,
    queries: pl.LazyFrame,
    validation_share: float,
    seed: int,
    range_rows: int = RANGE_ROWS,
) -> TableParts:
    """Return one DATASET row per kept decision, in the order of example_id (the response's id).

    A query's responses all go to the same split, by seeded draw of the query. The student's system message is added at
    training, by its prompt style. Ids are in memory, texts are not: they are read once, put aside by ranges of
    response_id, and put together range by range.

    Raises:
        ValueError: a kept response or its query is missing from the tables (a contract breach).
    """
    columns = ("response_id", "query_id", "source", "category", "teacher")
    kept = decisions.filter(pl.col("keep")).select(columns).collect(engine="streaming").sort("response_id")
    kept = kept.with_columns(splits(pl.col("query_id"), validation_share, seed))
    limits = kept["response_id"].gather_every(range_rows).to_list()[1:]
    texts = _put_aside(responses.select(RESPONSE_COLUMNS), kept.select("response_id"), limits)
    messages = _put_aside(queries.select("query_id", "messages"), kept.select("query_id", "response_id"), limits)
    dataset = TableParts(DATASET)
    for part in cut(kept, limits):
        asked = _taken(messages).unique("response_id").drop("query_id")
        rows = part.join(_taken(texts), on="response_id", how="inner").join(asked, on="response_id", how="inner")
        if rows.height != part.height:
            raise ValueError(
                f"{kept.height} responses are selected, but {part.height - rows.height} from "
                f"{part['response_id'][0]} on are not in responses and queries."
            )
        rows = rows.sort("response_id").with_columns(_canonical()).rename({"response_id": "example_id"})
        dataset.add(conform(rows.drop("think", "answer"), DATASET))
    return dataset


def _put_aside(table: pl.LazyFrame, kept: pl.DataFrame, limits: Sequence[str]) -> list[TableParts]:
    """Share out the rows that `kept` names by its first column, by the ranges of response_id that `limits` cut."""
    key = kept.columns[0]
    ranges = [TableParts({**table.collect_schema(), "response_id": pl.String()}) for _ in range(len(limits) + 1)]
    for batch in _batches(_only(table, kept[key])):
        rows = batch if key == "response_id" else batch.join(kept, on=key)
        for place, part in zip(ranges, cut(rows.sort("response_id"), limits), strict=True):
            if part.height:
                place.add(part)
    return ranges


def _only(table: pl.LazyFrame, ids: pl.Series) -> TableParts:
    """Return the rows with one of these ids (and of another id with an equal hash), in files.

    A frame of polars that is filtered or joined holds the texts of the rows that left it; its file does not.
    """
    found, hashes = TableParts(dict(table.collect_schema())), np.unique(ids.hash().to_numpy())
    for batch in table.collect_batches(chunk_size=READ_ROWS, engine="streaming"):
        wanted = batch[ids.name].hash().to_numpy()
        places = np.searchsorted(hashes, wanted).clip(max=max(0, len(hashes) - 1))
        rows = batch.filter(hashes[places] == wanted) if len(hashes) else batch.clear()
        if rows.height:
            found.add(rows)
    return found


def _taken(ranges: list[TableParts]) -> pl.DataFrame:
    first = ranges.pop(0)  # its files go with it
    return first.scan().collect()


def _batches(table: TableParts) -> Iterator[pl.DataFrame]:
    held, size = list[pl.DataFrame](), 0.0
    for batch in table.frames():
        held.append(batch)
        size += batch.estimated_size()
        if size > BATCH_BYTES:
            yield pl.concat(held)
            held, size = [], 0.0
    if held:
        yield pl.concat(held)


def _canonical() -> pl.Expr:
    return (
        pl.struct("think", "answer")
        .map_elements(lambda row: join_response(row["think"], row["answer"]), return_dtype=pl.String)
        .alias("response")
    )


def splits(query_id: pl.Expr, validation_share: float, seed: int) -> pl.Expr:
    """Return `train` or `validation` per query."""
    drawn = query_id.map_batches(lambda ids: draws(ids, seed, "validation"), return_dtype=pl.Float64)
    return pl.when(drawn < validation_share).then(pl.lit("validation")).otherwise(pl.lit("train")).alias("split")


def length_statistics(dataset: pl.DataFrame) -> pl.DataFrame:
    """Return rows, queries and completion tokens (sum, mean, median, p95, max) per category, and over all."""

    def statistics() -> list[pl.Expr]:
        tokens = pl.col("completion_tokens")
        return [
            pl.len().alias("rows"),
            pl.col("query_id").n_unique().alias("queries"),
            tokens.sum().alias("tokens"),
            tokens.mean().alias("mean"),
            tokens.median().alias("median"),
            tokens.quantile(0.95).alias("p95"),
            tokens.max().alias("max"),
        ]

    each = dataset.group_by("category").agg(statistics()).sort("category")
    return pl.concat([each, dataset.select(pl.lit("all").alias("category"), *statistics())])


def length_histogram(dataset: pl.DataFrame, title: str) -> str:
    """Return an SVG of completion tokens, one series per category."""
    high = max(dataset.select(pl.col("completion_tokens").max()).item() or 0, BINS)
    width = -(-high // BINS)
    bar = (pl.col("completion_tokens") // width).clip(0, BINS - 1).alias("bar")
    series: dict[str, list[float]] = {}
    counts = dataset.drop_nulls("completion_tokens").group_by("category", bar).len().sort("category", "bar")
    for category, index, rows in counts.iter_rows():
        series.setdefault(category, [0.0] * BINS)[index] = rows
    return bar_chart([f"{index * width:,}" for index in range(BINS)], series, title)
