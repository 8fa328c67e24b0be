"""Responses on a Ray cluster of several raylets, with a real (untrained) model: what one process would have made."""

import importlib.util
import threading
import time
from pathlib import Path

import pytest
from ray_cluster import ray_cluster

from deepdistill_resources.compute import RayCompute
from deepdistill_resources.generation import VOLATILE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
_spec = importlib.util.spec_from_file_location("house_tests", Path(__file__).with_name("test_responses.py"))
one = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(one)


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with ray_cluster(nodes=2) as found:
        yield found


def kill_in_the_middle(house, cluster, killed):
    """SIGKILL one worker, then a whole node, each after some more chunks are committed."""
    directory = "_chunks/responses/source=sums/teacher=long"

    def committed():
        return len([path for path in house.lake.list_files(directory) if "/manifest/" in path])

    for kill in (cluster.kill_worker, cluster.kill_node):
        before = committed()
        while committed() < before + 3 or not kill():
            time.sleep(0.01)
        killed.append(committed())


def test_a_killed_worker_and_a_killed_node_change_nothing(tmp_path, tiny_model, cluster):
    recipe = one.make_recipe(tiny_model, passes=4, responses={"chunk_size": 4})
    local, spread = one.House(tmp_path / "local", recipe), one.House(tmp_path / "spread", recipe)
    for house in (local, spread):
        house.rows = one.queries(80)
    expected, _ = local.respond()
    killed = []
    killer = threading.Thread(target=kill_in_the_middle, args=(spread, cluster, killed), daemon=True)
    killer.start()
    spread.compute = RayCompute(address=cluster.address, patience_seconds=300)
    found, facts = spread.respond()
    killer.join(60)
    assert len(killed) == 2 and max(killed) < 80  # chunks of 4 of 320 responses: it was in the middle
    logprobs = [table["cumulative_logprob"].to_list() for table in (found, expected)]
    assert logprobs[0] == pytest.approx(logprobs[1], rel=1e-3)  # sums of floats, which batches of another shape round
    for column in set(found.columns) - {*VOLATILE, "cumulative_logprob"}:
        assert found[column].equals(expected[column]), column
    assert facts["responses_new"] <= 320 and facts["ray_nodes"] >= 2
    again, facts = spread.respond()
    assert again.equals(found) and (facts["responses_new"], facts["responses_reused"]) == (0, 320)
