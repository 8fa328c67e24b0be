"""Which models take part: where each comes from, its revision, checksum and licence."""

import dagster as dg
import polars as pl

from deepdistill_assets import tables
from deepdistill_assets.partitions import Partitions
from deepdistill_assets.recipe import Recipe
from deepdistill_assets.stage import Stage, materialized
from deepdistill_resources.hub import unpinned
from deepdistill_resources.models import HubOrigin, ModelStore, ResolvedModel


def model_row(name: str, model: str, resolved: ResolvedModel) -> pl.DataFrame:
    """Return one MODEL row: `name` is the teacher's or student's, `model` the key of the recipe's models."""
    row = {
        "name": name,
        "model": model,
        "origin": resolved.origin,
        "revision": resolved.revision,
        "sha256": resolved.sha256,
        "license": resolved.license,
        "path": resolved.path.name if resolved.path else resolved.base_url,
    }
    return tables.conform(pl.DataFrame([row], schema=tables.MODEL), tables.MODEL)


def build_assets(recipe: Recipe, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """Return the assets of the models room."""
    stage = Stage("models", recipe)

    def registered(name: str, model: str, model_store: ModelStore) -> dg.MaterializeResult:
        origin = recipe.models[model]
        row = model_row(name, model, model_store.resolve(model, origin))
        facts = {key: str(row[key].item()) for key in ("origin", "revision", "license")}
        if isinstance(origin, HubOrigin):
            facts |= unpinned(origin.repository, origin.revision)
        return materialized(row, metadata=facts)

    @stage.asset(
        schema=tables.MODEL,
        version=1,
        knobs=[recipe.models, {name: teacher.model for name, teacher in recipe.teachers.items()}],
        partitions_def=partitions.teacher,
        kinds=("safetensors",),
    )
    def teacher_models(context: dg.AssetExecutionContext, model_store: ModelStore) -> dg.MaterializeResult:
        """A model that answers queries: where its weights come from, revision, sha256 and licence."""
        return registered(context.partition_key, recipe.teachers[context.partition_key].model, model_store)

    @stage.asset(
        schema=tables.MODEL,
        version=1,
        knobs=[recipe.models, {name: student.model for name, student in recipe.students.items()}],
        partitions_def=partitions.student,
        kinds=("safetensors",),
    )
    def student_models(context: dg.AssetExecutionContext, model_store: ModelStore) -> dg.MaterializeResult:
        """A model that will be trained: where its weights come from, revision, sha256 and licence."""
        return registered(context.partition_key, recipe.students[context.partition_key].model, model_store)

    return stage.declared
