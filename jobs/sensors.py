"""What watches the files of sources, and the runs."""

import json

import dagster as dg

from deepdistill_assets.queries.assets import source_version
from deepdistill_assets.queries.readers import FILE_READERS, input_stamp
from deepdistill_assets.recipe import Recipe, Source
from deepdistill_assets.stage import PARTITION_VERSION
from deepdistill_resources.alerts import AlertError, Webhook
from jobs.retries import retry_if_forgotten
from jobs.runner import cause_of

RAW_QUERIES = dg.AssetKey("raw_queries")
READ_FROM_SOURCES = [RAW_QUERIES, dg.AssetKey("existing_responses")]


def new_files_sensor(recipe: Recipe) -> list[dg.SensorDefinition]:
    """Return `new_raw_files`, off by default, where a source of the recipe reads local files.

    Files are read once they have stayed as they are from one look to the next, so that a copy under way is not read.
    """

    @dg.sensor(
        name="new_raw_files",
        job_name="ingest",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="Reads exactly those sources anew whose local files are new or changed since they were last read.",
    )
    def new_raw_files(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        versions = {key: source_version(source) for key, source in recipe.sources.items() if _has_files(source)}
        before = json.loads(context.cursor or "{}")
        settled = {key: version for key, version in versions.items() if before.get(key) == version}
        requests = [_request(context.instance, key, version) for key, version in settled.items()]
        return dg.SensorResult([request for request in requests if request], cursor=json.dumps(versions))

    return [new_raw_files] if any(_reads_files(source) for source in recipe.sources.values()) else []


def _request(instance: dg.DagsterInstance, source: str, version: str) -> dg.RunRequest | None:
    """Return the run that one source needs: once per state of its files, again only after it was read once more."""
    latest = dg.AssetRecordsFilter(asset_key=RAW_QUERIES, asset_partitions=[source])
    records = instance.fetch_materializations(latest, limit=1).records
    made = records[0].asset_materialization if records else None
    if made and (made.tags or {}).get(PARTITION_VERSION) == version:
        return None
    after = records[0].storage_id if records else "nothing"
    return dg.RunRequest(run_key=f"{source}:{version}:{after}", partition_key=source, asset_selection=READ_FROM_SOURCES)


def _reads_files(source: Source) -> bool:
    return source.reader in FILE_READERS or source.corrections is not None


def _has_files(source: Source) -> bool:
    return bool(input_stamp(source.reader, source.options, source.corrections))


def failure_sensor(webhook: Webhook | None) -> dg.SensorDefinition:
    """Return `report_failed_run`: a failed run is logged with its first error, and posted where there is a webhook."""

    @dg.run_failure_sensor(
        name="report_failed_run",
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Logs every failed run with its first error; posts it where DEEPDISTILL_ALERT_WEBHOOK is set.",
    )
    def report_failed_run(context: dg.RunFailureSensorContext) -> None:
        line = _failure_line(context)
        context.log.error(line)
        if retry_if_forgotten(context.instance, context.dagster_run):
            context.log.warning(f"the retry of run {context.dagster_run.run_id} was forgotten; the daemon looks again.")
        if webhook is None:
            return
        try:
            webhook.post(line)
        except AlertError as error:
            context.log.warning(str(error))

    return report_failed_run


def _failure_line(context: dg.RunFailureSensorContext) -> str:
    """Return which run failed and why, as one line."""
    run = context.dagster_run
    failures = [event.step_failure_data for event in context.get_step_failure_events()]
    reason = cause_of(failures[0]) if failures else context.failure_event.message or "unknown"
    assets = ", ".join(sorted(key.to_user_string() for key in run.asset_selection or ())) or run.job_name
    partition = run.tags.get("dagster/partition", "no partition")
    return f"run {run.run_id} of {assets} ({partition}) failed: {' '.join(reason.split())}"
