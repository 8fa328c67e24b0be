"""The map over batches: the same in this process and on a real Ray cluster of several raylets that are killed."""

import os
import pickle
import resource
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from compute_workers import Doubler, Large, Node, OpenDoubler, Unpicklable, dying, refusing
from ray_cluster import ray_cluster

from deepdistill_resources.compute import Compute, Demand, LocalCompute, RayCompute, connect
from deepdistill_resources.errors import ComputeError, MissingPackageError, SandboxUnavailable

PROJECT, HERE = Path(__file__).parents[2], Path(__file__).parent
BATCHES = [[number, number + 1] for number in range(0, 60, 2)]
DOUBLED = [[2 * number for number in batch] for batch in BATCHES]


def results(compute: Compute, batches, worker=Doubler, **options) -> list:
    return list(compute.map_batches(batches, worker, name="test", **options))


def counting(most: list[int], batches):
    """Yield batches and note how many were pulled."""
    for batch in batches:
        most.append(1)
        yield batch


# The local one.


def test_outcomes_come_in_order_with_the_workers_facts():
    outcomes = results(LocalCompute(), BATCHES)
    assert [outcome.value() for outcome in outcomes] == DOUBLED
    assert [outcome.index for outcome in outcomes] == list(range(30))
    assert outcomes[-1].facts["rows"] == 60


def test_batches_are_pulled_as_outcomes_are_asked_for():
    pulled: list[int] = []
    outcomes = LocalCompute().map_batches(counting(pulled, BATCHES), Doubler, name="test")
    next(outcomes)
    assert len(pulled) == 1


def test_no_batch_opens_no_worker():
    assert results(LocalCompute(), [], refusing) == []
    assert results(RayCompute(address="127.0.0.1:1", max_workers=1), [], refusing) == []


def test_the_worker_is_closed_even_when_the_caller_stops(tmp_path):
    outcomes = LocalCompute().map_batches(BATCHES, OpenDoubler(str(tmp_path)), name="test")
    next(outcomes)
    outcomes.close()
    assert tmp_path.joinpath(f"closed-{os.getpid()}").exists()


def test_an_exception_is_a_failed_batch_and_the_rest_goes_on():
    failed, fine = results(LocalCompute(), [[-2], [1]])
    assert "ValueError: minus two" in failed.failure and fine.value() == [2]
    with pytest.raises(ComputeError, match=r"batch 0 failed: ValueError: minus two"):
        failed.value()


def test_our_own_errors_come_as_they_are():
    for worker, batches in ((Doubler, [[-3]]), (refusing, [[1]])):
        with pytest.raises(SandboxUnavailable) as caught:
            results(LocalCompute(), batches, worker)
        assert caught.value.fix == "install bubblewrap."


def test_an_error_keeps_message_and_fix_between_processes():
    again = pickle.loads(pickle.dumps(SandboxUnavailable("no tier.", "install one.")))
    assert (again.message, again.fix, str(again)) == ("no tier.", "install one.", "no tier. Fix: install one.")


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"'.\[ray\]'"):
        connect()


def test_no_cluster_there_is_explained():
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    if ray.is_initialized():
        pytest.skip("this process is connected already")
    for address in ("127.0.0.1:9", "ray://127.0.0.1:9", "nonsense"):
        with pytest.raises(ComputeError, match=f"no Ray cluster at {address}") as caught:
            connect(address)
        assert "ray start --head" in caught.value.fix


# Ray, on a head and three more nodes: real raylets and object stores, on this host.


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with ray_cluster(nodes=3, importable=HERE) as found:
        yield found


@pytest.fixture
def compute(cluster) -> RayCompute:
    cluster.fill()
    return RayCompute(address=cluster.address, patience_seconds=120.0)


@pytest.mark.slow
def test_ray_gives_what_this_process_gives(compute, tmp_path):
    lines: list[str] = []
    outcomes = results(compute, BATCHES, OpenDoubler(str(tmp_path), pause=0.3), log=lines.append)
    assert [outcome.value() for outcome in outcomes] == DOUBLED
    last = {outcome.worker: outcome.facts for outcome in outcomes}
    assert len(last) == 3 and sum(facts["rows"] for facts in last.values()) == 60
    assert len({facts["pid"] for facts in last.values()}) == 3, "one worker per node of one CPU"
    assert {f"closed-{facts['pid']}" for facts in last.values()} <= {file.name for file in tmp_path.iterdir()}
    unordered = results(compute, BATCHES, ordered=False)
    assert sorted(outcome.index for outcome in unordered) == list(range(30))
    assert all(outcome.value() == DOUBLED[outcome.index] for outcome in unordered)


