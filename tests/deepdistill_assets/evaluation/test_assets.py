import json

import dagster as dg
import polars as pl
import pytest

from deepdistill_assets import tables
from deepdistill_assets.evaluation.assets import build_assets
from deepdistill_assets.evaluation.scoreboard import render_scoreboard
from deepdistill_assets.partitions import Partitions
from deepdistill_resources.errors import EvaluationError
from deepdistill_resources.io_managers import ParquetIOManager
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ModelStore
from deepdistill_resources.verifiers.suite import VerifierSuite


def problems(benchmark, category, count):
    frame = pl.DataFrame(
        {
            "problem_id": [f"{benchmark}-{n}" for n in range(count)],
            "benchmark": [benchmark] * count,
            "category": [category] * count,
            "messages": [[{"role": "user", "content": f"What is {n} + 2?"}] for n in range(count)],
            "problem_text": [f"What is {n} + 2?" for n in range(count)],
            "reference_answer": [str(n + 2) for n in range(count)],
        }
    )
    return tables.conform(frame, tables.BENCHMARK_PROBLEM)


def dataset(*queries):
    return tables.conform(
        pl.DataFrame({"example_id": [f"e-{q}" for q in queries], "query_id": list(queries)}), tables.DATASET
    )


def upstream(recipe, partitions, lake, checkpoint_directory):
    def put(name, partitions_def, make):
        def write(context: dg.AssetExecutionContext):
            return make(context.partition_key)

        return dg.asset(name=name, partitions_def=partitions_def, io_manager_key="io_manager")(write)

    def model(key):
        return pl.DataFrame({"name": [key], "model": ["tiny"], "revision": ["r"], "sha256": ["s"]})

    def trained(stage):
        def make(student):
            lake.publish_directory(checkpoint_directory, f"checkpoints/{student}/{stage}/v")
            row = {
                "checkpoint": f"{student}--{stage}",
                "student": student,
                "stage": stage,
                "path": f"checkpoints/{student}/{stage}/v",
                "sha256": stage * 8,
            }
            return tables.conform(pl.DataFrame([row]), tables.CHECKPOINT)

        return make

    match = {"query_id": "q1", "source": "sums", "benchmark": "held-out", "problem_id": "held-out-0"}
    contaminated = tables.conform(pl.DataFrame([match]), tables.CONTAMINATION)
    categories = {"held-out": ("math", 12), "essays": ("other", 2)}
    return [
        put("student_models", partitions.student, model),
        put("teacher_models", partitions.teacher, model),
        put("stage1_checkpoint", partitions.student, trained("stage1")),
        put("stage2_checkpoint", partitions.student, trained("stage2")),
        put("benchmark_problems", partitions.benchmark, lambda key: problems(key, *categories[key])),
        put("contamination", partitions.source, lambda _: contaminated),
        dg.asset(name="stage1_dataset", io_manager_key="io_manager")(lambda: dataset("q2", "q3")),
        # q1 matches a problem and is trained on all the same.
        dg.asset(name="stage2_dataset", io_manager_key="io_manager")(lambda: dataset("q1", "q3")),
    ]


class House:
    def __init__(self, world, tmp_path, **evaluation):
        directory = tmp_path / "weights"
        directory.mkdir()
        (directory / "config.json").write_text("{}")
        (directory / "model.safetensors").write_bytes(b"weights")
        self.recipe = world.make_recipe(directory, **evaluation)
        self.partitions = Partitions.of(self.recipe)
        self.lake = Lake(root=str(tmp_path / "lake"))
        self.world = world
        self.assets = [
            *upstream(self.recipe, self.partitions, self.lake, directory),
            *build_assets(self.recipe, self.partitions),
        ]
        self.resources = {
            "io_manager": ParquetIOManager(lake=self.lake),
            "lake": self.lake,
            "model_store": ModelStore(directory=str(tmp_path / "models")),
            "engine": world.SumEngine(),
            "verifier_suite": VerifierSuite(workers=1, sandbox="off"),
        }

    def make(self, asset, *keys):
        for key in keys or (None,):
            result = dg.materialize(self.assets, resources=self.resources, selection=[asset], partition_key=key)
        return result

    def table(self, path):
        return self.lake.read_table(f"{path}/data.parquet")


