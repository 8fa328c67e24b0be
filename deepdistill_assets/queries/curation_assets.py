"""The queries room, second half: unique queries across all sources, without those that give away a benchmark."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from deepdistill_assets.partitions import Partitions
from deepdistill_assets.queries import decontamination, duplicates, minhash
from deepdistill_assets.queries.candidates import CandidateSearch
from deepdistill_assets.queries.downsampling import downsampled
from deepdistill_assets.queries.embedding import BLOCK, OpenEmbedder, embedded
from deepdistill_assets.queries.labeller import with_label_constraints
from deepdistill_assets.queries.vectors import VectorBlock, aligned_vectors, placed_vectors
from deepdistill_assets.recipe import Recipe
from deepdistill_assets.stage import Stage, counts_table, frame_table, materialized
from deepdistill_assets.tables import (
    CONTAMINATION,
    DUPLICATE_CLUSTER,
    PROBLEM_EMBEDDING,
    QUERY,
    QUERY_EMBEDDING,
    QUERY_SIGNATURE,
    conform,
    empty,
)
from deepdistill_resources import plots
from deepdistill_resources.compute import Compute
from deepdistill_resources.embedders import Embedder
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ModelStore
from deepdistill_resources.stage_result import StageResult, StreamedResult, TableParts

SAMPLES = 10
UNIT_TOLERANCE = 1e-3


def build_assets(recipe: Recipe, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """Return the assets from `query_signatures` to `distillation_queries`."""
    stage = Stage("queries", recipe)
    _declare_uniqueness(stage, recipe, partitions)
    _declare_decontamination(stage, recipe, partitions)
    _declare_pool(stage, recipe, partitions)
    return stage.declared


def _declare_uniqueness(stage: Stage, recipe: Recipe, partitions: Partitions) -> None:
    settings = recipe.deduplication
    sketch = [settings.num_permutations, settings.bands, settings.rows, settings.shingle_words]
    thresholds = [settings.shingle_words, settings.jaccard_threshold, settings.semantic_threshold, settings.survivor]

    # A source's priority is a column, not a knob: a change of one source must not make the others stale.
    @stage.asset(
        schema=QUERY_SIGNATURE,
        version=5,
        knobs=sketch,
        partitions_def=partitions.source,
        kinds=("polars", "numba"),
        partition_versions={key: str(source.priority) for key, source in recipe.sources.items()},
    )
    def query_signatures(
        context: dg.AssetExecutionContext, clean_queries: pl.LazyFrame, query_labels: pl.LazyFrame, compute: Compute
    ) -> dg.MaterializeResult:
        """What duplicates are found by: hash of the normalised text and MinHash band keys of every query."""
        priority = recipe.sources[context.partition_key].priority
        on_all_nodes = partial(compute.apply, name="signatures", log=context.log.info)
        signed = TableParts(QUERY_SIGNATURE)
        for block in minhash.query_signatures(clean_queries, priority, settings, query_labels, on_all_nodes):
            signed.add(block)
        known = signed.scan().select(pl.col("exact_hash").n_unique(), pl.col("has_reference").sum()).collect()
        facts = {
            "priority": priority,
            "distinct_texts": known["exact_hash"].item(),
            "with_reference": known["has_reference"].item(),
            "chance_to_meet": plots.svg_metadata(_chance_to_meet(settings.bands, settings.rows)),
        }
        return materialized(signed, metadata=facts, partition_version=str(priority))

    @stage.asset(
        schema=QUERY_EMBEDDING,
        version=1,
        knobs=[recipe.embedding],
        partitions_def=partitions.source,
        pool="gpu",
        kinds=("polars", "pytorch"),
        checks=["unit_length"],
    )
    def query_embeddings(
        context: dg.AssetExecutionContext,
        clean_queries: pl.LazyFrame,
        model_store: ModelStore,
        embedder: Embedder,
        compute: Compute,
    ) -> dg.MaterializeResult:
        """A unit vector for the meaning of every query; empty where the recipe has no embedder."""
        table = TableParts(QUERY_EMBEDDING)
        if recipe.embedding is None:
            unused = dg.AssetCheckResult(check_name="unit_length", passed=True, metadata={"embedder": "none"})
            return materialized(table, metadata={"embedder": "none"}, checks=[unused])
        queries = clean_queries.select("query_id", "source", "query_text").collect(engine="streaming")
        shortest, longest = 1.0, 1.0
        opener = OpenEmbedder(embedder, model_store, recipe.embedding.origin)
        blocks = embedded(queries["query_text"], recipe.embedding.dimension, opener, compute, context.log.info)
        for keys, vectors in zip(queries.drop("query_text").iter_slices(BLOCK), blocks, strict=True):
            lengths = np.linalg.norm(vectors, axis=1)
            shortest, longest = min(shortest, float(lengths.min())), max(longest, float(lengths.max()))
            table.add(conform(keys.with_columns(embedding=pl.Series(vectors)), QUERY_EMBEDDING))
        checked = dg.AssetCheckResult(
            check_name="unit_length",
            passed=shortest >= 1 - UNIT_TOLERANCE and longest <= 1 + UNIT_TOLERANCE,
            metadata={"shortest": shortest, "longest": longest},
        )
        return materialized(table, metadata={"dimension": recipe.embedding.dimension}, checks=[checked])

    # Texts and vectors of all sources are never in memory at once.
    @stage.asset(schema=DUPLICATE_CLUSTER, version=4, knobs=thresholds, kinds=("polars", "numba"))
    def duplicate_clusters(
        context: dg.AssetExecutionContext,
        query_signatures: pl.LazyFrame,
        clean_queries: pl.LazyFrame,
        query_embeddings: pl.LazyFrame,
        lake: Lake,
        compute: Compute,
    ) -> dg.MaterializeResult:
        """Groups of queries that ask the same, across all sources: exact, near and semantic, with one survivor each."""
        compared = settings if recipe.embedding else settings.model_copy(update={"semantic_threshold": None})
        search = CandidateSearch(compute, lake, context.log.info)
        clusters = duplicates.duplicate_clusters(query_signatures, clean_queries, query_embeddings, compared, search)
        removed = clusters.filter(pl.col("method") != duplicates.SURVIVOR)
        queries = query_signatures.select(pl.len()).collect().item()
        facts = {
            "queries": queries,
            "clusters": clusters.height - removed.height,
            "removed": removed.height,
            "removed_share": removed.height / max(1, queries),
            "removed_by_method": counts_table(_counts(removed, "method"), "method", "queries"),
            "survivors_and_duplicates": frame_table(_side_by_side(clusters, clean_queries), 3 * SAMPLES),
            "plot": plots.svg_metadata(_by_source(removed, "method", list(recipe.sources), "Duplicates removed")),
        }
        return materialized(clusters, metadata=facts)

    @stage.asset(schema=QUERY, version=1, partitions_def=partitions.source, row_law=True)
    def deduped_queries(clean_queries: pl.LazyFrame, duplicate_clusters: pl.LazyFrame) -> dg.MaterializeResult:
        """Queries that no other query stands for; each dropped one names its survivor and the similarity."""
        result = duplicates.without_duplicates(clean_queries, duplicate_clusters)
        return materialized(result, metadata=_drop_facts(result))


def _declare_decontamination(stage: Stage, recipe: Recipe, partitions: Partitions) -> None:
    settings = recipe.decontamination
    every_benchmark = dg.AssetIn(partition_mapping=dg.AllPartitionMapping())

    @stage.asset(
        schema=PROBLEM_EMBEDDING,
        version=1,
        knobs=[recipe.embedding],
        partitions_def=partitions.benchmark,
        pool="gpu",
        kinds=("polars", "pytorch"),
    )
    def problem_embeddings(
        context: dg.AssetExecutionContext,
        benchmark_problems: pl.DataFrame,
        model_store: ModelStore,
        embedder: Embedder,
        compute: Compute,
    ) -> dg.MaterializeResult:
        """A unit vector for the meaning of every benchmark problem; empty where the recipe has no embedder."""
        if recipe.embedding is None:
            return materialized(empty(PROBLEM_EMBEDDING), metadata={"embedder": "none"})
        opener, texts = OpenEmbedder(embedder, model_store, recipe.embedding.origin), benchmark_problems["problem_text"]
        blocks = embedded(texts, recipe.embedding.dimension, opener, compute, context.log.info)
        vectors = np.concatenate([np.empty((0, recipe.embedding.dimension), np.float32), *blocks])
        table = benchmark_problems.select("problem_id", "benchmark").with_columns(embedding=pl.Series(vectors))
        return materialized(conform(table, PROBLEM_EMBEDDING), metadata={"dimension": vectors.shape[1]})

    @stage.asset(
        schema=CONTAMINATION,
        version=2,
        knobs=[settings],
        partitions_def=partitions.source,
        ins={"benchmark_problems": every_benchmark, "problem_embeddings": every_benchmark},
        checks=["few_contaminated"],
    )
    def contamination(
        deduped_queries: pl.DataFrame,
        query_embeddings: pl.LazyFrame,
        benchmark_problems: pl.DataFrame,
        problem_embeddings: pl.LazyFrame,
    ) -> dg.MaterializeResult:
        """Every match between a query and a benchmark problem, with both texts side by side."""
        problem_vectors = None
        query_vectors: Iterable[VectorBlock] = ()
        if recipe.embedding is not None and settings.semantic_threshold is not None:
            names = benchmark_problems.select("problem_id", "benchmark")
            problem_vectors = aligned_vectors(names, problem_embeddings)
            query_vectors = placed_vectors(deduped_queries.select("query_id", "source"), query_embeddings)
        matches = decontamination.contamination(
            deduped_queries, benchmark_problems, settings, query_vectors, problem_vectors
        )
        contaminated = matches["query_id"].n_unique()
        share = contaminated / max(1, deduped_queries.height)
        facts = {
            "problems": benchmark_problems.height,
            "queries_contaminated": contaminated,
            "matches_by_method": counts_table(_counts(matches, "method"), "method", "matches"),
            "matches_by_benchmark": counts_table(_counts(matches, "benchmark"), "benchmark", "matches"),
            "matches": frame_table(
                matches.select("benchmark", "method", "similarity", "query_text", "problem_text"), 2 * SAMPLES
            ),
        }
        few = dg.AssetCheckResult(
            check_name="few_contaminated",
            passed=share <= 0.5,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"share": share},
        )
        return materialized(matches, metadata=facts, checks=[few])


def _declare_pool(stage: Stage, recipe: Recipe, partitions: Partitions) -> None:
    sampled = [recipe.downsampling, recipe.seed] if recipe.downsampling else []

    @stage.asset(schema=QUERY, version=2, knobs=sampled, partitions_def=partitions.source, row_law=True)
    def distillation_queries(
        deduped_queries: pl.DataFrame, contamination: pl.DataFrame, query_labels: pl.DataFrame
    ) -> dg.MaterializeResult:
        """The final pool that teachers answer: clean, unique and without a match in any benchmark.

        Of queries labelled easy only a share stays where the recipe says so.
        A query that carries no constraints as data takes those that were read out of it.
        """
        queries = with_label_constraints(deduped_queries, query_labels)
        result = decontamination.without_contaminated(queries, contamination)
        if recipe.downsampling:
            result = downsampled(result, query_labels, recipe.downsampling, recipe.seed)
        facts = {
            "by_category": counts_table(_counts(result.kept, "category"), "category", "queries"),
            "by_language": counts_table(_counts(result.kept, "language"), "language", "queries"),
        }
        return materialized(result, metadata=_drop_facts(result) | facts)


def _side_by_side(clusters: pl.DataFrame, queries: pl.LazyFrame) -> pl.DataFrame:
    """Return the least similar members of each method beside their survivors."""
    members = clusters.filter(pl.col("method") != duplicates.SURVIVOR)
    ranked = [part.bottom_k(SAMPLES, by=["similarity", "query_id"]) for part in members.partition_by("method")]
    chosen = pl.concat([members.clear(), *ranked]).sort("method", "similarity", "query_id")
    heads = clusters.filter(
        pl.col("method") == duplicates.SURVIVOR, pl.col("cluster_id").is_in(chosen["cluster_id"].implode())
    )
    shown = [*chosen["query_id"], *heads["query_id"]]
    texts = queries.filter(pl.col("query_id").is_in(shown)).select("query_id", "source", text="query_text")
    known = texts.collect(engine="streaming")
    heads = heads.join(known, on=["query_id", "source"]).select("cluster_id", survivor="text")
    chosen = chosen.join(known, on=["query_id", "source"], maintain_order="left")
    joined = chosen.join(heads, on="cluster_id", maintain_order="left")
    return joined.select("method", "similarity", "source", "survivor", duplicate="text")


def _by_source(removed: pl.DataFrame, column: str, sources: list[str], title: str) -> str:
    counts = {(source, name): rows for source, name, rows in removed.group_by("source", column).len().iter_rows()}
    names = sorted({name for _, name in counts})
    return plots.bar_chart(sources, {name: [counts.get((key, name), 0) for key in sources] for name in names}, title)


def _chance_to_meet(bands: int, rows: int) -> str:
    """Draw the chance that two queries share a band key, by Jaccard similarity."""
    points = [(step / 50, 1 - (1 - (step / 50) ** rows) ** bands) for step in range(51)]
    title = f"Chance that a pair becomes a candidate, {bands} bands of {rows}"
    return plots.line_chart({"candidate": points}, title, "Jaccard similarity")


def _counts(frame: pl.DataFrame, column: str) -> dict[str, int]:
    counts = frame.group_by(column).len().sort("len", column, descending=[True, False])
    return {str(name): rows for name, rows in counts.iter_rows()}


def _drop_facts(result: StageResult | StreamedResult) -> dict[str, Any]:
    reasons = {"kept": result.rows_kept, **result.dropped_by_reason()}
    chart = plots.bar_chart(list(reasons), {"rows": list(reasons.values())}, "Kept and dropped")
    return {
        "share_kept": result.rows_kept / max(1, result.rows_in),
        "dropped_samples": frame_table(result.dropped.select("reason", "detail"), SAMPLES),
        "plot": plots.svg_metadata(chart),
    }
