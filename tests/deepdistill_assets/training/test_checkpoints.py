import json

import dagster as dg
import numpy as np
import polars as pl
import pytest

from deepdistill_assets import tables
from deepdistill_assets.partitions import Partitions
from deepdistill_assets.recipe import Recipe
from deepdistill_assets.training.assets import build_assets
from deepdistill_assets.training.examples import dataset_version, training_examples
from deepdistill_assets.training.selection_arms import arm_dataset, arm_responses, draw
from deepdistill_assets.training.studies import over_seeds_and_problems, summarise
from deepdistill_resources.errors import EvaluationError, TrainingError
from deepdistill_resources.io_managers import ParquetIOManager
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ModelStore
from deepdistill_resources.trainers.trl_trainer import TrlTrainer

TRAINING = {
    "learning_rate": 3e-3, "epochs": 2, "global_batch_size": 8, "per_device_batch_size": 8, "max_length": 96,
    "precision": "fp32",
}  # fmt: skip


def make_recipe(model, stage2=True, **training):
    return Recipe.model_validate(
        {
            "name": "tiny",
            "title": "Tiny",
            "description": "For tests",
            "models": {"tiny": {"kind": "directory", "path": str(model), "license": "CC0-1.0"}},
            "sources": {"sums": {"category": "math", "license": "CC0-1.0", "reader": "none"}},
            "teachers": {"teacher": {"model": "tiny"}},
            "students": {"student": {"model": "tiny"}},
            "selection": {"stage1": {"teacher": "teacher"}, **({"stage2": {}} if stage2 else {})},
            "training": {"stage1": TRAINING, **({"stage2": {**TRAINING, "learning_rate": 1e-3}} if stage2 else {})}
            | training,
            "evaluation": {
                "benchmarks": {"held-out": {"category": "math", "license": "CC0-1.0", "reader": "none", "claim": True}}
            },
        }
    )


def dataset(rows=16, first=0):
    frame = pl.DataFrame(
        {
            "example_id": [f"e{first + n:03}" for n in range(rows)],
            "query_id": [f"q{n}" for n in range(rows)],
            "source": ["sums"] * rows,
            "category": ["math"] * rows,
            "teacher": ["teacher"] * rows,
            "split": ["train"] * rows,
            "messages": [[{"role": "user", "content": f"{n}+1"}] for n in range(rows)],
            "response": [f"<answer>{n + 1}</answer>" for n in range(rows)],
            "completion_tokens": [3] * rows,
        }
    )
    return tables.conform(frame, tables.DATASET)


def house(tmp_path, model, recipe, stage1=None, stage2=None):
    partitions = Partitions.of(recipe)
    lake = Lake(root=str(tmp_path / "lake"))
    first, second = (dataset() if rows is None else rows for rows in (stage1, stage2))

    @dg.asset(io_manager_key="io_manager")
    def stage1_dataset():
        return first

    @dg.asset(io_manager_key="io_manager")
    def stage2_dataset():
        return second

    @dg.asset(io_manager_key="io_manager", partitions_def=partitions.student)
    def student_models():
        return pl.DataFrame({"name": ["student"], "model": ["tiny"], "revision": ["r1"], "sha256": ["0"]})

    upstream = [stage1_dataset, stage2_dataset, student_models]
    resources = {
        "io_manager": ParquetIOManager(lake=lake),
        "lake": lake,
        "model_store": ModelStore(directory=str(tmp_path / "models")),
        "trainer": TrlTrainer(threads=1),
    }
    wanted = [a for a in build_assets(recipe, partitions) if a.key.path[-1].startswith("stage")]
    return upstream, wanted, resources, lake


def materialize(assets, resources, selection, partition_key=None, raise_on_error=True):
    return dg.materialize(
        assets, resources=resources, selection=selection, partition_key=partition_key, raise_on_error=raise_on_error
    )


def run_all(upstream, wanted, resources):
    assets = [*upstream, *wanted]
    materialize(assets, resources, ["stage1_dataset", "stage2_dataset"])
    materialize(assets, resources, ["student_models"], "student")
    return materialize(assets, resources, [a.key.path[-1] for a in wanted], "student")


def metadata_of(result, asset):
    return result.asset_materializations_for_node(asset)[0].metadata


