import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
from tiny_house import Tally, lake_of, tiny_house

from deepdistill_resources.errors import DeepDistillError
from jobs.dagster_home import open_instance, prepare
from jobs.runner import RunFailed, main_selection, run

RAW = [("raw_queries", "a"), ("raw_queries", "b")]
RESPONSES = [("responses", "a|t"), ("responses", "b|t")]


@pytest.fixture
def home(tmp_path):
    prepare(tmp_path / "dagster")
    return tmp_path


def go(home, select=None, force=False, **house):
    tally = Tally()
    with open_instance(home / "dagster") as instance:
        tally.summary = run(tiny_house(home, **house), instance, tally, lake_of(home), select, force)
    return tally


def test_the_main_job_is_everything_but_the_studies_in_order_of_the_data(home):
    assert go(home).made == [*RAW, *RESPONSES, ("funnel", None)]


def test_a_second_run_makes_nothing(home):
    go(home)
    again = go(home)
    assert again.made == []
    assert (again.summary.materialized, again.summary.fresh) == (0, 5)


def test_force_makes_everything_again(home):
    go(home)
    assert len(go(home, force=True).made) == 5


def test_new_code_with_the_same_data_makes_only_that_asset_again(home):
    go(home)
    again = go(home, version=2)
    assert again.made == RAW
    assert again.reasons["raw_queries"]["a"] == "new code version"


def test_new_data_makes_everything_downstream_again(home):
    go(home)
    assert go(home, version=2, values=(1, 2, 3)).made == [*RAW, *RESPONSES, ("funnel", None)]


def test_a_new_source_leaves_the_other_one_fresh(home):
    go(home)
    made = go(home, sources=("a", "b", "c")).made
    assert made == [("raw_queries", "c"), ("responses", "c|t"), ("funnel", None)]


def test_a_source_that_the_recipe_no_longer_has_makes_the_fan_in_again(home):
    go(home)
    again = go(home, sources=("a",))
    assert again.made == [("funnel", None)]
    assert again.reasons["funnel"] == {None: "responses changed"}


def test_a_table_that_was_deleted_from_the_lake_is_made_again(home):
    go(home)
    (home / "lake/responses/source=a/teacher=t/data.parquet").unlink()
    assert go(home).made == [("responses", "a|t")]


def test_select_takes_dagsters_selection_language(home):
    assert go(home, select="+responses").made == [*RAW, *RESPONSES]
    assert go(home, select="funnel+").made == [("funnel", None), ("selection_summary", None)]


@pytest.mark.parametrize(
    ("select", "made"),
    [
        ("+funnel", {"raw_queries", "responses", "funnel"}),
        ("raw_queries", {"raw_queries"}),
        ("+key:funnel and not key:responses", {"raw_queries", "funnel"}),
        ("1+funnel", {"responses", "funnel"}),
    ],
)
def test_a_plus_means_all_that_it_needs(home, select, made):
    chosen = main_selection(tiny_house(home).resolve_asset_graph(), select)
    assert {key.path[-1] for key in chosen} == made


@pytest.mark.parametrize("select", ["nobody", "group:nobody", "+(", ""])
def test_a_selection_that_means_nothing_is_one_line_with_the_fix(home, select):
    with pytest.raises(DeepDistillError) as caught:
        go(home, select=select)
    assert "--select" in caught.value.message
    assert caught.value.fix


def test_a_failed_partition_stops_the_run_keeps_what_was_made_and_is_made_next_time(home):
    with pytest.raises(RunFailed) as caught:
        go(home, fail="b")
    assert caught.value.message == "responses [b|t]: no numbers today."
    assert caught.value.fix == "come back tomorrow."
    assert "Traceback" in caught.value.trace or "Stack Trace" in caught.value.trace
    assert go(home).made == [("responses", "b|t"), ("funnel", None)]


def test_an_asset_that_logs_is_heard(home):
    from jobs import run_log

    tally = Tally()
    with open_instance(home / "dagster") as instance, run_log.recording(home / "run.log", tally.message):
        run(tiny_house(home), instance, tally, lake_of(home))
    assert tally.messages == ["reading a", "reading b"]
    assert "reading a" in (home / "run.log").read_text()


def test_two_runners_never_share_a_dagster_home(home):
    with open_instance(home / "dagster"), pytest.raises(DeepDistillError, match="another `deepdistill run`"):
        with open_instance(home / "dagster"):
            pass


def started(home, seconds):
    house = Path(__file__).parent / "tiny_house.py"
    process = subprocess.Popen([sys.executable, str(house), str(home), str(seconds)], env=os.environ)
    deadline = time.monotonic() + 60
    while not (home / "running-b").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_continues_where_it_was_and_leaves_no_run_or_pool_slot_behind(home, number):
    process = started(home, 1.0)
    process.send_signal(number)
    assert process.wait(timeout=30) != 0
    again = go(home)
    assert again.made == [("responses", "b|t"), ("funnel", None)]
    with open_instance(home / "dagster") as instance:
        statuses = [run.status for run in instance.get_runs()]
        assert instance.event_log_storage.get_concurrency_run_ids() == set()
    assert statuses.count(dg.DagsterRunStatus.FAILURE) == 1
    assert not [
        status for status in statuses if status not in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS)
    ]


COMMAND = """
import sys
import jobs.build
from jobs.cli import main
from tiny_house import tiny_house
jobs.build.build_definitions = lambda *_: tiny_house(sys.argv[1], seconds=float(sys.argv[2]))
sys.exit(main(["run", "--recipe", "digits"]))
"""


def command(home, seconds):
    """`deepdistill run` on the tiny house, as a process whose output is piped."""
    variables = {
        "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parents[2], Path(__file__).parent))),
        "DEEPDISTILL_HOME": str(home),
        "DEEPDISTILL_LAKE": str(home / "lake"),
        "DAGSTER_HOME": str(home / "dagster"),
    }
    words = [sys.executable, "-c", COMMAND, str(home), str(seconds)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=os.environ | variables, **pipes)


def test_ctrl_c_ends_the_command_with_130_and_one_line_and_the_same_command_continues(home):
    process = command(home, 3.0)
    deadline = time.monotonic() + 120
    while not (home / "running-a").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "stopped; what is materialized is kept, the same command continues."
    assert "Traceback" not in said
    shown, said = command(home, 0.0).communicate(timeout=120)
    assert "3 partitions materialized, 2 were fresh" in shown, said
    assert "\x1b" not in shown