@pytest.mark.slow
def test_a_failed_batch_and_our_own_errors_are_the_same_on_ray(compute):
    outcomes = results(compute, [[1], [-2], [3]])
    assert [outcome.failure is None for outcome in outcomes] == [True, False, True]
    assert "ValueError: minus two" in outcomes[1].failure
    for worker, batches in ((Doubler, [[1], [-3]]), (refusing, [[1]])):
        with pytest.raises(SandboxUnavailable) as caught:
            results(compute, batches, worker)
        assert caught.value.fix == "install bubblewrap."
    assert "cannot pickle" in results(compute, [[1]], Unpicklable)[0].failure


@pytest.mark.slow
def test_a_killed_worker_costs_its_batch_in_flight(compute, tmp_path):
    outcomes = results(compute, [[1], [-4, 9], *BATCHES], OpenDoubler(str(tmp_path)))
    assert [outcome.value() for outcome in outcomes] == [[2], [-8, 18], *DOUBLED]
    done = [file.name for file in tmp_path.iterdir() if file.name[0] not in "cd"]
    assert len(done) == 32, "no batch was done twice"


@pytest.mark.slow
def test_a_batch_that_kills_every_worker_is_a_failed_batch(compute):
    lines: list[str] = []
    outcomes = results(compute, [[1], [-1], *BATCHES], log=lines.append)
    assert [outcome.index for outcome in outcomes if outcome.failure] == [1]
    assert "3 workers died of it" in outcomes[1].failure
    assert sum("died" in line for line in lines) == 3
    with pytest.raises(ComputeError, match="workers die when they start"):
        results(compute, [[1]], dying)


@pytest.mark.slow
def test_a_node_that_is_lost_in_the_middle_costs_its_batches_in_flight(compute, cluster, tmp_path):
    outcomes = compute.map_batches(BATCHES, OpenDoubler(str(tmp_path), pause=0.2), name="test")
    found = [next(outcomes) for _ in range(5)]
    cluster.kill_node()
    found += list(outcomes)
    assert [outcome.value() for outcome in found] == DOUBLED
    assert len(list(tmp_path.glob("[0-9]*"))) <= 30 + 2, "at most what was on the lost node is done again"


@pytest.mark.slow
def test_results_that_die_with_their_node_are_made_again(compute, cluster):
    """A result of 8 MB lies on the node that made it until it is fetched."""
    sizes = [8_000_000 + number for number in range(12)]
    outcomes = compute.map_batches(([size] for size in sizes), Large, name="test")
    found = [len(next(outcomes).value())]
    time.sleep(1.0)  # more results come to lie there
    cluster.kill_node()
    assert found + [len(outcome.value()) for outcome in outcomes] == sizes


@pytest.mark.slow
def test_a_node_that_joins_gets_work(compute, cluster):
    cluster.kill_node()
    outcomes = compute.map_batches(([number] for number in range(80)), Node, name="test")
    before = {next(outcomes).value() for _ in range(6)}
    cluster.fill()
    after = {outcome.value() for outcome in outcomes}
    assert len(after - before) >= 1


@pytest.mark.slow
def test_the_driver_holds_a_few_batches_per_worker(compute):
    pulled: list[int] = []
    outcomes = compute.map_batches(counting(pulled, ([number] for number in range(10_000))), Doubler, name="test")
    next(outcomes)
    time.sleep(0.5)
    assert len(pulled) <= 4 * 3 + 1
    outcomes.close()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for outcome in compute.map_batches(([8_000_000] for _ in range(150)), Large, name="test"):
        assert len(outcome.value()) == 8_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000, "1.2 GB went through, in KB"


@pytest.mark.slow
def test_a_demand_that_no_node_has_room_for_is_explained(compute):
    impatient = compute.model_copy(update={"patience_seconds": 3.0})
    with pytest.raises(ComputeError, match=r"no worker with 1 CPU and 1 GPU within") as caught:
        results(impatient, [[1]], demand=Demand(1, 1))
    assert "ray status" in caught.value.fix


@pytest.mark.slow
def test_the_probe_names_version_and_nodes(compute):
    assert "a worker answers" in compute.probe() and " nodes" in compute.probe()


@pytest.mark.slow
def test_another_version_of_ray_is_explained(tmp_path):
    """A head that is of another version indeed, as far as its own metadata say."""
    head = tmp_path / "head.py"
    head.write_text(
        textwrap.dedent("""
        import sys, time, ray
        ray.__version__ = "2.0.0"
        from ray.cluster_utils import Cluster
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000})
        print(cluster.address, flush=True)
        sys.stdin.read()
        cluster.shutdown()
        """)
    )
    driver = textwrap.dedent("""
        import sys
        from deepdistill_resources.compute import connect
        from deepdistill_resources.errors import ComputeError
        try:
            connect(sys.argv[1])
        except ComputeError as error:
            print(error)
        """)
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(
        [sys.executable, str(head)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        address = process.stdout.readline().strip()
        told = subprocess.run(
            [sys.executable, "-c", driver, address], capture_output=True, text=True, env=environment, timeout=120
        )
        process.stdin.close()
        process.wait(60)
    assert "other versions" in told.stdout and "2.0.0" in told.stdout and "same locked packages" in told.stdout, told
