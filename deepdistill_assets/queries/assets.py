"""The queries room, first half: from sources to clean queries, their labels, and the benchmark problems."""

from collections.abc import Callable
from typing import Any

import dagster as dg
import polars as pl

from deepdistill_assets.partitions import Partitions
from deepdistill_assets.queries.cleaning import clean
from deepdistill_assets.queries.corrections import Corrections
from deepdistill_assets.queries.existing_responses import existing_response_table
from deepdistill_assets.queries.labeller import Labeller, prompt_hashes, with_given_labels
from deepdistill_assets.queries.labels import query_labels as label
from deepdistill_assets.queries.quarantine import quarantine_path
from deepdistill_assets.queries.query_table import ingest_queries, problem_table, quarantined
from deepdistill_assets.queries.readers import (
    Rows,
    check_options,
    gives_responses,
    input_stamp,
    read_rows,
    unpinned_dataset,
)
from deepdistill_assets.queries.reading import UNREADABLE_FILE, Reading
from deepdistill_assets.queries.references import with_usable_references
from deepdistill_assets.recipe import Benchmark, Recipe, Source, fingerprint
from deepdistill_assets.stage import Stage, counts_table, frame_table, materialized
from deepdistill_assets.tables import BENCHMARK_PROBLEM, EXISTING_RESPONSE, QUERY, QUERY_LABEL, conform
from deepdistill_resources import plots
from deepdistill_resources.chunk_store import ChunkStore
from deepdistill_resources.engines.prompting import PromptStyle
from deepdistill_resources.engines.resource import EngineResource
from deepdistill_resources.errors import DeepDistillError
from deepdistill_resources.generation import GENERATED, LazySession
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ModelStore
from deepdistill_resources.stage_result import StageResult, StreamedResult
from deepdistill_resources.token_counts import token_counts

MAX_MALFORMED_PROBLEMS = 0.05