def test_both_stages_publish_a_checkpoint_with_provenance_and_are_reused(tmp_path, tiny_model):
    recipe = make_recipe(tiny_model)
    upstream, wanted, resources, lake = house(tmp_path, tiny_model, recipe)
    result = run_all(upstream, wanted, resources)
    rows = [lake.read_table(f"stage{n}_checkpoint/partition=student/data.parquet").row(0, named=True) for n in (1, 2)]
    assert [row["checkpoint"] for row in rows] == ["student--stage1", "student--stage2"]
    assert rows[0]["sha256"] != rows[1]["sha256"]
    for row in rows:
        directory = lake.fetch_directory(row["path"])
        provenance = json.loads((directory / "provenance.json").read_text())
        assert (directory / "model.safetensors").exists()
        assert provenance["sha256"] == row["sha256"]
        assert provenance["packages"]["trl"] and provenance["dataset_version"] == row["dataset_version"]
        assert provenance["commit"] is None or len(provenance["commit"].removesuffix("-dirty")) == 40
    second = json.loads((lake.fetch_directory(rows[1]["path"]) / "provenance.json").read_text())
    assert second["base_revision"] == rows[0]["sha256"][:16]
    assert not (tmp_path / "lake" / "_work" / "training" / "student-stage1").exists()
    facts = metadata_of(result, "stage1_checkpoint")
    assert facts["reused"].value is False and facts["steps"].value == 4 and "svg" in facts["loss_curve"].value

    again = materialize([*upstream, *wanted], resources, ["stage1_checkpoint"], "student")
    assert metadata_of(again, "stage1_checkpoint")["reused"].value is True
    versions = [
        r.asset_materializations_for_node("stage1_checkpoint")[0].tags["dagster/data_version"] for r in (result, again)
    ]
    assert versions[0] == versions[1]


def test_an_empty_stage_two_says_what_to_change(tmp_path, tiny_model):
    upstream, wanted, resources, _ = house(tmp_path, tiny_model, make_recipe(tiny_model), stage2=dataset(0))
    with pytest.raises(dg.Failure, match=r"lower selection\.stage2\.threshold"):
        run_all(upstream, wanted, resources)


def test_a_recipe_without_stage_two_or_studies_lacks_their_assets(tiny_model):
    recipe = make_recipe(tiny_model, stage2=False)
    assert [a.key.path[-1] for a in build_assets(recipe, Partitions.of(recipe))] == ["stage1_checkpoint"]
    recipe = make_recipe(tiny_model, learning_rates=[1e-3, 1e-2], selection_study_rows=4)
    names = {a.key.path[-1] for a in build_assets(recipe, Partitions.of(recipe))}
    assert names == {
        "stage1_checkpoint",
        "stage2_checkpoint",
        "learning_rate_study",
        "learning_rate_summary",
        "selection_study",
        "selection_summary",
    }


def test_the_dataset_version_depends_on_rows_and_not_on_their_order():
    examples = training_examples(dataset())
    assert dataset_version(examples) == dataset_version(training_examples(dataset().reverse()))
    assert dataset_version(examples) != dataset_version(examples[1:])


def test_validation_rows_are_not_trained_on():
    frame = dataset(4).with_columns(split=pl.Series(["train", "validation", "train", "validation"]))
    assert [e.example_id for e in training_examples(frame)] == ["e000", "e002"]


VERIFIED = pl.DataFrame(
    {
        "response_id": ["a1", "a2", "b1", "b2", "c1", "o1"],
        "query_id": ["a", "a", "b", "b", "c", "a"],
        "teacher": ["t", "t", "t", "t", "t", "other"],
        "passed": [True, False, True, True, True, True],
    }
)
QUALITY = pl.DataFrame({"response_id": VERIFIED["response_id"], "keep": [True, True, True, True, False, True]})
GRADES = pl.DataFrame({"query_id": ["a", "b", "c"], "teacher": ["t"] * 3, "pass_rate": [0.5, 1.0, 0.5]})
DECISIONS = pl.DataFrame({"response_id": ["a1", "a2", "b1", "b2"], "keep": [True, False, False, False]})


SCORES = [table.lazy() for table in (DECISIONS, VERIFIED, QUALITY, GRADES)]


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("cv", ["a1"]),
        ("random", ["a1", "b1", "b2"]),
        ("pass-rate", ["a1"]),
        ("everything", ["a1", "a2", "b1", "b2"]),
    ],
)
def test_the_arms_of_the_selection_study(arm, expected):
    found = arm_responses(arm, *SCORES, "t")
    assert found["response_id"].to_list() == expected


def test_an_arm_with_too_few_rows_is_an_error_and_a_draw_is_reproducible():
    candidates = arm_responses("random", *SCORES, "t")
    assert draw(candidates, 2, 1, "random").equals(draw(candidates, 2, 1, "random"))
    with pytest.raises(TrainingError, match="selection_study_rows to 3"):
        draw(candidates, 4, 0, "random")


def test_an_arm_becomes_a_dataset_in_canonical_form():
    responses = pl.DataFrame(
        {
            "response_id": ["a1"], "source": ["sums"], "category": ["math"], "teacher": ["t"], "think": ["1+1=2"],
            "answer": ["2"], "completion_tokens": [5],
        }
    )  # fmt: skip
    queries = pl.DataFrame({"query_id": ["a"], "messages": [[{"role": "user", "content": "1+1"}]]})
    frame = arm_dataset(pl.DataFrame({"response_id": ["a1"], "query_id": ["a"]}), responses, queries)
    row = frame.row(0, named=True)
    assert (row["example_id"], row["split"]) == ("a1", "train")
    assert "1+1=2" in row["response"] and "<answer>" in row["response"]


