"""The nightly fill: each night, whatever is missing or stale is materialized in dependency order. Off by default.

Two sensors share the work, so that the costly one can stay off: `nightly_fill` for what a CPU does, `nightly_gpu_fill`
for the assets of the `gpu` pool. Public Dagster API only: every request is a real backfill in the UI.
"""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from deepdistill_assets.stage import GPU_POOL

NIGHTLY = "0 2 * * *"
Condition = dg.AutomationCondition[Any]


def nightly_fill() -> Condition:
    """Return the condition: the cron has ticked since this partition was last handled, and it is missing or stale.

    Stale means that the code version, or the data version of something upstream, changed since it was last handled; an
    upstream re-run that gave the same data version changes nothing. An edit of one source's, teacher's or benchmark's
    entry in the recipe (a partition version) is not seen: a condition of one's own would have to be evaluated in the
    code server (beta). `deepdistill run` sees it.
    """
    ticked: Condition = dg.AutomationCondition.cron_tick_passed(NIGHTLY)
    new_code: Condition = dg.AutomationCondition.code_version_changed()
    new_data: Condition = dg.AutomationCondition.data_version_changed()
    changed: Condition = new_code | dg.AutomationCondition.any_deps_match(new_data)
    wanted: Condition = dg.AutomationCondition.missing() | changed.since_last_handled()
    ready = (
        ~dg.AutomationCondition.any_deps_missing()
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.any_deps_match(dg.AutomationCondition.will_be_requested())
        & dg.AutomationCondition.all_deps_blocking_checks_passed()
    )
    idle = ~dg.AutomationCondition.in_progress()
    return (ticked.since_last_handled() & wanted & ready & idle).with_label("nightly fill")


def with_nightly_fill(assets: Sequence[dg.AssetsDefinition]) -> list[dg.AssetsDefinition]:
    """Return the assets with the nightly condition attached."""
    condition = nightly_fill()
    return [
        asset.map_asset_specs(lambda spec: spec.replace_attributes(automation_condition=condition)) for asset in assets
    ]


def uses_gpu(asset: dg.AssetsDefinition) -> bool:
    """Whether the asset holds a lease of the `gpu` pool while it runs."""
    return asset.op.pool == GPU_POOL


def fill_sensors(assets: Sequence[dg.AssetsDefinition]) -> list[dg.AutomationConditionSensorDefinition]:
    """Return the two sensors, both stopped until someone switches them on."""
    groups = {
        "nightly_fill": [asset for asset in assets if not uses_gpu(asset)],
        "nightly_gpu_fill": [asset for asset in assets if uses_gpu(asset)],
    }
    return [
        dg.AutomationConditionSensorDefinition(
            name,
            target=dg.AssetSelection.assets(*members),
            default_status=dg.DefaultSensorStatus.STOPPED,
            run_tags={"deepdistill/fill": "nightly"},
            description="Each night, materializes what is missing or stale, in dependency order.",
        )
        for name, members in groups.items()
        if members
    ]
