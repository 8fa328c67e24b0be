"""One QUALITY_CHECK row per response: keep or drop, and why. Nothing is deleted, nothing here changes a grade."""

import polars as pl

from deepdistill_assets.quality.ngrams import highest_corpus_counts, max_repeats
from deepdistill_assets.quality.structure import exact_tags, max_repeated_word, structure_flags
from deepdistill_assets.recipe import Quality
from deepdistill_assets.tables import QUALITY_CHECK, conform
from deepdistill_resources.errors import DeepDistillError


class QualityError(DeepDistillError):
    """The tables the quality checks read contradict each other."""


def check_structure(
    responses: pl.DataFrame, facts: pl.DataFrame, frequent: pl.DataFrame, options: Quality
) -> tuple[pl.DataFrame, list[str]]:
    """Return all but the perplexity of the checks, and the texts to score: those of responses that are kept so far.

    One row per response, in their order: the columns of QUALITY_CHECK without perplexity and keep. `drop_reason` is the
    first that holds: truncated, status_<status>, missing_think, missing_answer, tag_format, invalid_turns,
    repeated_ngram, repeated_word. A text is query and response.

    Args:
        responses: `structure.RESPONSE_COLUMNS`.
        facts: rows of `structure.query_facts`.
        frequent: FREQUENT_NGRAM rows (read with scope `corpus`).
        options: the recipe's quality part.

    Raises:
        QualityError: a response's query is not in `facts`.
    """
    rows = responses.join(facts, on="query_id", how="left", maintain_order="left")
    unknown = rows.filter(pl.col("turns_valid").is_null())
    if unknown.height or rows.height != responses.height:
        raise QualityError(
            f"{unknown.height} of {responses.height} responses belong to no query of distillation_queries, or to two"
            + (f", e.g. {unknown['response_id'][0]} (query {unknown['query_id'][0]})." if unknown.height else "."),
            "materialize responses again from the present queries.",
        )
    rows = rows.with_columns(*structure_flags(), _repeats(rows["text"], frequent, options))
    rows = rows.with_columns(
        exact_tags() if options.exact_tags else pl.lit(None, pl.Boolean).alias("exact_tags"),
        max_repeated_word() if options.max_repeated_word else pl.lit(None, pl.Int64).alias("max_repeated_word"),
    )
    rows = rows.with_columns(_first_reason(options).alias("drop_reason"))
    kept = rows.filter(pl.col("drop_reason").is_null())
    texts = kept.select(pl.concat_str("conversation", "text", separator="\n").alias("text"))["text"]
    return rows.select(name for name in QUALITY_CHECK if name in rows.columns), texts.to_list()


def with_perplexity(rows: pl.DataFrame, perplexities: list[float | None] | None, options: Quality) -> pl.DataFrame:
    """Return the QUALITY_CHECK rows; one whose perplexity is not a number, or too high, drops.

    Args:
        rows: of `check_structure`.
        perplexities: of the texts that it gave, in order; None: the recipe names no scoring model.
    """
    scored = pl.repeat(None, rows.height, dtype=pl.Float64, eager=True)
    if perplexities:
        places = rows.select(pl.arg_where(pl.col("drop_reason").is_null()).alias("place"))["place"]
        scored = scored.scatter(places, pl.Series(perplexities, dtype=pl.Float64))
    rows = rows.with_columns(scored.alias("perplexity"))
    if options.max_perplexity is not None:
        # NaN is greater than any number in polars: a response without a usable perplexity is not trained on.
        high = pl.when(pl.col("perplexity") > options.max_perplexity).then(pl.lit("perplexity"))
        rows = rows.with_columns(pl.coalesce("drop_reason", high).alias("drop_reason"))
    return conform(rows.with_columns(pl.col("drop_reason").is_null().alias("keep")), QUALITY_CHECK)


def _repeats(texts: pl.Series, frequent: pl.DataFrame, options: Quality) -> pl.Series:
    if options.ngram_scope == "response":
        return max_repeats(texts, options.ngram_tokens)
    return highest_corpus_counts(texts, frequent, options.ngram_tokens)


def _first_reason(options: Quality) -> pl.Expr:
    status = pl.col("status")
    checks = [
        (pl.col("truncated") & options.drop_truncated, pl.lit("truncated")),
        (~status.is_in(["ok", "truncated"]), pl.concat_str(pl.lit("status_"), status)),
        (~pl.col("has_think") & options.require_think, pl.lit("missing_think")),
        (~pl.col("has_answer") & options.require_answer, pl.lit("missing_answer")),
        (~pl.col("exact_tags"), pl.lit("tag_format")),
        (~pl.col("turns_valid"), pl.lit("invalid_turns")),
        (pl.col("max_repeated_ngram") > options.ngram_max_count, pl.lit("repeated_ngram")),
        (pl.col("max_repeated_word") > (options.max_repeated_word or 0), pl.lit("repeated_word")),
    ]
    return pl.coalesce(pl.when(holds).then(reason) for holds, reason in checks)