def study_rows(*runs):
    """TRAINING_STUDY rows of runs (arm, seed, final_loss, {problem: accuracy})."""
    rows = [
        {
            "arm": arm, "seed": seed, "rows": 8, "steps": 4, "final_loss": loss, "benchmark": "b", "tokens": 80,
            "accuracies": [{"problem_id": name, "accuracy": value} for name, value in found.items()],
            "problems": len(found), "score": sum(found.values()) / len(found),
        }
        for arm, seed, loss, found in runs
    ]  # fmt: skip
    return tables.conform(pl.DataFrame(rows), tables.TRAINING_STUDY)


def answered(*values):
    return {f"p{number}": value for number, value in enumerate(values)}


def test_summary_of_a_study():
    study = study_rows(
        ("low", 0, 1.0, answered(1.0, 1.0, 0.0, 0.0)),
        ("low", 1, 2.0, answered(1.0, 1.0, 1.0, 0.0)),
        ("high", 1, 0.5, answered(1.0, 1.0, 1.0, 1.0)),
        ("high", 0, 0.5, answered(1.0, 1.0, 1.0, 1.0)),
    )
    summary = summarise(study, "low")
    assert summary["arm"].to_list() == ["high", "low"]
    high, low = summary.iter_rows(named=True)
    assert low["runs"] == 2 and low["score"] == pytest.approx(0.625) and low["final_loss"] == pytest.approx(1.5)
    assert low["score_std_over_seeds"] == pytest.approx(0.1768, abs=1e-3)
    assert low["interval_low"] < 0.625 < low["interval_high"] and low["compared_with"] is None
    assert high["compared_with"] == "low" and high["difference"] == pytest.approx(0.375)
    assert 0 <= high["difference_low"] < 0.375 < high["difference_high"]


def test_runs_are_compared_on_the_problems_that_all_of_them_have():
    first, second = {"p0": 1.0, "p1": 0.0, "p2": 0.0}, {"p0": 1.0, "p2": 0.0}
    (row,) = summarise(study_rows(("low", 0, 1.0, first), ("low", 1, 1.0, second)), "low").iter_rows(named=True)
    assert (row["problems"], row["score"]) == (2, 0.5)


def test_arms_are_paired_by_problem_not_by_place():
    low, high = {"p1": 0.0, "p2": 1.0}, {"p0": 1.0, "p2": 1.0}
    rows = summarise(study_rows(("low", 0, 1.0, low), ("high", 0, 1.0, high)), "low")
    assert rows.filter(pl.col("arm") == "high")["difference"].item() == 0.0  # on p2, the only one of both


def test_arms_without_a_problem_or_a_reference_in_common_have_no_difference():
    apart = study_rows(("low", 0, 1.0, {"p0": 1.0}), ("high", 0, 1.0, {"p1": 1.0}))
    assert summarise(apart, "low")["difference"].null_count() == 2
    assert summarise(apart, "none")["difference"].null_count() == 2
    with pytest.raises(EvaluationError, match="every run of low"):
        summarise(apart.with_columns(arm=pl.lit("low"), seed=pl.Series([0, 1])), "low")


def test_an_edit_makes_only_the_studies_stale_that_it_changes():
    def versions(**training):
        changed = make_recipe("nowhere", **{"learning_rates": [1e-3], "selection_study_rows": 4, **training})
        assets = build_assets(changed, Partitions.of(changed))
        found = {asset.key.path[-1]: asset.code_versions_by_key[asset.key] for asset in assets}
        return {name: found[name] for name in ("learning_rate_study", "selection_study")}

    before = versions()

    def stale(**training):
        return {name for name, version in versions(**training).items() if version != before[name]}

    assert stale(learning_rates=[1e-3, 1e-2]) == set()
    assert stale(stage2={**TRAINING, "epochs": 3}, validation_share=0.1) == set()
    assert stale(selection_study_rows=8) == {"selection_study"}
    assert stale(study_seeds=[0, 1]) == {"learning_rate_study", "selection_study"}


def test_the_interval_over_seeds_and_problems_is_wider_than_over_either():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (8, 1)) + rng.normal(0, 1, (1, 50))
    value, low, high = over_seeds_and_problems(values, 2000, 0)
    assert value == pytest.approx(values.mean())
    # Variance of the mean: 1 / 8 from seeds and 1 / 50 from problems.
    assert high - low == pytest.approx(
        2 * 1.96 * (values.mean(1).var() / 8 + values.mean(0).var() / 50) ** 0.5, rel=0.15
    )
