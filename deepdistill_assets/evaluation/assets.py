"""Checkpoints, their responses to the benchmarks, their scores, and the scoreboard."""

import json
from typing import Any

import dagster as dg
import polars as pl

from deepdistill_assets import tables
from deepdistill_assets.evaluation import metrics
from deepdistill_assets.evaluation.scoreboard import (
    claim_differences,
    contaminated_rows,
    render_scoreboard,
    scoreboard_rows,
)
from deepdistill_assets.evaluation.scoreboard import training_contamination as find_training_contamination
from deepdistill_assets.partitions import Partitions, split_checkpoint_key
from deepdistill_assets.recipe import Recipe
from deepdistill_assets.stage import Stage, counts_table, frame_table, materialized, partition_of
from deepdistill_resources import plots
from deepdistill_resources.benchmarking import BenchmarkRun, answer_benchmark
from deepdistill_resources.engines.prompting import PromptStyle
from deepdistill_resources.engines.resource import EngineResource
from deepdistill_resources.io_managers import DATA_FILE, partition_directory
from deepdistill_resources.judges import prompt_hashes
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ModelStore, ResolvedModel
from deepdistill_resources.verifiers.base import NamedModel, VerificationSettings
from deepdistill_resources.verifiers.suite import VerifierSuite

_REPORT = dg.AssetIn(metadata={"allow_missing_partitions": True})


