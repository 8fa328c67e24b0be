"""What the house looks like from outside: assets, dependencies, groups, partitions, jobs, schedules, per recipe.

A change here is a change that users see. UPDATE_SNAPSHOT=1 writes the snapshots anew; look at their diff.
"""

import json
import os
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import dagster as dg
import pytest

from deepdistill_assets.recipe import recipe_names
from jobs.asset_jobs import JOBS
from jobs.build import build_definitions

SNAPSHOTS = Path(__file__).parent / "snapshots"
every_recipe = pytest.mark.parametrize("recipe", recipe_names())


@cache
def definitions_of(recipe):
    return build_definitions("embedded", recipe)


def partitions_of(definition):
    if definition is None:
        return None
    if isinstance(definition, dg.MultiPartitionsDefinition):
        return {part.name: part.partitions_def.get_partition_keys() for part in definition.partitions_defs}
    return definition.get_partition_keys()


def outline(definitions):
    graph = definitions.resolve_asset_graph()
    assets = {}
    for key in graph.toposorted_asset_keys:
        node = graph.get(key)
        assets[key.to_user_string()] = {
            "group": node.group_name,
            "deps": sorted(parent.to_user_string() for parent in node.parent_keys),
            "partitions": partitions_of(node.partitions_def),
            "pool": node.assets_def.op.pool,
            "checks": sorted(check.name for check in node.check_keys),
        }
    jobs = definitions.resolve_all_job_defs()
    return {
        "assets": assets,
        "jobs": {
            job.name: sorted(key.to_user_string() for key in job.asset_layer.selected_asset_keys)
            for job in sorted(jobs, key=lambda job: job.name)
            if not job.name.startswith("__")
        },
        "schedules": {s.name: [s.cron_schedule, s.default_status.value] for s in definitions.schedules},
        "sensors": {s.name: s.default_status.value for s in definitions.sensors},
    }


@every_recipe
def test_the_house_is_as_the_snapshot_says(recipe):
    found = json.dumps(outline(definitions_of(recipe)), indent=1, ensure_ascii=False) + "\n"
    file = SNAPSHOTS / f"{recipe}.json"
    if os.environ.get("UPDATE_SNAPSHOT"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(found, encoding="utf-8")
    assert found == file.read_text(encoding="utf-8"), "UPDATE_SNAPSHOT=1 pytest tests/jobs renews it"


@every_recipe
def test_definitions_can_be_loaded(recipe):
    dg.Definitions.validate_loadable(definitions_of(recipe))


@every_recipe
def test_every_asset_tells_what_it_is(recipe):
    for asset in definitions_of(recipe).assets:
        for spec in asset.specs:
            assert spec.description and len(spec.description.splitlines()[0]) > 20, spec.key
            assert spec.owners and spec.kinds and spec.code_version and spec.group_name, spec.key


@every_recipe
def test_every_asset_is_in_exactly_one_job(recipe):
    listed = [name for members in JOBS.values() for name in members]
    existing = {key.to_user_string() for asset in definitions_of(recipe).assets for key in asset.keys}
    assert len(listed) == len(set(listed))
    assert existing <= set(listed)


@every_recipe
def test_nothing_runs_by_itself(recipe):
    definitions = definitions_of(recipe)
    assert all(schedule.default_status.value == "STOPPED" for schedule in definitions.schedules)
    running = [sensor.name for sensor in definitions.sensors if sensor.default_status.value == "RUNNING"]
    assert running == ["report_failed_run"]  # it only tells of what failed


def test_the_schedule_asks_for_one_run_per_source():
    definitions = definitions_of("digits")
    (schedule,) = definitions.schedules
    context = dg.build_schedule_context(
        scheduled_execution_time=datetime(2026, 1, 2, 1, tzinfo=UTC),
        repository_def=definitions.get_repository_def(),
    )
    requests = schedule.evaluate_tick(context).run_requests
    sources = definitions.resolve_asset_graph().get(dg.AssetKey("raw_queries")).partitions_def
    assert [request.partition_key for request in requests] == sources.get_partition_keys()
    assert len({request.run_key for request in requests}) == len(requests)


def test_the_same_recipe_on_every_profile_has_the_same_assets():
    outlines = [
        outline(build_definitions(profile, "digits"))["assets"] for profile in ("embedded", "gpu", "cluster", "ray")
    ]
    assert outlines[0] == outlines[1] == outlines[2]


def test_no_resource_holds_a_secret(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret-value")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "canary-key-value")
    definitions = build_definitions("cluster", "digits")
    assert "canary" not in repr(definitions.resources)
