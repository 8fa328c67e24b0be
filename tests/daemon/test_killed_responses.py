"""The real responses asset in a backfill: server, step and run are killed in turn; it ends as if nothing happened."""

import importlib.util
import os
import signal
import time
from pathlib import Path

import dagster as dg
import polars as pl
import psutil
import pytest
import responses_house
from daemon_site import UNFINISHED, until
from dagster._core.execution.backfill import PartitionBackfill

from deepdistill_resources.chunk_store import ChunkStore
from deepdistill_resources.generation import GENERATED, VOLATILE
from deepdistill_resources.lake import Lake

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PLACE = Path(__file__).parents[1] / "deepdistill_resources" / "engines" / "test_openai.py"
SPEC = importlib.util.spec_from_file_location("openai_tests", PLACE)
openai_tests = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(openai_tests)


@pytest.fixture
def server():
    process = openai_tests.Process()
    process.start()
    yield process
    process.kill()


def prepared(home, url, instance):
    """The house with everything but its responses."""
    definitions = responses_house.house(home, url)
    job = definitions.resolve_implicit_global_asset_job_def()
    for name, partition in (("distillation_queries", "s"), ("existing_responses", "s"), ("teacher_models", "t")):
        job.execute_in_process(asset_selection=[dg.AssetKey(name)], partition_key=partition, instance=instance)
    return definitions, job


def ask(instance, definitions, name):
    instance.add_backfill(
        PartitionBackfill.from_asset_partitions(
            backfill_id=name,
            asset_graph=definitions.resolve_asset_graph(),
            partition_names=[responses_house.PARTITION],
            asset_selection=[dg.AssetKey("responses")],
            backfill_timestamp=time.time(),
            tags={},
            dynamic_partitions_store=instance,
            all_partitions=False,
            title=None,
            description=None,
            run_config=None,
        )
    )


def table(home):
    return pl.read_parquet(home / "lake" / responses_house.TABLE).drop(VOLATILE)


def chunks(home):
    return len(list((home / "lake").rglob("_chunks/responses/**/data/*.parquet")))


def statuses(instance, name):
    return [run.status for run in reversed(instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": name})))]


def processes(daemon):
    """The run's process and, below it, its step's."""
    spawned = [child for child in psutil.Process(daemon.pid).children(recursive=True) if "spawn_main" in line(child)]
    below = [child for child in spawned if "spawn_main" in line(child.parent())]
    return (below[0].parent(), below[0]) if below else None


def line(process):
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_kills_of_server_step_and_run_leave_what_an_undisturbed_run_leaves(site, server, tmp_path):
    calm = tmp_path / "calm"
    with dg.DagsterInstance.ephemeral() as instance:
        _, job = prepared(calm, server.url, instance)
        partition = dg.MultiPartitionKey({"source": "s", "teacher": "t"})
        job.execute_in_process(
            asset_selection=[dg.AssetKey("responses")], partition_key=str(partition), instance=instance
        )
    expected = table(calm)
    assert expected.height == responses_house.QUERIES * responses_house.PASSES

    site.environment["TEACHER"] = server.url
    site.workspace = ["-f", str(Path(__file__).parent / "responses_house.py")]
    with site.instance() as instance:
        definitions, _ = prepared(site.home, server.url, instance)
        with site.daemon() as daemon:
            ask(instance, definitions, "first")
            until(lambda: chunks(site.home) > 2, what="the first chunks")
            server.kill()
            before = chunks(site.home)
            server.start()
            until(lambda: chunks(site.home) > before + 2, what="chunks after the server's restart")
            os.kill(processes(daemon)[1].pid, signal.SIGKILL)
            until(lambda: statuses(instance, "first") == [dg.DagsterRunStatus.FAILURE], what="the failed run")
            before = chunks(site.home)
            ask(instance, definitions, "again")  # a failed step is a fact; a person asks again
            until(lambda: chunks(site.home) > before + 2, what="chunks of the second backfill")
            os.kill(processes(daemon)[0].pid, signal.SIGKILL)
            until(lambda: dg.DagsterRunStatus.SUCCESS in statuses(instance, "again"), what="a retry that succeeds")
            assert statuses(instance, "again")[0] == dg.DagsterRunStatus.FAILURE
            until(lambda: not instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)), what="the end of all runs")
    assert table(site.home).equals(expected)
    assert set(stored(site.home)) == set(expected["response_id"]) == set(stored(calm))
    assert len(stored(site.home)) == expected.height


def stored(home):
    """Keys in the chunk store, as often as they are there."""
    (directory,) = (home / "lake" / "_chunks" / "responses" / "source=s" / "teacher=t").iterdir()
    settings = pl.read_json(directory / "settings.json").to_dicts()[0]
    store = ChunkStore(
        Lake(root=str(home / "lake")), "_chunks/responses/source=s/teacher=t", "response_id", GENERATED, settings
    )
    return pl.concat(store.scan())["response_id"].to_list()
