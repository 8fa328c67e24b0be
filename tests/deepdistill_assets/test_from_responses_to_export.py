"""Responses to export on a real lake: quality, grading, selection, what-if and publishing as Dagster runs them."""

import importlib.util
import random
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from deepdistill_assets import tables as t
from deepdistill_assets.grading import assets as grading_assets
from deepdistill_assets.partitions import Partitions
from deepdistill_assets.publishing import assets as publishing_assets
from deepdistill_assets.quality import assets as quality_assets
from deepdistill_assets.recipe import Recipe
from deepdistill_assets.selection import assets as selection_assets
from deepdistill_resources.compute import LocalCompute
from deepdistill_resources.engines.prompting import join_response
from deepdistill_resources.engines.resource import EngineResource
from deepdistill_resources.io_managers import DATA_FILE, ParquetIOManager, partition_directory
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ModelStore

PLACE = Path(__file__).parents[1] / "deepdistill_resources" / "trainers" / "tiny_model.py"
SOURCES, TEACHERS = {"sums": "math", "chat": "other"}, ("weak", "strong")
LOOP = "wait let me check " * 40


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("tiny_model", PLACE)
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    return tiny.make_model(tmp_path_factory.mktemp("tiny") / "model")


def recipe_of(model_directory, **changes):
    model = {"kind": "directory", "path": str(model_directory), "license": "Apache-2.0"}
    parameters = {"learning_rate": 1e-4, "epochs": 1}
    values = {
        "name": "small",
        "title": "Small",
        "description": "For tests.",
        "models": {"tiny": model},
        "sources": {
            name: {"category": category, "license": "MIT", "reader": "none"} for name, category in SOURCES.items()
        },
        "teachers": {name: {"model": "tiny", "passes": 4} for name in TEACHERS},
        "quality": {"perplexity_model": "tiny", "max_perplexity": 1e9},
        "grading": {"level_teachers": list(TEACHERS)},
        "selection": {"stage1": {"teacher": "strong"}, "stage2": {"top_k": {"math": 5}}},
        "students": {"s": {"model": "tiny"}},
        "training": {"stage1": parameters, "stage2": parameters, "validation_share": 0.2},
        "evaluation": {"benchmarks": {}},
    }
    return Recipe.model_validate(values | changes)


def query_rows(source):
    return [
        {
            "query_id": f"{source}-{index:02}",
            "source": source,
            "category": SOURCES[source],
            "messages": [{"role": "user", "content": f"{source} {index}?"}],
            "query_text": f"{source} {index}?",
            "reference_answer": str(index),
            "license": "MIT",
        }
        for index in range(12)
    ]


def response_rows(source, teacher):
    drawn = random.Random(f"{source} {teacher}")
    rows = []
    for query in query_rows(source):
        rate = drawn.choice([0.0, 0.5, 1.0])
        for index in range(4):
            passed = drawn.random() < rate
            think = LOOP if query["query_id"] == "sums-03" else f"thinking of {query['query_id']}"
            status = "truncated" if (query["query_id"], index) == ("sums-04", 0) else "ok"
            rows.append(
                {
                    "response_id": f"{teacher}-{query['query_id']}-{index}",
                    "query_id": query["query_id"],
                    "source": source,
                    "category": SOURCES[source],
                    "teacher": teacher,
                    "pass_index": index,
                    "think": think,
                    "answer": "yes" if passed else "no",
                    "text": f"<think>\n{think}\n</think>\n<answer>{'yes' if passed else 'no'}</answer>",
                    "status": status,
                    "engine": "imported" if index == 1 else "scripted",
                    "response_source": "a released set" if index == 1 else f"{teacher}-0309",
                    "finish_reason": "stop",
                    "completion_tokens": 10 + index,
                    "score": (0.9 if SOURCES[source] == "other" else 1.0) if passed else 0.1,
                    "passed": passed,
                }
            )
    return rows


