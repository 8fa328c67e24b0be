"""What a reader wants to know of a partition of responses; computed by scans, the texts are never in memory."""

from typing import Any

import dagster as dg
import polars as pl

from deepdistill_assets.responses.acceptance import ACCEPTED, HOPELESS
from deepdistill_assets.responses.imported import ENGINE as IMPORTED
from deepdistill_assets.responses.waves import Outcome, Pair
from deepdistill_assets.stage import counts_table, frame_table
from deepdistill_resources import plots
from deepdistill_resources.generation import engine_share

BARS = 20


def response_facts(pair: Pair, queries: int, outcome: Outcome) -> dict[str, Any]:
    """Return the metadata of `responses`: amounts, rates, lengths, what was new and what was reused."""
    reports, rows = outcome.reports, outcome.rows.scan()
    groups = _groups(rows)
    tokens = sum(report.completion_tokens for report in reports)
    seconds = sum(report.seconds for report in reports)
    total = max(outcome.rows.rows, 1)
    statuses = dict(groups.group_by("status").agg(pl.col("responses").sum()).iter_rows())
    facts = {
        "tokens": int(groups["tokens"].sum()),
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        "responses_imported": _imported(groups),
        "responses_new": sum(report.generated for report in reports),
        "responses_reused": sum(report.reused for report in reports),
        "chunks_new": sum(report.chunks_new for report in reports),
        "chunks_reused": reports[0].chunks_reused if reports else 0,
        "retries": sum(report.retries for report in reports),
        "by_status": frame_table(_by_status(groups)),
        "share_truncated": statuses.get("truncated", 0) / total,
        "share_failed": (outcome.rows.rows - statuses.get("ok", 0) - statuses.get("truncated", 0)) / total,
        "engine": ", ".join(groups["engine"].drop_nulls().unique().sort()),
        "lengths": plots.svg_metadata(_length_histogram(rows)),
        "examples": frame_table(rows.select("text", "status", "finish_reason", "completion_tokens").head(5).collect()),
    }
    share = engine_share(reports)
    facts |= {} if share is None else {"share_of_engine_ceiling": share}
    return facts | (_saved(pair, queries, groups, outcome) if pair.recipe.stops_early() else {})


def passes_complete(pair: Pair, queries: int, outcome: Outcome) -> dg.AssetCheckResult:
    """Every query has its passes, fewer only where the recipe lets asking end early; nothing failed to the end."""
    passes = pair.recipe.teachers[pair.teacher].passes
    rows = outcome.rows.scan()
    counts = rows.group_by("query_id").len().filter(pl.col("len") >= passes)
    short = queries - counts.select(pl.len()).collect(engine="streaming").item()
    stopped = sum(outcome.closed.get(why, 0) for why in (ACCEPTED, HOPELESS))
    failed = rows.filter(pl.col("status") == "server_error").select(pl.len()).collect(engine="streaming").item()
    return dg.AssetCheckResult(
        check_name="passes_complete",
        passed=short <= stopped and failed == 0,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"passes": passes, "queries_with_fewer": short, "server_errors": failed},
    )


def _groups(rows: pl.LazyFrame) -> pl.DataFrame:
    amounts = pl.len().alias("responses"), pl.col("completion_tokens").sum().alias("tokens")
    return rows.group_by("engine", "status").agg(*amounts).collect(engine="streaming")


def _imported(groups: pl.DataFrame) -> int:
    return int(groups.filter(pl.col("engine") == IMPORTED)["responses"].sum())


def _by_status(groups: pl.DataFrame) -> pl.DataFrame:
    counts = groups.group_by("status").agg(pl.col("responses").sum())
    share = pl.col("responses") / pl.col("responses").sum()
    return counts.with_columns(share.alias("share")).sort(["responses", "status"], descending=[True, False])


def _saved(pair: Pair, queries: int, groups: pl.DataFrame, outcome: Outcome) -> dict[str, Any]:
    """What stopping early saved: responses that were not asked for, and their tokens at the mean length."""
    generated = groups.filter(pl.col("engine").is_null() | (pl.col("engine") != IMPORTED))
    tokens, made = int(generated["tokens"].sum()), int(generated["responses"].sum())
    wanted = queries * pair.recipe.teachers[pair.teacher].passes
    if not pair.keeps_accepted:
        wanted -= _imported(groups)
    saved = 0 if pair.recipe.imported(pair.teacher) else max(0, wanted - made)
    return {
        "tokens_asked": tokens,
        "responses_saved": saved,
        "tokens_saved_estimate": round(saved * tokens / max(made, 1)),
        "queries_closed": counts_table(outcome.closed, "why", "queries"),
    }


def _length_histogram(rows: pl.LazyFrame) -> str:
    tokens = pl.col("completion_tokens")
    longest = rows.select(tokens.max()).collect(engine="streaming").item() or 1
    width = max(1, -(-longest // BARS))
    found = rows.select((tokens // width).alias("bar")).drop_nulls().group_by("bar").len()
    counts = dict(found.collect(engine="streaming").iter_rows())
    places = range(max(counts, default=0) + 1)
    labels = [str(place * width) for place in places]
    return plots.bar_chart(labels, {"responses": [counts.get(place, 0) for place in places]}, "Generated tokens")
