"""verified_responses on a real Ray cluster: the same table as on one machine, whatever dies meanwhile."""

import json
import threading
import time
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from ray_cluster import ray_cluster

from deepdistill_assets import tables
from deepdistill_assets.partitions import Partitions
from deepdistill_assets.recipe import Recipe
from deepdistill_assets.verification import verdicts as verdicts_module
from deepdistill_assets.verification.assets import build_assets
from deepdistill_resources.compute import Compute, LocalCompute, RayCompute
from deepdistill_resources.lake import Lake
from deepdistill_resources.verifiers.suite import VerifierSuite

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
RESPONSES = 480
RECIPE = Recipe.model_validate(
    {
        "name": "small",
        "title": "t",
        "description": "d",
        "models": {"m": {"kind": "served", "license": "x", "name": "m", "base_url": "http://x"}},
        "sources": {"s": {"category": "math", "license": "x", "reader": "jsonl", "options": {}}},
        "teachers": {"t": {"model": "m"}},
        "selection": {"stage1": {"teacher": "t"}},
        "students": {"s": {"model": "m"}},
        "training": {"stage1": {"learning_rate": 1e-4, "epochs": 1}},
        "evaluation": {"benchmarks": {}},
    }
)
ADD = {"style": "call", "entry_point": "add", "inputs": [[1, 2], [3, 4]], "outputs": [3, 7]}
NO_COMMA = [{"instruction_id": "punctuation:no_comma", "kwargs": {}}]


def kind(index: int) -> str:
    return ("math", "code", "instruction_following", "math")[index % 4]


def answer(index: int) -> str:
    wrong = index % 3 == 0
    code = f"```python\ndef add(a, b):\n    return a + b{' + 1' if wrong else ''}  # {index}\n```"
    return {
        "math": rf"\\frac{{{2 * index}}}{{{4 if wrong else 2}}}",
        "code": code,
        "instruction_following": f"yes{',' if wrong else ''} {index}",
    }[kind(index)]


def queries() -> pl.DataFrame:
    rows = [
        {
            "query_id": f"q{index:03d}",
            "source": "s",
            "category": kind(index),
            "query_text": f"What is {index}?",
            "reference_answer": str(index) if kind(index) == "math" else None,
            "test_cases": json.dumps(ADD) if kind(index) == "code" else None,
            "constraints": json.dumps(NO_COMMA) if kind(index) == "instruction_following" else None,
        }
        for index in range(RESPONSES)
    ]
    return tables.conform(pl.DataFrame(rows, infer_schema_length=None), tables.QUERY)


def responses() -> pl.DataFrame:
    rows = [
        {
            "response_id": f"r{index:03d}",
            "query_id": f"q{index:03d}",
            "source": "s",
            "category": kind(index),
            "teacher": "t",
            "answer": answer(index),
            "text": answer(index),
            "status": "ok",
        }
        for index in range(RESPONSES)
    ]
    return tables.conform(pl.DataFrame(rows, infer_schema_length=None), tables.RESPONSE)


class Given(dg.InMemoryIOManager):
    def load_input(self, context: dg.InputContext) -> pl.DataFrame:
        return responses() if context.asset_key.path[-1] == "responses" else queries()


def materialize(home: Path, compute: Compute) -> tuple[pl.DataFrame, dict]:
    partitions = Partitions.of(RECIPE)
    upstream = [
        dg.AssetSpec("responses", partitions_def=partitions.source_teacher),
        dg.AssetSpec("distillation_queries", partitions_def=partitions.source),
    ]
    result = dg.materialize(
        [*upstream, *build_assets(RECIPE, partitions)],
        partition_key=dg.MultiPartitionKey({"source": "s", "teacher": "t"}),
        resources={
            "io_manager": Given(),
            "verifier_suite": VerifierSuite(),
            "lake": Lake(root=str(home)),
            "compute": compute,
        },
    )
    metadata = result.asset_materializations_for_node("verified_responses")[0].metadata
    return result.output_for_node("verified_responses"), {name: value.value for name, value in metadata.items()}


def committed(home: Path) -> list[str]:
    """Return the keys of all committed verdicts."""
    files = sorted(home.joinpath("_chunks").rglob("manifest/*.json"))
    return [key for file in files for key in json.loads(file.read_bytes())["keys"]]


def test_a_lost_node_and_a_killed_worker_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    monkeypatch.setattr(verdicts_module, "BATCH", 8)
    calm, facts = materialize(tmp_path / "calm", LocalCompute())
    assert set(calm["verdict"]) == {"passed", "failed"}
    with ray_cluster(nodes=2) as cluster:
        disturbed, ended = tmp_path / "disturbed", threading.Event()
        done: list[str] = []

        def disturb() -> None:
            for least, action in ((16, cluster.kill_node), (80, cluster.kill_worker)):
                while not ended.is_set():
                    time.sleep(0.02)
                    if least <= len(committed(disturbed)) < RESPONSES and action():
                        done.append(action.__name__)
                        break

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            rows, told = materialize(disturbed, RayCompute(address=cluster.address))
        finally:
            ended.set()
            thread.join()
    assert rows.drop("evidence").equals(calm.drop("evidence"))
    assert done == ["kill_node", "kill_worker"]
    assert len(committed(disturbed)) == RESPONSES == len(set(committed(disturbed)))
    assert told["verified_new"] == RESPONSES
    assert told["sandbox_tier"] == facts["sandbox_tier"] and told["canaries_failed"] == 0
    assert told["canaries_run"] > 0, "every worker tests its own sandbox"
    assert told["ray_nodes"] >= 2