class World:
    def __init__(self, root, recipe):
        self.recipe, self.lake = recipe, Lake(root=str(root / "lake"))
        partitions = Partitions.of(recipe)
        rooms = (quality_assets, grading_assets, selection_assets, publishing_assets)
        self.assets = [asset for room in rooms for asset in room.build_assets(recipe, partitions)]
        given = {"source": partitions.source, "teacher": partitions.teacher, "both": partitions.source_teacher}
        names = {
            "distillation_queries": "source",
            "contamination": "source",
            "teacher_models": "teacher",
            "responses": "both",
            "verified_responses": "both",
        }
        self.given = [dg.AssetSpec(name, partitions_def=given[kind]) for name, kind in names.items()]
        self.resources = {
            "io_manager": ParquetIOManager(lake=self.lake),
            "lake": self.lake,
            "compute": LocalCompute(),
            "engine": EngineResource(processes=1),
            "model_store": ModelStore(directory=str(root / "models")),
        }

    def put(self, asset, keys, schema, rows):
        frame = pl.DataFrame(rows, infer_schema_length=None) if rows else pl.DataFrame(schema=schema)
        frame = t.conform(frame.select(name for name in schema if name in frame.columns), schema)
        self.lake.write_table(f"{partition_directory(asset, keys)}/{DATA_FILE}", frame)

    def fill(self):
        for source in SOURCES:
            self.put("distillation_queries", {"partition": source}, t.QUERY, query_rows(source))
            match = {"query_id": "gone", "source": source, "benchmark": "b", "method": "exact"}
            self.put("contamination", {"partition": source}, t.CONTAMINATION, [match])
            for teacher in TEACHERS:
                keys, rows = {"source": source, "teacher": teacher}, response_rows(source, teacher)
                self.put("responses", keys, t.RESPONSE, rows)
                verdict = {True: "passed", False: "failed"}
                rows = [r | {"verify_score": r["score"], "verdict": verdict[r["passed"]]} for r in rows]
                rows = [r | {"verify_score_normalised": 1.0 if r["passed"] else 0.1} for r in rows]
                self.put("verified_responses", keys, t.VERIFICATION, rows)
        for teacher in TEACHERS:
            row = {"name": teacher, "model": "tiny", "origin": "directory", "revision": "r", "license": "Apache-2.0"}
            self.put("teacher_models", {"partition": teacher}, t.MODEL, [row])
        return self

    def make(self, asset, keys=None):
        chosen = dg.MultiPartitionKey(keys) if isinstance(keys, dict) else keys
        return dg.materialize(
            [*self.assets, *self.given],
            selection=[asset],
            partition_key=chosen,
            resources=self.resources,
            raise_on_error=True,
        )

    def make_all(self):
        self.make("frequent_ngrams")
        for source in SOURCES:
            for teacher in TEACHERS:
                self.make("quality_checks", {"source": source, "teacher": teacher})
            self.make("difficulty_grades", source)
        names = ["stage1_selection", "stage2_selection", "stage1_dataset", "stage2_dataset"]
        return {
            name: self.make(name) for name in [*names, "selection_what_if", "sampling_what_if", "published_dataset"]
        }

    def table(self, asset, **keys):
        return self.lake.read_table(f"{partition_directory(asset, keys or None)}/{DATA_FILE}")


@pytest.fixture(scope="module")
def world(tmp_path_factory, model_directory):
    world = World(tmp_path_factory.mktemp("world"), recipe_of(model_directory)).fill()
    world.results = world.make_all()
    return world


def test_quality_checks_every_response_with_a_real_model(world):
    checks = world.table("quality_checks", source="sums", teacher="strong")
    responses = world.table("responses", source="sums", teacher="strong")
    assert checks["response_id"].equals(responses["response_id"])
    reasons = dict(checks.select("response_id", "drop_reason").iter_rows())
    assert {reasons[f"strong-sums-03-{index}"] for index in range(4)} == {"repeated_ngram"}
    assert reasons["strong-sums-04-0"] == "truncated"
    assert checks.filter("keep")["perplexity"].is_between(1.0, 1e6).all()
    assert checks.filter(~pl.col("keep"))["perplexity"].null_count() == 5
    found = world.table("frequent_ngrams")
    assert found["count"].min() > 20
    assert "wait let me check" in found["example"][0]


def test_grades_say_how_hard_each_query_is(world):
    grades = world.table("difficulty_grades", partition="sums")
    assert grades.height == 12 * 2
    assert grades.schema == pl.Schema(t.GRADE)
    assert set(grades["grade_status"]) == {"graded"}
    assert grades.filter(pl.col("query_id") == "sums-04")["n"].to_list() == [4, 4]
    responses = pl.concat([world.table("responses", source="sums", teacher=name) for name in TEACHERS])
    assert grades["n"].sum() == responses.height


