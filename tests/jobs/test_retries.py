"""A retry that the daemon has passed by is asked for again, and only that."""

import dagster as dg
import pytest
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, WILL_RETRY_TAG

from jobs.dagster_home import prepare
from jobs.retries import PLACE, retry_if_forgotten


@pytest.fixture
def instance(tmp_path):
    with dg.DagsterInstance.from_config(str(prepare(tmp_path / "dagster"))) as instance:
        yield instance


def failed(instance, **tags):
    run = instance.create_run_for_job(dg.GraphDefinition(name="g").to_job("j"), tags=tags)
    instance.report_run_failed(run, "The process was lost.")
    return run


def place(instance):
    return int(instance.daemon_cursor_storage.get_cursor_values({PLACE})[PLACE])


def stand_after(instance):
    """Let the daemon have read everything that there is."""
    records = instance.fetch_run_status_changes(dg.DagsterEventType.RUN_FAILURE, limit=1).records
    instance.daemon_cursor_storage.set_cursor_values({PLACE: str(records[0].storage_id)})
    return records[0].storage_id


def test_the_daemon_is_put_back_before_a_failure_without_its_retry(instance):
    run = failed(instance)
    instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "true"})
    failure = stand_after(instance)
    assert retry_if_forgotten(instance, run)
    assert place(instance) == failure - 1
    read = instance.event_log_storage.get_logs_for_all_runs_by_log_id(
        after_cursor=place(instance), dagster_event_type={dg.DagsterEventType.RUN_FAILURE}
    )
    assert [event.run_id for event in read.values()] == [run.run_id]  # what the daemon reads next


@pytest.mark.parametrize("tags", [{WILL_RETRY_TAG: "false"}, {WILL_RETRY_TAG: "true", AUTO_RETRY_RUN_ID_TAG: "other"}])
def test_a_run_that_is_not_due_or_was_retried_changes_nothing(instance, tags):
    run = failed(instance)
    instance.add_run_tags(run.run_id, tags)
    before = stand_after(instance)
    assert not retry_if_forgotten(instance, run) and place(instance) == before


def test_a_failure_that_the_daemon_has_yet_to_read_changes_nothing(instance):
    failed(instance)
    before = stand_after(instance)
    run = failed(instance)
    instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "true"})
    assert not retry_if_forgotten(instance, run) and place(instance) == before
