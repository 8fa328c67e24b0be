"""frequent_ngrams and quality_checks: which responses may be trained on."""

from collections.abc import Callable, Iterable, Iterator

import dagster as dg
import polars as pl

from deepdistill_assets.partitions import Partitions
from deepdistill_assets.quality.checks import check_structure, with_perplexity
from deepdistill_assets.quality.ngrams import frequent_ngrams as find_frequent_ngrams
from deepdistill_assets.quality.ngrams import sketch_slots
from deepdistill_assets.quality.perplexity import OpenScorer, measured, text_key, unmeasured
from deepdistill_assets.quality.structure import RESPONSE_COLUMNS, query_facts
from deepdistill_assets.recipe import Quality, Recipe
from deepdistill_assets.stage import Stage, counts_table, frame_table, materialized, partition_of
from deepdistill_assets.tables import FREQUENT_NGRAM, QUALITY_CHECK, empty
from deepdistill_resources.compute import Compute
from deepdistill_resources.engines.resource import EngineResource
from deepdistill_resources.io_managers import partition_directory
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ModelStore
from deepdistill_resources.plots import bar_chart, svg_metadata

BATCH_ROWS = 2000
DROP_RATE = "drop_rate"
MAX_DROP_RATE = 0.5
BINS = 10


def build_assets(recipe: Recipe, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """Declare the assets of this room."""
    stage = Stage("quality", recipe)
    options = recipe.quality
    model = options.perplexity_model
    counting = [options.ngram_tokens, options.ngram_max_count, options.ngram_scope]

    @stage.asset(schema=FREQUENT_NGRAM, version=1, knobs=counting)
    def frequent_ngrams(context: dg.AssetExecutionContext, responses: pl.LazyFrame) -> dg.MaterializeResult:
        """Word n-grams that occur too often in all responses together, counted in bounded memory.

        Empty where the recipe counts within one response.
        """
        if options.ngram_scope == "response":
            return materialized(empty(FREQUENT_NGRAM), {"scope": "response: counted in quality_checks"})
        # Of an imported response the tokens are not known; about four bytes are one.
        counts = pl.coalesce("completion_tokens", pl.col("text").str.len_bytes() // 4)
        tokens = responses.select(counts.sum()).collect(engine="streaming").item() or 0
        found = find_frequent_ngrams(
            lambda: _texts(responses), options.ngram_tokens, options.ngram_max_count, sketch_slots(tokens)
        )
        context.log.info(f"{found.height} n-grams occur more than {options.ngram_max_count} times")
        most = found.sort(["count", "ngram_hash"], descending=[True, False]).select("count", "example")
        return materialized(found, {"scope": "corpus", "completion_tokens": tokens, "most_frequent": frame_table(most)})

    @stage.asset(
        schema=QUALITY_CHECK,
        version=2,
        knobs=[options, recipe.models[model] if model else None],
        partitions_def=partitions.source_teacher,
        pool="gpu",
        checks=[DROP_RATE],
    )
    def quality_checks(
        context: dg.AssetExecutionContext,
        responses: pl.LazyFrame,
        distillation_queries: pl.DataFrame,
        frequent_ngrams: pl.DataFrame,
        lake: Lake,
        engine: EngineResource,
        model_store: ModelStore,
        compute: Compute,
    ) -> dg.MaterializeResult:
        """Whether each response may be trained on: structure, repeated n-grams, perplexity; the first reason to drop.

        One row per response; nothing is deleted, and no grade changes.
        """
        facts = query_facts(distillation_queries)
        batches = responses.select(RESPONSE_COLUMNS).collect_batches(chunk_size=BATCH_ROWS, engine="streaming")
        checked = (check_structure(batch, facts, frequent_ngrams, options) for batch in batches)
        if model is None:
            tables = [with_perplexity(rows, None, options) for rows, _ in checked]
        else:
            keys = {name: partition_of(context, name) for name in ("source", "teacher")}
            place = partition_directory("_chunks/quality_checks", keys)
            scorer = OpenScorer(engine, model_store, lake, place, model, recipe.models[model])
            tables = _scored(checked, options, scorer, compute, context.log.info)
        return _checked(pl.concat(tables) if tables else empty(QUALITY_CHECK))

    return stage.declared


def _texts(responses: pl.LazyFrame) -> Iterator[pl.Series]:
    for batch in responses.select("text").collect_batches(chunk_size=BATCH_ROWS, engine="streaming"):
        yield batch["text"]


def _scored(
    checked: Iterable[tuple[pl.DataFrame, list[str]]],
    options: Quality,
    scorer: OpenScorer,
    compute: Compute,
    log: Callable[[str], None],
) -> list[pl.DataFrame]:
    """Return the checked rows with perplexities; the model is loaded when a text is not in the store yet."""
    tables: list[tuple[pl.DataFrame, list[str]]] = []  # rows, and the keys of their texts

    def texts() -> Iterator[list[str]]:
        for rows, found in checked:
            tables.append((rows, [text_key(text) for text in found]))
            if found:
                yield found

    store = scorer.store()
    for outcome in compute.map_batches(unmeasured(store, texts()), scorer, name="perplexity", ordered=False, log=log):
        outcome.value()
    known = measured(store, [key for _, keys in tables for key in keys])
    return [with_perplexity(rows, [known[key] for key in keys], options) for rows, keys in tables]


def _checked(checks: pl.DataFrame) -> dg.MaterializeResult:
    reasons = checks["drop_reason"].drop_nulls().value_counts(sort=True)
    dropped = checks.height - int(checks["keep"].sum())
    rate = dropped / checks.height if checks.height else 0.0
    metadata = {
        "kept": checks.height - dropped,
        "dropped": dropped,
        "drop_rate": rate,
        "dropped_by_reason": counts_table(dict(reasons.iter_rows())),
    }
    perplexity = checks["perplexity"].drop_nulls()
    perplexity = perplexity.filter(perplexity.is_finite())
    if len(perplexity):
        metadata |= {"mean_perplexity": perplexity.mean(), "median_perplexity": perplexity.median()}
        metadata["perplexity_histogram"] = svg_metadata(_histogram(perplexity))
    check = dg.AssetCheckResult(
        check_name=DROP_RATE,
        passed=rate <= MAX_DROP_RATE,
        severity=dg.AssetCheckSeverity.WARN,
        description="Share of responses that quality checks keep out of training.",
        metadata={"drop_rate": rate, "limit": MAX_DROP_RATE},
    )
    return materialized(checks, metadata, [check])


def _histogram(perplexity: pl.Series) -> str:
    high = float(perplexity.quantile(0.99) or 1.0)
    bars = (perplexity / high * BINS).floor().clip(0, BINS - 1).cast(pl.Int64)
    counts = dict(bars.value_counts().iter_rows())
    labels = [f"{high * index / BINS:.3g}" for index in range(BINS)]
    return bar_chart(labels, {"responses": [counts.get(index, 0) for index in range(BINS)]}, "Responses by perplexity")
