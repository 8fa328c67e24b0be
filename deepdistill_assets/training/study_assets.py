"""The learning-rate study and the selection study: partitioned by arm, each with a summary over all arms."""

from typing import Any

import dagster as dg
import polars as pl

from deepdistill_assets.partitions import Partitions, learning_rate_key
from deepdistill_assets.recipe import Recipe
from deepdistill_assets.stage import Stage, frame_table, materialized
from deepdistill_assets.tables import STUDY_SUMMARY, TRAINING_STUDY
from deepdistill_assets.training.checkpoints import TrainingRun
from deepdistill_assets.training.curves import loss_chart
from deepdistill_assets.training.examples import training_examples
from deepdistill_assets.training.selection_arms import arm_dataset, arm_responses, draw
from deepdistill_assets.training.studies import (
    StudyTools,
    run_and_score,
    study_benchmarks,
    study_student,
    summarise,
)
from deepdistill_resources.engines.resource import EngineResource
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ModelStore
from deepdistill_resources.plots import interval_chart, svg_metadata
from deepdistill_resources.trainers.base import Trainer, TrainingParameters
from deepdistill_resources.verifiers.suite import VerifierSuite

_ALL = dg.AssetIn(partition_mapping=dg.AllPartitionMapping(), metadata={"allow_missing_partitions": True})
_SUMMARY = dg.AssetIn(metadata={"allow_missing_partitions": True})


def declare_learning_rate_study(stage: Stage, recipe: Recipe, partitions: Partitions) -> None:
    """Declare learning_rate_study and learning_rate_summary."""
    rates = {learning_rate_key(rate): rate for rate in recipe.training.learning_rates}

    @stage.asset(
        schema=TRAINING_STUDY,
        version=3,
        knobs=_knobs(recipe),
        partitions_def=partitions.learning_rate,
        kinds=("trl", "parquet"),
        pool="gpu",
        ins={"benchmark_problems": _problems(recipe)},
        deps=[_student(recipe)],
    )
    def learning_rate_study(
        context: dg.AssetExecutionContext,
        stage1_dataset: pl.DataFrame,
        benchmark_problems: pl.DataFrame,
        lake: Lake,
        model_store: ModelStore,
        trainer: Trainer,
        engine: EngineResource,
        verifier_suite: VerifierSuite,
    ) -> dg.MaterializeResult:
        """Same data, one learning rate, every study seed: training loss and score (DeepDistill section 4.4.2)."""
        tools = StudyTools(trainer, engine, verifier_suite, lake, context.log.info)
        rate = {"learning_rate": rates[context.partition_key]}
        frames = []
        for seed in recipe.training.study_seeds:
            run = _run(f"lr-{context.partition_key}", stage1_dataset, {**rate, "seed": seed}, recipe, model_store)
            frames.append(run_and_score(run, context.partition_key, _by_benchmark(benchmark_problems), recipe, tools))
        return _study(pl.concat(frames))

    @stage.asset(schema=STUDY_SUMMARY, version=3, knobs=[recipe.seed], ins={"learning_rate_study": _SUMMARY})
    def learning_rate_summary(learning_rate_study: pl.DataFrame) -> dg.MaterializeResult:
        """Loss and score by learning rate, with intervals: does a base model want a higher one than the lowest?"""
        lowest = learning_rate_key(min(recipe.training.learning_rates))
        return _summary(learning_rate_study, "Learning-rate study", lowest, recipe)


def declare_selection_study(stage: Stage, recipe: Recipe, partitions: Partitions) -> None:
    """Declare selection_study and selection_summary."""
    inputs = ("verified_responses", "quality_checks", "difficulty_grades", "responses", "distillation_queries")

    @stage.asset(
        schema=TRAINING_STUDY,
        version=3,
        knobs=[recipe.training.selection_study_rows, recipe.selection.stage1.teacher, *_knobs(recipe)],
        partitions_def=partitions.selection_arm,
        kinds=("trl", "parquet"),
        pool="gpu",
        ins={**dict.fromkeys(inputs, _ALL), "benchmark_problems": _problems(recipe)},
        deps=[_student(recipe)],
    )
    def selection_study(
        context: dg.AssetExecutionContext,
        stage1_selection: pl.LazyFrame,
        verified_responses: pl.LazyFrame,
        quality_checks: pl.LazyFrame,
        difficulty_grades: pl.LazyFrame,
        responses: pl.LazyFrame,
        distillation_queries: pl.LazyFrame,
        benchmark_problems: pl.DataFrame,
        lake: Lake,
        model_store: ModelStore,
        trainer: Trainer,
        engine: EngineResource,
        verifier_suite: VerifierSuite,
    ) -> dg.MaterializeResult:
        """Equally many rows chosen in one way, every study seed: does selection by CV beat its alternatives?"""
        arm = context.partition_key
        candidates = arm_responses(
            arm,
            stage1_selection,
            verified_responses,
            quality_checks,
            difficulty_grades,
            recipe.selection.stage1.teacher,
        )
        tools = StudyTools(trainer, engine, verifier_suite, lake, context.log.info)
        frames = []
        for seed in recipe.training.study_seeds:
            chosen = draw(candidates, recipe.training.selection_study_rows, seed, arm)
            dataset = arm_dataset(chosen, _texts(responses, chosen), _messages(distillation_queries, chosen))
            run = _run(f"selection-{arm}", dataset, {"seed": seed}, recipe, model_store)
            frames.append(run_and_score(run, arm, _by_benchmark(benchmark_problems), recipe, tools))
        return _study(pl.concat(frames))

    @stage.asset(schema=STUDY_SUMMARY, version=3, knobs=[recipe.seed], ins={"selection_study": _SUMMARY})
    def selection_summary(selection_study: pl.DataFrame) -> dg.MaterializeResult:
        """Loss and score by way of selecting, each compared with random, with intervals, whichever way it comes out."""
        return _summary(selection_study, "Selection study", "random", recipe)


