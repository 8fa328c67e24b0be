"""What the run launcher does beside launching: it asks after runs, and wakes steps that wait for a free slot."""

import dagster as dg
import pytest

from jobs.dagster_home import prepare
from jobs.launcher import ANSWER_SECONDS, WatchfulRunLauncher, hand_out_free_slots


@pytest.fixture
def instance(tmp_path):
    with dg.DagsterInstance.from_config(str(prepare(tmp_path / "dagster"))) as instance:
        yield instance


def test_the_shipped_instance_uses_it_and_it_asks(instance):
    assert isinstance(instance.run_launcher, WatchfulRunLauncher)
    assert instance.run_launcher.supports_check_run_worker_health


def test_by_the_shipped_settings_a_lost_run_is_seen_within_three_minutes(instance):
    polls = instance.run_monitoring_poll_interval_seconds
    silent = instance.run_launcher.unreachable_seconds
    # Seen silent at the first look, asked again until it was silent long enough; each question may wait for an answer.
    assert polls + silent + polls + 2 * ANSWER_SECONDS < 180
    assert instance.run_monitoring_start_timeout_seconds + polls < 180  # killed before its first step


def test_a_run_that_no_code_server_started_is_left_alone(instance):
    run = instance.create_run_for_job(dg.GraphDefinition(name="g").to_job("j"))
    assert instance.run_launcher.check_run_worker_health(run).status.value == "RUNNING"


def test_a_step_whose_wake_up_was_lost_gets_the_free_slot(instance):
    store = instance.event_log_storage
    store.set_concurrency_slots("gpu", 1)
    # A step looked, found the pool full, and was written down as waiting after the last one had given its slot back.
    store.add_pending_step("gpu", "run", "step", should_assign=False)
    assert not store.claim_concurrency_slot("gpu", "run", "step").is_claimed
    hand_out_free_slots(store)
    assert store.claim_concurrency_slot("gpu", "run", "step").is_claimed


def test_a_full_pool_stays_full(instance):
    store = instance.event_log_storage
    store.set_concurrency_slots("gpu", 1)
    assert store.claim_concurrency_slot("gpu", "first", "step").is_claimed
    assert not store.claim_concurrency_slot("gpu", "second", "step").is_claimed
    hand_out_free_slots(store)
    assert not store.claim_concurrency_slot("gpu", "second", "step").is_claimed
