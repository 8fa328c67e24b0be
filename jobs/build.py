"""The house, put together: one recipe (what science) and one profile (what machines) become Dagster definitions."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from deepdistill_assets.evaluation import assets as evaluation
from deepdistill_assets.grading import assets as grading
from deepdistill_assets.models import assets as models
from deepdistill_assets.partitions import Partitions
from deepdistill_assets.publishing import assets as publishing
from deepdistill_assets.quality import assets as quality
from deepdistill_assets.queries import assets as queries
from deepdistill_assets.queries import curation_assets as curation
from deepdistill_assets.recipe import Recipe, load_recipe
from deepdistill_assets.reports import assets as reports
from deepdistill_assets.responses import assets as responses
from deepdistill_assets.selection import assets as selection
from deepdistill_assets.training import assets as training
from deepdistill_assets.verification import assets as verification
from deepdistill_resources.profiles import profile_named, read_environment
from jobs import run_log
from jobs.asset_jobs import asset_jobs
from jobs.automation import fill_sensors, uses_gpu, with_nightly_fill
from jobs.schedules import schedules
from jobs.sensors import failure_sensor, new_files_sensor

ROOMS = (
    models,
    queries,
    curation,
    responses,
    verification,
    quality,
    grading,
    selection,
    publishing,
    training,
    evaluation,
    reports,
)


def build_assets(recipe: Recipe) -> list[dg.AssetsDefinition]:
    """Return every asset of a recipe, room by room."""
    partitions = Partitions.of(recipe)
    return [asset for room in ROOMS for asset in room.build_assets(recipe, partitions)]


def build_definitions(
    profile: str | None = None,
    recipe: str | Recipe | None = None,
    resource_overrides: Mapping[str, Any] | None = None,
) -> dg.Definitions:
    """Return the definitions of one recipe on one profile.

    Args:
        profile: embedded, gpu, cluster or ray; default: the environment's.
        recipe: a recipe, its name, or the path of a YAML file; default: the environment's.
        resource_overrides: resources by parameter name, instead of the profile's (for tests).
    """
    environment = read_environment()
    chosen = profile_named(profile or environment.profile)
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe or environment.recipe)
    overrides = dict(resource_overrides or {})
    resources = overrides if "io_manager" in overrides else chosen.resources(environment, recipe.name) | overrides
    assets = with_nightly_fill(build_assets(recipe))
    jobs = asset_jobs(assets)
    return dg.Definitions(
        assets=assets,
        jobs=jobs,
        schedules=schedules(jobs, recipe),
        sensors=[*fill_sensors(assets), *new_files_sensor(recipe), failure_sensor(environment.alert_webhook)],
        resources=resources,
        executor=chosen.executor(environment, [asset.op.name for asset in assets if uses_gpu(asset)]),
        loggers={run_log.NAME: run_log.run_logger},
    )
