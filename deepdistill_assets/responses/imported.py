"""The `imported` engine: responses that came with a source become rows of the same table as generated ones."""

from collections.abc import Iterator

import polars as pl

from deepdistill_assets.tables import EXISTING_RESPONSE, RESPONSE, conform
from deepdistill_resources.engines.prompting import never_ends, split_response
from deepdistill_resources.generation import content_key

ENGINE = "imported"
BATCH_ROWS = 10_000


def existing_of(
    existing: pl.LazyFrame, queries: pl.DataFrame, teacher: str, passes: int | None = None
) -> Iterator[pl.DataFrame]:
    """Yield batches of the EXISTING_RESPONSE rows that `teacher` takes in, for these queries, with their `category`.

    Args:
        existing: EXISTING_RESPONSE rows of the source.
        queries: columns query_id and category.
        passes: passes from this one on are left out.
    """
    mine = existing.filter(pl.col("teacher").is_null() | (pl.col("teacher") == teacher))
    if passes is not None:
        mine = mine.filter(pl.col("pass_index") < passes)
    wanted = queries.select("query_id", "category")
    for batch in mine.collect_batches(chunk_size=BATCH_ROWS, engine="streaming"):
        found = batch.join(wanted, on="query_id", how="inner", maintain_order="left")
        if found.height:
            yield found


def imported_rows(existing: pl.DataFrame, teacher: str, revision: str) -> pl.DataFrame:
    """Return RESPONSE rows of existing responses, sorted by query and pass.

    What is not known of them (tokens, seed, sampling, log-probability) is null. Status: `empty` without text,
    `truncated` where the think part never ends, else `ok`.

    Args:
        existing: rows of `existing_of`.
        revision: the teacher model's revision.
    """
    texts = existing["text"].fill_null("").to_list()
    parts = [split_response(text) for text in texts]
    keys = [
        content_key(query_id=query_id, teacher=teacher, pass_index=index, imported=text)
        for query_id, index, text in zip(existing["query_id"], existing["pass_index"], texts, strict=True)
    ]
    rows = existing.select([name for name in EXISTING_RESPONSE if name not in ("teacher", "place")] + ["category"])
    rows = rows.with_columns(
        pl.Series("response_id", keys, dtype=pl.String),
        pl.Series("think", [part.think for part in parts], dtype=pl.String),
        pl.Series("answer", [part.answer for part in parts], dtype=pl.String),
        pl.Series("status", [_status(text) for text in texts], dtype=pl.String),
        teacher=pl.lit(teacher),
        engine=pl.lit(ENGINE),
        model_revision=pl.lit(revision),
        seconds=pl.lit(0.0),
    )
    return conform(rows, RESPONSE).sort("query_id", "pass_index")


def _status(text: str) -> str:
    if not text.strip():
        return "empty"
    return "truncated" if never_ends(text) else "ok"
