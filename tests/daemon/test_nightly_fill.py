"""The nightly fill with the real daemon and real runs, by a clock that is turned to the next night."""

import dagster as dg
import pytest
from daemon_site import DAY, UNFINISHED, made, seconds_until_night, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SENSORS = ("nightly_fill", "nightly_gpu_fill")
LAYERS = [
    {("queries", "a"), ("queries", "b")},
    {("responses", "a|s"), ("responses", "a|t"), ("responses", "b|s"), ("responses", "b|t")},
    {("dataset", None)},
    {("checkpoints", "base"), ("checkpoints", "stage1")},
    {("benchmark_responses", "exam|base"), ("benchmark_responses", "exam|stage1")},
    {("scoreboard", None)},
]
EVERYTHING = set.union(*LAYERS)


def quiet(instance):
    return not instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))


def evaluated_again(site, instance, times=3):
    """Wait until both sensors looked again a few times and nothing runs."""

    def seen():
        log = site.log("daemon")
        return min(log.count(f"Finished auto-materialization tick for {name} ") for name in SENSORS)

    wanted = seen() + times
    until(lambda: seen() >= wanted, what="an evaluation")
    until(lambda: quiet(instance), what="the end of all runs")


def test_each_night_fills_what_is_missing_in_order_and_only_that(site):
    (site.home / "fail-b").touch()
    for sensor in SENSORS:
        site.dagster("sensor", "start", sensor)
    site.turn_clock(seconds_until_night() - 600)
    with site.daemon(), site.instance() as instance:
        until(lambda: {state.instigator_name for state in instance.all_instigator_state()} >= set(SENSORS))
        evaluated_again(site, instance)
        assert not instance.get_runs()  # ten minutes to two: no night yet

        site.turn_clock(1200)
        healthy = LAYERS[0] | {("responses", "a|s"), ("responses", "a|t")}
        until(lambda: set(made(instance)) >= healthy and quiet(instance), what="the first night")
        evaluated_again(site, instance)
        assert set(made(instance)) == healthy  # nothing is built on responses that failed
        failed = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
        assert {run.tags["dagster/partition/source"] for run in failed} == {"b"}

        (site.home / "fail-b").unlink()
        evaluated_again(site, instance)
        assert set(made(instance)) == healthy  # not before the next night
        site.turn_clock(DAY)
        until(lambda: set(made(instance)) == EVERYTHING and quiet(instance), 600, what="the second night")

        counts = made(instance)
        assert set(counts.values()) == {1}, counts  # filled once each, what was there was left alone
        order = {layer: [run_times(instance, name, part) for name, part in keys] for layer, keys in enumerate(LAYERS)}
        for layer in range(1, len(LAYERS)):
            assert max(order[layer - 1]) < min(order[layer])
        assert {run.tags.get("deepdistill/fill") for run in instance.get_runs()} == {"nightly"}

        runs = len(instance.get_runs())
        site.turn_clock(DAY)
        evaluated_again(site, instance)
        assert len(instance.get_runs()) == runs  # a third night has nothing to do


def run_times(instance, name, partition):
    found = instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey(name), asset_partitions=[partition] if partition else None), limit=1
    )
    return found.records[0].timestamp