@pytest.fixture(scope="module")
def house(world, tmp_path_factory):
    return House(world, tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def result(house):
    house.make("student_models", "student")
    house.make("teacher_models", "teacher")
    house.make("stage1_checkpoint", "student")
    # The first stage is scored before the second exists.
    house.make("checkpoints", "student--base", "student--stage1", "teacher--teacher")
    house.make("stage2_checkpoint", "student")
    house.make("checkpoints", "student--stage2")
    house.make("benchmark_problems", "held-out", "essays")
    house.make("contamination", "sums")
    house.make("stage1_dataset")
    house.make("stage2_dataset")
    house.make("training_contamination")
    for benchmark in ("held-out", "essays"):
        for checkpoint in house.partitions.checkpoint.get_partition_keys():
            key = dg.MultiPartitionKey({"benchmark": benchmark, "checkpoint": checkpoint})
            house.make("benchmark_responses", key)
            house.make("benchmark_scores", key)
    return house.make("scoreboard")


def test_the_registry_has_one_row_per_checkpoint(house, result):
    base = house.table("checkpoints/partition=student--base").row(0, named=True)
    assert (base["stage"], base["path"], base["model"]) == ("base", None, "tiny")
    second = house.table("checkpoints/partition=student--stage2").row(0, named=True)
    assert (second["stage"], second["path"]) == ("stage2", "checkpoints/student/stage2/v")


def test_a_stage_depends_on_its_own_checkpoint_only(house):
    graph = dg.Definitions(assets=house.assets, resources=house.resources).resolve_asset_graph()
    node = graph.get(dg.AssetKey("checkpoints"))
    for parent, key, expected in (
        ("stage1_checkpoint", "student--stage1", {"student"}),
        ("stage1_checkpoint", "student--stage2", set()),
        ("stage2_checkpoint", "student--stage1", set()),
        ("student_models", "student--base", {"student"}),
        ("teacher_models", "teacher--teacher", {"teacher"}),
    ):
        mapping = node.partition_mappings[dg.AssetKey(parent)]
        upstream_def = graph.get(dg.AssetKey(parent)).partitions_def
        found = mapping.get_upstream_mapped_partitions_result_for_partitions(
            node.partitions_def.subset_with_partition_keys([key]), node.partitions_def, upstream_def
        )
        assert set(found.partitions_subset.get_partition_keys()) == expected, (parent, key)


def test_every_problem_has_its_samples_verified(house, result):
    rows = house.table("benchmark_responses/benchmark=held-out/checkpoint=student--stage1")
    assert rows.height == 24 and rows["passed"].all() and rows["has_format"].all()
    assert dict(rows.schema) == tables.BENCHMARK_RESPONSE
    base = house.table("benchmark_responses/benchmark=held-out/checkpoint=student--base")
    assert base["passed"].mean() == pytest.approx(3 / 12) and not base["has_format"].any()
    assert base["answer"][0] == "2"


def test_asking_again_loads_no_model(house, result):
    key = dg.MultiPartitionKey({"benchmark": "held-out", "checkpoint": "student--base"})
    before = len(house.world.OPENED)
    again = house.make("benchmark_responses", key)
    assert len(house.world.OPENED) == before
    assert again.asset_materializations_for_node("benchmark_responses")[0].metadata["responses_reused"].value == 24


def test_the_scoreboard_says_what_was_gained_and_what_to_heed(house, result):
    board = house.table("scoreboard")
    assert dict(board.schema) == tables.SCOREBOARD
    rows = {row["checkpoint"]: row for row in board.filter(pl.col("benchmark") == "held-out").iter_rows(named=True)}
    assert list(rows) == ["student--base", "student--stage1", "student--stage2", "teacher--teacher"]
    assert rows["student--base"]["difference_from_base"] is None
    gained = rows["student--stage2"]
    assert gained["difference_from_base"] == pytest.approx(0.75) and gained["difference_low"] > 0.4
    assert rows["teacher--teacher"]["difference_from_base"] == 0
    for words in (
        "answer format in 100%",
        "self-distillation",
        "same generator as training",
        "1 contaminated quer",
        "CONTAMINATED: 1 training rows match",
    ):
        assert words in gained["note"]
    assert [rows[key]["contaminated_training_rows"] for key in rows] == [0, 0, 1, 0]
    assert gained["reported"] == "Ours-32B 75.8"
    assert "answer format in 0%" in rows["student--base"]["note"]
    checks = result.get_asset_check_evaluations()
    assert [(check.check_name, check.passed) for check in checks] == [("beats_base_model", True)]


def test_a_benchmark_that_cannot_be_verified_stays_on_the_board(house, result):
    rows = house.table("scoreboard").filter(pl.col("benchmark") == "essays")
    assert rows.height == 4 and rows["value"].null_count() == 4
    assert "2 problems unverifiable" in rows["note"][0]


def test_the_board_as_text(house, result):
    text = render_scoreboard(house.table("scoreboard"))
    assert "held-out (math, 12 problems, avg@2)\n  papers: Ours-32B 75.8\n" in text
    line = next(line for line in text.splitlines() if line.startswith("  student--stage2"))
    assert "100.0 [100.0, 100.0]" in line and "+75.0 [" in line
    assert max(len(line) for line in text.splitlines()) < 280


def test_an_infrastructure_failure_is_an_error_not_a_score(house, result, monkeypatch):
    from deepdistill_resources import benchmarking
    from deepdistill_resources.verifiers.base import Verdict

    class Flaky:
        def __init__(self, failures):
            self.failures = failures

        def verify(self, requests):
            self.failures -= 1
            kind = "infra_error" if self.failures >= 0 else "passed"
            return [Verdict(request, 1.0, 1.0, kind, "v", evidence={"reason": "no worker"}) for request in requests]

    assert [v.verdict for v in benchmarking.verify_until_decided(Flaky(2), ["a", "b"])] == ["passed", "passed"]
    with pytest.raises(EvaluationError, match=r"2 of 2 benchmark responses cannot be verified.*no worker"):
        benchmarking.verify_until_decided(Flaky(3), ["a", "b"])


def test_evidence_is_plain_json(house, result):
    rows = house.table("benchmark_responses/benchmark=held-out/checkpoint=student--base")
    assert all(isinstance(json.loads(text), dict) for text in rows["evidence"])


def test_training_rows_that_match_a_benchmark_mark_its_scores(house, result):
    found = house.table("training_contamination")
    assert found.select("stage", "example_id", "benchmark").rows() == [("stage2", "e-q1", "held-out")]
    scores = house.table("benchmark_scores/benchmark=held-out/checkpoint=student--stage2")
    marked = scores.filter(pl.col("metric") == "contaminated_training_rows")
    assert marked["value"].to_list() == [1.0]
    clean = house.table("benchmark_scores/benchmark=held-out/checkpoint=student--stage1")
    assert "contaminated_training_rows" not in clean["metric"]


def test_a_recipe_can_block_contaminated_evaluation(world, tmp_path):
    house = House(world, tmp_path, block_on_contamination=True)
    for asset, key in (
        ("student_models", "student"), ("stage1_checkpoint", "student"), ("stage2_checkpoint", "student"),
        ("benchmark_problems", "held-out"), ("contamination", "sums"), ("stage1_dataset", None),
        ("stage2_dataset", None), ("training_contamination", None), ("checkpoints", "student--stage1"),
        ("checkpoints", "student--stage2"),
    ):  # fmt: skip
        house.make(asset, key)
    opened = len(world.OPENED)
    keys = [dg.MultiPartitionKey({"benchmark": "held-out", "checkpoint": f"student--stage{n}"}) for n in (1, 2)]
    house.make("benchmark_responses", keys[0])
    assert len(world.OPENED) == opened + 1
    with pytest.raises(dg.Failure, match=r"1 training rows of student--stage2 match problems of held-out"):
        house.make("benchmark_responses", keys[1])
    assert len(world.OPENED) == opened + 1


def test_weights_from_elsewhere_are_scored_like_the_student_they_are_compared_with(world, tmp_path):
    given = {"other": {"model": "tiny", "student": "student"}}
    house = House(world, tmp_path, checkpoints=given)
    assert "student--other" in house.partitions.checkpoint.get_partition_keys()
    house.make("checkpoints", "student--other")
    row = house.table("checkpoints/partition=student--other").row(0, named=True)
    assert (row["stage"], row["model"], row["path"]) == ("other", "tiny", None) and row["sha256"]
    house.make("benchmark_problems", "held-out")
    house.make("benchmark_responses", dg.MultiPartitionKey({"benchmark": "held-out", "checkpoint": "student--other"}))
    assert house.table("benchmark_responses/benchmark=held-out/checkpoint=student--other").height == 24
    with pytest.raises(ValueError, match="'nobody' is not a key of students"):
        world.make_recipe(tmp_path, checkpoints={"other": {"model": "tiny", "student": "nobody"}})
    with pytest.raises(ValueError, match="'stage1' is the name of a checkpoint"):
        world.make_recipe(tmp_path, checkpoints={"stage1": {"model": "tiny", "student": "student"}})


@pytest.mark.parametrize(("judge", "right"), [("tiny", 24), (None, 6)])
def test_a_judge_has_a_word_only_where_the_recipe_names_one_for_its_benchmarks(world, tmp_path, judge, right):
    house = House(world, tmp_path, judge_model=judge)
    store = house.resources["model_store"]
    house.resources["verifier_suite"] = VerifierSuite(
        workers=1, sandbox="off", engine=world.KindJudge(), model_store=store
    )
    key = dg.MultiPartitionKey({"benchmark": "held-out", "checkpoint": "student--base"})
    for asset, partition in (
        ("student_models", "student"), ("checkpoints", "student--base"), ("benchmark_problems", "held-out"),
        ("contamination", "sums"), ("stage1_dataset", None), ("stage2_dataset", None),
        ("training_contamination", None), ("benchmark_responses", key), ("benchmark_scores", key), ("scoreboard", None),
    ):  # fmt: skip
        house.make(asset, partition)
    rows = house.table("benchmark_responses/benchmark=held-out/checkpoint=student--base")
    assert rows["passed"].sum() == right
    assert (rows["verifier"] == "math:judge").sum() == (18 if judge else 0)
    judged = [json.loads(text).get("judged_by", "") for text in rows["evidence"]]
    assert sum("same_answer#" in name for name in judged) == (18 if judge else 0)
    assert ("75% judged by tiny" in house.table("scoreboard")["note"][0]) is bool(judge)
