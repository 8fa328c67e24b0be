"""A retry that the daemon has forgotten is asked for again.

Dagster (1.13) reads a run's failure from the log of events, and looks then whether the run shall be retried; on a busy
machine the event can be there before the run is marked, and the daemon passes on. The run's backfill would wait for the
retry for ever. The daemon's place in the log is put back; a run that was retried already is not retried twice.
"""

from dagster import DagsterEventType, DagsterInstance, DagsterRun
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, WILL_RETRY_TAG

PLACE = f"EVENT_LOG_CONSUMER_CURSOR-{DagsterEventType.RUN_FAILURE.value}"
FAILURES = 1000  # how far to look back


def retry_if_forgotten(instance: DagsterInstance, run: DagsterRun) -> bool:
    """Put the daemon back before the failure of a run that it has passed without the retry that is due."""
    tags = (instance.get_run_by_id(run.run_id) or run).tags
    if tags.get(WILL_RETRY_TAG) != "true" or AUTO_RETRY_RUN_ID_TAG in tags:
        return False
    place = int(instance.daemon_cursor_storage.get_cursor_values({PLACE}).get(PLACE, 0))
    failures = instance.fetch_run_status_changes(DagsterEventType.RUN_FAILURE, limit=FAILURES).records
    mine = [record.storage_id for record in failures if record.run_id == run.run_id]
    if not mine or mine[0] > place:  # not read yet
        return False
    instance.daemon_cursor_storage.set_cursor_values({PLACE: str(mine[0] - 1)})
    return True