def build_assets(recipe: Recipe, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """Return raw_queries, existing_responses, clean_queries, query_labels, benchmark_problems; raises RecipeError."""
    for key, source in recipe.sources.items():
        check_options(f"sources.{key}", source.reader, source.options)
    for key, benchmark in recipe.evaluation.benchmarks.items():
        check_options(f"evaluation.benchmarks.{key}", benchmark.reader, benchmark.options)
    stage = Stage("queries", recipe)
    judged = recipe.verification.judge != "off"

    # A source's entry belongs to its partition alone; its content decides the data version.
    @stage.asset(
        schema=QUERY,
        version=2,
        knobs=[recipe.seed, judged],
        partitions_def=partitions.source,
        row_law=True,
        partition_versions={key: source_version(source) for key, source in recipe.sources.items()},
    )
    def raw_queries(context: dg.AssetExecutionContext, lake: Lake) -> dg.MaterializeResult:
        """Queries of one source as they came, in one schema.

        Malformed and repeated rows go to its drops, with file, line and reason. `deepdistill quarantine` shows the
        malformed ones with their bytes, to be mended and read again.
        """
        key = context.partition_key
        source = recipe.sources[key]
        version = source_version(source)  # before it is read: a file that changes meanwhile makes it stale
        reading = _begin(source.corrections, context.log.info)
        rows = _rows(source, recipe.seed, reading)
        ingested = ingest_queries(_checked(rows, source, judged), key, source)
        # Written before a refusal, too: it is what the rows are mended from.
        lake.write_table(quarantine_path(key), ingested.quarantine)
        result = ingested.result
        _refuse(result, key, source.max_quarantined, reading)
        context.log.info(f"{key}: {result.rows_kept:,} queries, {result.dropped.height:,} rows dropped")
        facts = {
            "reader": source.reader,
            **unpinned_dataset(source.reader, source.options),
            "license": source.license,
            "rows_quarantined": quarantined(result),
            **_notes(reading),
            **_filled(result.kept),
            "by_category": counts_table(_counts(result.kept, "category"), "category", "queries"),
        }
        facts |= _samples(result) | _chart(result, f"Rows of {key}")
        return materialized(result, metadata=facts, partition_version=version)

    @stage.asset(
        schema=EXISTING_RESPONSE,
        version=1,
        knobs=[recipe.seed, {name: recipe.reads_existing(name) for name in recipe.teachers}],
        partitions_def=partitions.source,
        row_law=True,
        partition_versions={key: source_version(source) for key, source in recipe.sources.items()},
    )
    def existing_responses(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Responses that came with the queries of a source, one row each; `responses` takes them in, or not.

        Empty where the source has none or the recipe reads none.
        """
        key = context.partition_key
        source = recipe.sources[key]
        version = source_version(source)
        readers = [name for name in recipe.teachers if recipe.answers(key, name) and recipe.reads_existing(name)]
        wanted = bool(readers) and gives_responses(source.reader, source.options)
        reading = _begin(source.corrections, context.log.info)
        rows = _rows(source, recipe.seed, reading) if wanted else iter(())
        result = existing_response_table(rows, key, readers)
        facts = {
            "read_by": ", ".join(readers) or "no teacher",
            **result.kept.select(
                queries=pl.col("query_id").n_unique(), with_released_score=pl.col("released_score").count()
            )
            .collect(engine="streaming")
            .row(0, named=True),
            "by_teacher": counts_table(_counts(result.kept, "teacher"), "teacher", "responses"),
        }
        return materialized(result, metadata=facts, partition_version=version)

    @stage.asset(schema=QUERY, version=1, knobs=[recipe.cleaning], partitions_def=partitions.source, row_law=True)
    def clean_queries(context: dg.AssetExecutionContext, raw_queries: pl.DataFrame) -> dg.MaterializeResult:
        """Queries that pass the cleaning rules: script, length, URL, table, figure, unbalanced, incomplete.

        Texts are not changed.
        """
        result = clean(raw_queries, recipe.cleaning)
        facts = {"share_kept": result.kept.height / max(1, result.rows_in)}
        chart = _chart(result, f"Cleaning of {context.partition_key}")
        return materialized(result, metadata=facts | _samples(result) | chart)

    @stage.asset(
        schema=QUERY_LABEL,
        version=3,
        knobs=[recipe.labels, *(recipe.models[name] for name in _label_models(recipe)), *_label_prompts(recipe)],
        partitions_def=partitions.source,
        pool="gpu" if recipe.labels.model else None,
        checks=["language_as_declared"],
    )
    def query_labels(
        context: dg.AssetExecutionContext,
        raw_queries: pl.DataFrame,
        lake: Lake,
        model_store: ModelStore,
        engine: EngineResource,
    ) -> dg.MaterializeResult:
        """What is known of every query before any response exists.

        Language and length; where the recipe names a model: category, difficulty and the constraints that it states.
        Labels that a source gives stand as they are.
        """
        labels = label(raw_queries).with_columns(tokens=_tokens(raw_queries, recipe, model_store))
        if recipe.labels.model is not None:
            labels = _labelled(labels, raw_queries, context, recipe, lake, model_store, engine)
        labels = with_given_labels(labels, raw_queries)
        share = float((labels["language"] == raw_queries["language"]).sum()) / max(1, labels.height)
        counts = _counts(labels, "language")
        facts = {
            "by_language": counts_table(counts, "language", "queries"),
            "words": int(labels["words"].sum()),
            "characters": int(labels["characters"].sum()),
            **_label_facts(labels),
            "plot": plots.svg_metadata(_histogram(labels["words"], f"Words per query, {context.partition_key}")),
        }
        declared = dg.AssetCheckResult(
            check_name="language_as_declared",
            passed=labels.is_empty() or share >= 0.5,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"share": share, "declared": recipe.sources[context.partition_key].language},
        )
        return materialized(labels, metadata=facts, checks=[declared])

    @stage.asset(
        schema=BENCHMARK_PROBLEM,
        version=1,
        knobs=[recipe.seed],
        partitions_def=partitions.benchmark,
        row_law=True,
        partition_versions={key: item.fingerprint() for key, item in recipe.evaluation.benchmarks.items()},
    )
    def benchmark_problems(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Problems of one benchmark; training queries are checked against every one of them."""
        key = context.partition_key
        benchmark = recipe.evaluation.benchmarks[key]
        reading = Reading(context.log.info)
        result = problem_table(_rows(benchmark, recipe.seed, reading), key, benchmark)
        _refuse(result, key, MAX_MALFORMED_PROBLEMS, reading)
        if result.kept.is_empty():
            raise dg.Failure(f"benchmark {key!r} has no problems.", allow_retries=False)
        facts = {
            "reader": benchmark.reader,
            **unpinned_dataset(benchmark.reader, benchmark.options),
            "license": benchmark.license,
            "example": frame_table(result.kept.select("problem_text", "reference_answer"), 3),
        }
        return materialized(result, metadata=facts | _samples(result), partition_version=benchmark.fingerprint())

    return stage.declared


def _label_models(recipe: Recipe) -> list[str]:
    return [name for name in (recipe.labels.model, recipe.labels.tokenizer) if name is not None]


def _label_prompts(recipe: Recipe) -> list[str]:
    return [prompt_hashes(recipe.labels)] if recipe.labels.model else []


def _tokens(queries: pl.DataFrame, recipe: Recipe, store: ModelStore) -> pl.Series:
    name = recipe.labels.tokenizer
    path = store.resolve(name, recipe.models[name]).path if name else None
    if path is None:
        return pl.Series("tokens", [None] * queries.height, dtype=pl.Int64)
    return pl.Series("tokens", token_counts(path, queries["query_text"].fill_null("").to_list()), dtype=pl.Int64)


def _labelled(
    labels: pl.DataFrame,
    queries: pl.DataFrame,
    context: dg.AssetExecutionContext,
    recipe: Recipe,
    lake: Lake,
    store: ModelStore,
    engine: EngineResource,
) -> pl.DataFrame:
    """Return labels with what the recipe's model says; the model is loaded when the first query is asked."""
    name = str(recipe.labels.model)
    model = store.resolve(name, recipe.models[name])
    named = f"{name}@{model.revision}"
    chunks = ChunkStore(
        lake, f"_chunks/query_labels/{context.partition_key}", "response_id", GENERATED, {"model": named}
    )
    session = LazySession(lambda: engine.open(model, PromptStyle()))
    try:
        found = Labeller(named, recipe.labels, session, chunks, context.log.info).labels(queries)
    finally:
        session.close()
    found = found.with_columns(label_model=pl.lit(named), label_prompts=pl.lit(prompt_hashes(recipe.labels)))
    return conform(pl.concat([labels.drop(found.columns), found], how="horizontal"), QUERY_LABEL)


def _label_facts(labels: pl.DataFrame) -> dict[str, Any]:
    """Return label counts and why labels are missing, where a model gave them."""
    if labels["label_model"].null_count() == labels.height:
        return {}
    names = {"label_category": "category", "label_difficulty": "difficulty"}
    facts: dict[str, Any] = {
        f"by_{name}": counts_table(_counts(labels.drop_nulls(column), column), name, "queries")
        for column, name in names.items()
    }
    reasons = pl.concat(labels[f"{name}_null_reason"] for name in ("category", "difficulty", "constraints"))
    missing = reasons.drop_nulls().value_counts(sort=True, name="labels").head(20)
    return facts | {
        "with_constraints": labels["label_constraints"].count(),
        "label_model": labels["label_model"].drop_nulls()[0],
        "label_prompts": next(iter(labels["label_prompts"].drop_nulls()), "none"),
        "labels_missing": counts_table(dict(missing.iter_rows()), "reason", "labels"),
    }


def source_version(source: Source) -> str:
    """Return what makes a source stale: its entry, and the local files that it reads."""
    stamp = input_stamp(source.reader, source.options, source.corrections)
    return fingerprint([source.fingerprint(), *stamp]) if stamp else source.fingerprint()


def _begin(corrections: str | None, log: Callable[[str], None]) -> Reading:
    try:
        return Reading(log, Corrections.load(corrections) if corrections else Corrections())
    except DeepDistillError as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def _rows(entry: Source | Benchmark, seed: int, reading: Reading) -> Rows:
    """Read a source; what is wrong with it as a whole will not mend itself, so Dagster must not retry."""
    try:
        yield from read_rows(entry.reader, entry.options, entry.limit, seed, reading)
    except DeepDistillError as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def _checked(rows: Rows, source: Source, judged: bool) -> Rows:
    return with_usable_references(rows, source.category, judged) if source.check_references else rows


def _refuse(result: StageResult | StreamedResult, key: str, limit: float, reading: Reading) -> None:
    """Fail before anything is written when too much is malformed: silently smaller data is worse."""
    if result.rows_in == 0:
        raise dg.Failure(f"{key}: there is not one row in it. Fix: check its options.", allow_retries=False)
    bad, files = quarantined(result), reading.notes["files"]
    bad_files = result.dropped.filter(pl.col("reason") == UNREADABLE_FILE).height
    if bad_files > limit * max(1, files) or bad > limit * result.rows_in:
        reasons = ", ".join(f"{reason} {rows}" for reason, rows in result.dropped_by_reason().items())
        first = result.dropped.row(0, named=True)
        raise dg.Failure(
            f"{key}: {bad} of {result.rows_in} rows are malformed, more than {limit:.1%} ({reasons}). "
            f"First: {first['row_id']}: {first['detail']}. Fix: mend the rows (`deepdistill quarantine {key}`), "
            f"or raise max_quarantined.",
            metadata={"dropped_samples": frame_table(result.dropped)},
            allow_retries=False,
        )


def _notes(reading: Reading) -> dict[str, Any]:
    """Return what was accepted all the same, and which corrections met no row."""
    notes: dict[str, Any] = {name: count for name, count in sorted(reading.notes.items()) if count}
    if reading.extra_columns:
        notes["extra_columns"] = ", ".join(sorted(reading.extra_columns))
    if reading.drift:
        rows = [(file, what, count) for (file, what), count in sorted(reading.drift.items())]
        notes["schema_drift"] = frame_table(pl.DataFrame(rows, schema=["file", "drift", "rows"], orient="row"), 60)
    if reading.corrections.by_place:
        notes["corrections_used"] = len(reading.corrections.used)
        notes["corrections_unused"] = ", ".join(reading.corrections.unused[:20]) or "none"
    return notes


def _filled(queries: pl.LazyFrame) -> dict[str, int]:
    """Return how many queries have what a verifier needs."""
    names = {
        "with_reference_answer": "reference_answer",
        "with_tests": "test_cases",
        "with_constraints": "constraints",
    }
    counted = {name: pl.col(column).count() for name, column in names.items()}
    counted["with_existing_responses"] = (pl.col("existing_responses") > 0).sum()
    return queries.select(**counted).collect().row(0, named=True)


def _counts(frame: pl.DataFrame | pl.LazyFrame, column: str) -> dict[str, int]:
    counts = frame.lazy().group_by(column).len().sort(["len", column], descending=[True, False]).collect()
    return dict(counts.iter_rows())


def _samples(result: StageResult | StreamedResult) -> dict[str, dg.MarkdownMetadataValue]:
    """Return up to two samples of each reason, so that a reader can judge the rules."""
    if result.dropped.is_empty():
        return {}
    few = result.dropped.group_by("reason", maintain_order=True).head(2).select("row_id", "reason", "detail")
    return {"dropped_samples": frame_table(few, 20)}


def _chart(result: StageResult | StreamedResult, title: str) -> dict[str, dg.MarkdownMetadataValue]:
    counts = {"kept": result.rows_kept, **result.dropped_by_reason()}
    return {"plot": plots.svg_metadata(plots.bar_chart(list(counts), {"rows": list(counts.values())}, title))}


def _histogram(values: pl.Series, title: str) -> str:
    edges = [0, 5, 10, 20, 50, 100, 200, 500, 1000]
    ends = [*edges[1:], 10**9]
    names = [f"{low}-{high - 1}" if high < 10**9 else f"{low}+" for low, high in zip(edges, ends, strict=True)]
    counts = [int(((values >= low) & (values < high)).sum()) for low, high in zip(edges, ends, strict=True)]
    return plots.bar_chart(names, {"queries": counts}, title)