def _by_benchmark(problems: pl.DataFrame) -> dict[str, pl.DataFrame]:
    return {name: problems.filter(pl.col("benchmark") == name) for name in problems["benchmark"].unique().sort()}


def _run(
    stage: str, dataset: pl.DataFrame, changes: dict[str, Any], recipe: Recipe, model_store: ModelStore
) -> TrainingRun:
    student = study_student(recipe)
    name = recipe.students[student].model
    model = model_store.resolve(name, recipe.models[name])
    if model.path is None:
        raise dg.Failure(f"Student {student} is a served model; only weights can be trained.", allow_retries=False)
    parameters = TrainingParameters.model_validate({**recipe.training.stage1.model_dump(), **changes})
    return TrainingRun(
        student=student,
        stage=stage,
        model=model.path,
        base_revision=model.revision,
        examples=training_examples(dataset),
        parameters=parameters,
        style=recipe.students[student].style,
        recipe_version=recipe.fingerprint(),
    )


def _knobs(recipe: Recipe) -> list[Any]:
    benchmarks = {
        name: (item.samples, item.sampling or recipe.evaluation.sampling)
        for name, item in study_benchmarks(recipe).items()
    }
    training = [recipe.training.stage1, recipe.training.study_seeds]
    limits = [recipe.verification.seconds_per_test, recipe.verification.math_timeout_seconds]
    return [*training, recipe.students[study_student(recipe)], benchmarks, limits, recipe.seed]


def _problems(recipe: Recipe) -> dg.AssetIn:
    return dg.AssetIn(partition_mapping=dg.SpecificPartitionsPartitionMapping(list(study_benchmarks(recipe))))


def _student(recipe: Recipe) -> dg.AssetDep:
    mapping = dg.SpecificPartitionsPartitionMapping([study_student(recipe)])
    return dg.AssetDep("student_models", partition_mapping=mapping)


def _texts(responses: pl.LazyFrame, chosen: pl.DataFrame) -> pl.DataFrame:
    columns = ("response_id", "source", "category", "teacher", "think", "answer", "completion_tokens")
    # A filter that the reader applies: a join would hold the texts that are not chosen too.
    wanted = pl.col("response_id").is_in(chosen["response_id"].implode())
    return responses.select(columns).filter(wanted).collect(engine="streaming")


def _messages(queries: pl.LazyFrame, chosen: pl.DataFrame) -> pl.DataFrame:
    wanted = pl.col("query_id").is_in(chosen["query_id"].unique().implode())
    return queries.select("query_id", "messages").filter(wanted).collect(engine="streaming")


def _study(frame: pl.DataFrame) -> dg.MaterializeResult:
    curves = {
        f"{row['arm']} seed {row['seed']}": row["curve"] for row in frame.unique(["arm", "seed"]).iter_rows(named=True)
    }
    return materialized(
        frame,
        metadata={
            "runs": frame_table(frame.drop("curve", "accuracies")),
            "mean_score": float(frame["score"].mean() or 0.0),  # type: ignore[arg-type]
            "mean_final_loss": float(frame["final_loss"].mean() or 0.0),  # type: ignore[arg-type]
            "loss_curve": svg_metadata(loss_chart(curves)),
        },
    )


def _summary(study: pl.DataFrame, title: str, reference: str, recipe: Recipe) -> dg.MaterializeResult:
    summary = summarise(study, reference, recipe.evaluation.bootstrap_samples, recipe.seed)
    rows = [
        (
            f"{row['arm']} ({row['runs']} runs, {row['benchmark']})",
            row["interval_low"],
            row["score"],
            row["interval_high"],
        )
        for row in summary.iter_rows(named=True)
    ]
    plot = interval_chart(rows, f"{title}: score, 95 % over seeds and problems")
    return materialized(summary, metadata={"summary": frame_table(summary), "plot": svg_metadata(plot)})