def test_selection_decides_on_every_response(world):
    decisions = world.table("stage1_selection")
    assert decisions.height == 2 * 2 * 12 * 4
    assert set(decisions.filter("keep")["teacher"]) == {"strong"}
    assert {"not_training_teacher", "kept_challenging"} <= set(decisions["reason"])
    for name in ("stage1_selection", "stage2_selection"):
        checks = {check.check_name: check.passed for check in world.results[name].get_asset_check_evaluations()}
        assert checks == {"no_empty_query": True, "decision_count_equals_response_count": True}
    kept = world.table("stage2_selection").filter("keep")
    assert kept["query_id"].is_unique().all()
    assert kept.filter(pl.col("category") == "math").height <= 5


def test_datasets_hold_the_kept_responses_in_canonical_form(world):
    decisions, dataset = world.table("stage1_selection"), world.table("stage1_dataset")
    assert dataset["example_id"].to_list() == decisions.filter("keep")["response_id"].sort().to_list()
    row = dataset.row(0, named=True)
    assert row["response"] == join_response(f"thinking of {row['query_id']}", "yes")
    assert row["messages"] == [{"role": "user", "content": row["query_id"].replace("-0", " ").replace("-", " ") + "?"}]
    assert dataset.group_by("query_id").agg(pl.col("split").n_unique())["split"].max() == 1
    assert set(dataset["split"]) <= {"train", "validation"}


def test_what_if_shows_the_recipe_and_the_paper(world):
    table = world.table("selection_what_if")
    assert set(table["population"]) == {"lake", "paper figure 8"}
    here = table.filter(
        pl.col("population") == "lake", pl.col("ddof") == 0, pl.col("gate") == "strict", pl.col("cv_threshold") == 0.05
    )
    kept = world.table("stage1_selection").filter("keep")
    assert here["stage1_rows"].sum() == kept.height
    assert here["stage1_tokens"].sum() == world.table("stage1_dataset")["completion_tokens"].sum()
    assert here["stage2_rows"].sum() == world.table("stage2_selection")["keep"].sum()


def test_sampling_what_if_replays_the_lakes_own_responses(world):
    table = world.table("sampling_what_if")
    assert set(table["plan"]) == {"stop early", "other teacher first", "more passes"}
    kept = world.table("stage1_selection").filter("keep")
    replayed = (
        table.filter(pl.col("plan") == "stop early").group_by("setting").agg(pl.col("kept_now", "tokens_now").sum())
    )
    assert set(replayed["kept_now"]) == {kept.height}
    strong = pl.concat([world.table("responses", source=source, teacher="strong") for source in SOURCES])
    assert set(replayed["tokens_now"]) == {strong["completion_tokens"].sum()}
    other = table.filter(pl.col("setting") == "weak, 4 passes")
    weak = pl.concat([world.table("responses", source=source, teacher="weak") for source in SOURCES])
    assert other["other_teacher_tokens"].sum() == weak["completion_tokens"].sum()


def test_above_the_limit_the_what_if_reports_look_at_a_sample(world, monkeypatch):
    monkeypatch.setattr("deepdistill_assets.selection.report_assets.WHAT_IF_QUERIES", 12)
    before = world.table("selection_what_if")
    try:
        metadata = world.make("selection_what_if").asset_materializations_for_node("selection_what_if")[0].metadata
        assert metadata["share_of_queries"].value == 0.5
        queries = world.table("selection_what_if").filter(pl.col("population") == "lake")["queries"]
        assert all(queries % 2 == 0)
    finally:
        world.lake.write_table("selection_what_if/data.parquet", before)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_the_export_is_read_back_with_its_features(world, tmp_path, kind):
    from datasets import List, Value, load_dataset

    root = world.lake.uri(f"published/small/{kind}")
    responses = pl.concat([world.table("responses", source=s, teacher=x) for s in SOURCES for x in TEACHERS])
    graded = load_dataset(root, name="graded", cache_dir=str(tmp_path), split="train")
    assert graded.num_rows == responses.height
    assert graded.features["pass_rate_strong"] == Value("float32")
    assert graded.features["ppl"] == Value("float32")
    expected = ["question", "answer", "question_source", "answer_source", "category", "ground_truth", "test_case"]
    expected += ["instruction_constrain", "pass_rate_weak", "pass_rate_strong", "verify_score", "ppl", "model_name"]
    assert graded.column_names == [*expected, "response_id", "query_id"]
    assert set(graded["response_id"]) == set(responses["response_id"])
    rows = {row["response_id"]: row for row in graded}
    rate = world.table("difficulty_grades", partition="sums").filter(teacher="weak", query_id="sums-05")["pass_rate"][0]
    assert rows["strong-sums-05-2"]["pass_rate_weak"] == rate
    assert rows["strong-sums-05-2"]["ground_truth"] == "5"
    stage, came = (
        load_dataset(root, name=f"stage1_messages{kind}", cache_dir=str(tmp_path)) for kind in ("", "_existing")
    )
    rows = [sum(split.num_rows for split in part.values()) for part in (stage, came)]
    assert sum(rows) == world.table("stage1_dataset").height and min(rows) > 0
    for part, maker in ((stage, "strong-0309"), (came, "a released set")):
        assert {row["messages"][-1]["info"]["source"] for row in part["train"]} == {maker}
    assert isinstance(stage["train"].features["messages"], List)
    user, answer = stage["train"][0]["messages"]
    assert answer["info"]["answer_content"] == "yes"
    assert user["info"]["reference_answer"] is not None
    assert load_dataset(root, name="stage2", cache_dir=str(tmp_path))["train"].num_rows > 0