def build_assets(recipe: Recipe, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """Return the assets of the evaluation room."""
    stage = Stage("evaluation", recipe)
    evaluation = recipe.evaluation
    stages = ["stage1"] + (["stage2"] if recipe.training.stage2 else [])

    @stage.asset(
        schema=tables.CHECKPOINT,
        version=1,
        knobs=[_given_models(recipe)] if evaluation.checkpoints else [],
        partitions_def=partitions.checkpoint,
        deps=_checkpoint_deps(recipe, stages),
    )
    def checkpoints(context: dg.AssetExecutionContext, lake: Lake, model_store: ModelStore) -> dg.MaterializeResult:
        """The registry of everything that is scored: one row per checkpoint, with where it lies and what made it."""
        row = _registry_row(context.partition_key, recipe, lake, model_store)
        return materialized(
            tables.conform(row, tables.CHECKPOINT),
            metadata={name: str(row[name][0]) for name in ("stage", "path", "model", "sha256") if row[name][0]},
        )

    @stage.asset(
        schema=tables.TRAINING_CONTAMINATION,
        version=1,
        checks=["none_unresolved"],
        ins={"contamination": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())},
        deps=[f"{name}_dataset" for name in stages],
    )
    def training_contamination(contamination: pl.DataFrame, lake: Lake) -> dg.MaterializeResult:
        """Training rows whose query matches a benchmark all the same: empty when decontamination did its work."""
        datasets = {name: lake.read_table(f"{name}_dataset/{DATA_FILE}") for name in stages}
        found = find_training_contamination(datasets, contamination)
        rows = dict(found.group_by("benchmark").agg(pl.col("example_id").n_unique()).sort("benchmark").iter_rows())
        check = dg.AssetCheckResult(
            check_name="none_unresolved",
            passed=found.is_empty(),
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"rows_by_benchmark": json.dumps(rows)},
        )
        return materialized(found, metadata={"rows_by_benchmark": counts_table(rows, "benchmark")}, checks=[check])

    @stage.asset(
        schema=tables.BENCHMARK_RESPONSE,
        version=1,
        knobs=[
            {
                key: item.model_dump(mode="json", include={"samples", "sampling"})
                for key, item in evaluation.benchmarks.items()
            },
            evaluation.sampling,
            {name: student.style for name, student in recipe.students.items()},
            {name: recipe.teachers[name].style for name in evaluation.include_teachers},
            [recipe.verification.seconds_per_test, recipe.verification.math_timeout_seconds],
            recipe.seed,
            *_judge_knobs(recipe),
        ],
        partitions_def=partitions.benchmark_checkpoint,
        kinds=("transformers", "parquet"),
        pool="gpu",
        deps=["training_contamination"] if evaluation.block_on_contamination else [],
    )
    def benchmark_responses(
        context: dg.AssetExecutionContext,
        checkpoints: pl.DataFrame,
        benchmark_problems: pl.DataFrame,
        lake: Lake,
        model_store: ModelStore,
        engine: EngineResource,
        verifier_suite: VerifierSuite,
    ) -> dg.MaterializeResult:
        """What a checkpoint wrote for each problem of a benchmark (k samples), each verified by all of its tests."""
        benchmark, checkpoint = partition_of(context, "benchmark"), partition_of(context, "checkpoint")
        if evaluation.block_on_contamination:
            _refuse_contaminated(lake, benchmark, checkpoint)
        settings = evaluation.benchmarks[benchmark]
        sampling = settings.sampling or evaluation.sampling
        model, style = _model_and_style(checkpoints.row(0, named=True), recipe, lake, model_store)
        run = BenchmarkRun(model, style, sampling, settings.samples, recipe.seed, _verification(recipe))
        answers = answer_benchmark(run, benchmark_problems, engine, verifier_suite, lake, context.log.info)
        rows = answers.rows.with_columns(benchmark=pl.lit(benchmark), checkpoint=pl.lit(checkpoint))
        rows = tables.conform(rows, tables.BENCHMARK_RESPONSE)
        return materialized(
            rows,
            metadata={
                "passed": int(rows["passed"].fill_null(False).sum()),
                "tokens": int(rows["completion_tokens"].sum()),
                "tokens_per_second": answers.tokens_per_second,
                "responses_reused": answers.reused,
                "engine": ", ".join(rows["engine"].unique().sort()),
                "examples": frame_table(rows.select("text", "answer", "passed", "verdict", "verifier"), 5),
            },
        )

    @stage.asset(
        schema=tables.BENCHMARK_SCORE,
        version=3,
        knobs=[evaluation.bootstrap_samples, recipe.seed],
        partitions_def=partitions.benchmark_checkpoint,
    )
    def benchmark_scores(
        context: dg.AssetExecutionContext,
        benchmark_responses: pl.DataFrame,
        benchmark_problems: pl.DataFrame,
        training_contamination: pl.DataFrame,
    ) -> dg.MaterializeResult:
        """avg@k (the papers' pass@1), pass@k and maj@k with intervals over problems, and how answers ended."""
        benchmark, checkpoint = partition_of(context, "benchmark"), partition_of(context, "checkpoint")
        settings = evaluation.benchmarks[benchmark]
        rows = metrics.benchmark_scores(
            benchmark_responses,
            benchmark,
            checkpoint,
            settings.samples,
            evaluation.bootstrap_samples,
            recipe.seed,
            votes=settings.category in ("math", "science"),
            problem_ids=benchmark_problems["problem_id"].to_list(),
            contaminated=contaminated_rows(training_contamination, benchmark, checkpoint),
        )
        facts = {row["metric"].replace("@", "_at_"): row["value"] for row in rows.iter_rows(named=True)}
        return materialized(rows, metadata={**facts, "scores": frame_table(rows)})

    @stage.asset(
        schema=tables.SCOREBOARD,
        version=2,
        knobs=[recipe.evaluation, recipe.seed],
        checks=["beats_base_model"],
        ins=dict.fromkeys(("benchmark_scores", "benchmark_responses", "contamination"), _REPORT),
    )
    def scoreboard(
        benchmark_scores: pl.DataFrame,
        benchmark_responses: pl.DataFrame,
        contamination: pl.DataFrame,
        training_contamination: pl.DataFrame,
    ) -> dg.MaterializeResult:
        """All checkpoints side by side: scores, paired differences from the base with intervals, and what to heed."""
        board = scoreboard_rows(benchmark_scores, benchmark_responses, contamination, recipe, training_contamination)
        return materialized(
            board,
            metadata={
                "scoreboard": dg.MetadataValue.md(f"```\n{render_scoreboard(board)}\n```"),
                "plot": plots.svg_metadata(_board_chart(board)),
            },
            checks=[_beats_base(board, recipe)],
        )

    return stage.declared


def _checkpoint_deps(recipe: Recipe, stages: list[str]) -> list[dg.AssetDep]:
    """Return the upstream assets: stage 1 must not wait for stage 2, so each stage maps to its own keys."""

    def dep(asset: str, keys: dict[str, str]) -> dg.AssetDep:
        return dg.AssetDep(asset, partition_mapping=dg.StaticPartitionMapping(keys))

    deps = [dep("student_models", {student: f"{student}--base" for student in recipe.students})]
    deps += [
        dep(f"{name}_checkpoint", {student: f"{student}--{name}" for student in recipe.students}) for name in stages
    ]
    if recipe.evaluation.include_teachers:
        deps.append(dep("teacher_models", {name: f"teacher--{name}" for name in recipe.evaluation.include_teachers}))
    return deps