def test_the_card_tells_where_everything_comes_from(world):
    card = world.lake.read_bytes("published/small/parquet/README.md").decode()
    for text in ("MIT", "Apache-2.0", world.recipe.fingerprint(), "cv_thresholds", "| responses | 192 |", "exact"):
        assert text in card


def test_an_export_replaces_the_one_before(world):
    leftover = "published/small/parquet/graded/train-old.parquet"
    world.lake.write_bytes(leftover, b"old")
    before = {
        path: world.lake.read_bytes(path) for path in world.lake.list_files("published/small") if path != leftover
    }
    world.make("published_dataset")
    after = {path: world.lake.read_bytes(path) for path in world.lake.list_files("published/small")}
    assert before == after


def test_a_large_shard_is_several_files_in_the_same_order(world, monkeypatch):
    place = f"{world.lake.uri('published/small/parquet/graded')}/train-sums--strong"
    whole = pl.read_parquet(f"{place}-*.parquet")
    try:
        monkeypatch.setattr("deepdistill_assets.publishing.layout.ROWS_PER_FILE", 20)
        world.make("published_dataset")
        assert [pl.read_parquet(f"{place}-0000{number}.parquet").height for number in range(3)] == [20, 20, 8]
        assert pl.read_parquet(f"{place}-*.parquet").equals(whole)
        assert pl.read_ndjson(f"{place.replace('parquet', 'jsonl')}-00002.jsonl").height == 8
    finally:
        monkeypatch.undo()
        world.make("published_dataset")


@pytest.mark.parametrize(
    ("licence", "accepted", "works"),
    [("CC-BY-NC-4.0", [], False), ("CC-BY-NC-4.0", ["cc-by-nc-4.0"], True), (None, [], False)],
)
def test_licences_that_restrict_use_are_refused(world, tmp_path, model_directory, licence, accepted, works):
    strict = World(tmp_path, recipe_of(model_directory, publishing={"accepted_licenses": accepted}))
    strict.lake = world.lake.model_copy()
    strict.resources = world.resources
    rows = [row | {"license": licence} for row in query_rows("sums")]
    world.put("distillation_queries", {"partition": "sums"}, t.QUERY, rows)
    try:
        if works:
            assert strict.make("published_dataset").success
        else:
            with pytest.raises(dg.Failure, match=r"source sums: (CC-BY-NC-4.0|unknown)"):
                strict.make("published_dataset")
    finally:
        world.put("distillation_queries", {"partition": "sums"}, t.QUERY, query_rows("sums"))


def test_an_empty_selection_fails_and_says_why(world, model_directory, tmp_path):
    recipe = recipe_of(model_directory, verification={"thresholds": {"math": 9.0, "other": 9.0}})
    strict = World(tmp_path, recipe)
    strict.resources = world.resources
    with pytest.raises(dg.Failure, match="max_score_below_threshold"):
        strict.make("stage1_selection")


def test_a_recipe_without_stage_two_has_no_stage_two_assets(model_directory):
    parameters = {"learning_rate": 1e-4, "epochs": 1}
    recipe = recipe_of(model_directory, selection={"stage1": {"teacher": "strong"}}, training={"stage1": parameters})
    partitions = Partitions.of(recipe)
    names = {asset.key.path[-1] for asset in selection_assets.build_assets(recipe, partitions)}
    assert names == {"stage1_selection", "stage1_dataset", "selection_what_if", "sampling_what_if"}
    published = publishing_assets.build_assets(recipe, partitions)[0]
    assert "stage2_dataset" not in {key.path[-1] for key in published.asset_deps[published.key]}