def _given_models(recipe: Recipe) -> dict[str, Any]:
    return {
        name: {"student": given.student, "origin": recipe.models[given.model]}
        for name, given in recipe.evaluation.checkpoints.items()
    }


def _refuse_contaminated(lake: Lake, benchmark: str, checkpoint: str) -> None:
    found = lake.read_table(f"training_contamination/{DATA_FILE}")
    rows = contaminated_rows(found, benchmark, checkpoint)
    if rows:
        raise dg.Failure(
            f"{rows} training rows of {checkpoint} match problems of {benchmark}; the recipe blocks its evaluation. "
            "Fix: materialize distillation_queries and what follows again, or set evaluation.block_on_contamination: "
            "false (the scoreboard then marks it).",
            allow_retries=False,
        )


def _registry_row(key: str, recipe: Recipe, lake: Lake, model_store: ModelStore) -> pl.DataFrame:
    owner, stage = split_checkpoint_key(key)
    if owner != "teacher" and stage in recipe.evaluation.checkpoints:
        name = recipe.evaluation.checkpoints[stage].model
        sha256 = model_store.resolve(name, recipe.models[name]).sha256
        given = {"checkpoint": key, "student": owner, "stage": stage, "model": name, "sha256": sha256}
        return tables.conform(pl.DataFrame([given]), tables.CHECKPOINT)

    def read(asset: str, dimension_key: str) -> pl.DataFrame:
        return lake.read_table(f"{partition_directory(asset, {'partition': dimension_key})}/{DATA_FILE}")

    if owner == "teacher" or stage == "base":
        model = read(
            "teacher_models" if owner == "teacher" else "student_models", stage if owner == "teacher" else owner
        )
        return pl.DataFrame(
            {
                "checkpoint": [key],
                "student": [owner],
                "stage": [stage],
                "path": pl.Series([None], dtype=pl.String),
                "model": model["model"],
                "sha256": model["sha256"],
            }
        )
    return read(f"{stage}_checkpoint", owner)


def _model_and_style(
    row: dict[str, Any], recipe: Recipe, lake: Lake, model_store: ModelStore
) -> tuple[ResolvedModel, PromptStyle]:
    owner, name = split_checkpoint_key(row["checkpoint"])
    style = recipe.teachers[name].style if owner == "teacher" else recipe.students[owner].style
    if row["path"] is None:
        return model_store.resolve(row["model"], recipe.models[row["model"]]), style
    path = lake.fetch_directory(row["path"])
    return ResolvedModel(row["checkpoint"], path, row["sha256"][:16], row["sha256"], "", "checkpoint"), style


def _verification(recipe: Recipe) -> VerificationSettings:
    """Return the settings of scoring: all tests, and no judge unless `evaluation.judge_model` names one."""
    part, judge = recipe.verification, recipe.evaluation.judge_model
    return VerificationSettings(
        seconds_per_test=part.seconds_per_test,
        math_timeout_seconds=part.math_timeout_seconds,
        judge="fallback" if judge else "off",
        judge_model=NamedModel(judge, recipe.models[judge]) if judge else None,
        judge_sampling=part.judge_sampling,
        judge_control=part.judge_control,
    )


def _judge_knobs(recipe: Recipe) -> list[Any]:
    judge = recipe.evaluation.judge_model
    return [{judge: recipe.models[judge]}, recipe.verification.judge_sampling, prompt_hashes()] if judge else []


def _board_chart(board: pl.DataFrame) -> str:
    rows = [
        (f"{row['benchmark']} · {row['checkpoint']}", row["interval_low"], row["value"], row["interval_high"])
        for row in board.drop_nulls("value").iter_rows(named=True)
    ]
    return plots.interval_chart(rows, "Scores with 95 % intervals over problems")


def _beats_base(board: pl.DataFrame, recipe: Recipe) -> dg.AssetCheckResult:
    claims = claim_differences(board, recipe)
    lows = {f"{row['benchmark']} {row['checkpoint']}": row["difference_low"] for row in claims.iter_rows(named=True)}
    return dg.AssetCheckResult(
        check_name="beats_base_model",
        passed=bool(lows) and all(low > 0 for low in lows.values()),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"lowest_difference": json.dumps(lows)},
    )
