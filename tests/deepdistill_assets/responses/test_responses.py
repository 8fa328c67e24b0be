"""The models and responses rooms, with a real (untrained) model: every query, every pass, once, resumable."""

import dagster as dg
import polars as pl
import pytest

from deepdistill_assets import tables
from deepdistill_assets.models.assets import build_assets as build_models
from deepdistill_assets.partitions import Partitions
from deepdistill_assets.recipe import Recipe
from deepdistill_assets.responses.assets import build_assets
from deepdistill_assets.responses.imported import imported_rows
from deepdistill_assets.responses.plan import check_budget, response_plan, response_rows
from deepdistill_resources.compute import LocalCompute
from deepdistill_resources.engines.resource import EngineResource
from deepdistill_resources.errors import RecipeError
from deepdistill_resources.generation import GENERATED
from deepdistill_resources.io_managers import ParquetIOManager
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ModelStore
from deepdistill_resources.verifiers.suite import VerifierSuite

TRAINING = {"learning_rate": 1e-3, "epochs": 1}


def make_recipe(path, passes=3, teacher_options=None, **changes):
    source = {"category": "math", "license": "CC0-1.0", "reader": "none"}
    teacher = {"model": "tiny", "sampling": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 12}, "passes": passes}
    teacher |= teacher_options or {}
    return Recipe.model_validate(
        {
            "name": "tiny",
            "title": "Tiny",
            "description": "For tests",
            "models": {
                "tiny": {"kind": "directory", "path": str(path), "license": "CC0-1.0"},
                "released": {"kind": "imported", "name": "R1", "license": "MIT"},
            },
            "sources": {"sums": source, "codes": {**source, "teachers": ["short"]}},
            "teachers": {
                "long": teacher,
                "short": {**teacher, "max_new_tokens": {"math": 4}},
                "released": {"model": "released", "passes": 4},
            },
            "students": {"student": {"model": "tiny"}},
            "selection": {"stage1": {"teacher": "long"}},
            "training": {"stage1": TRAINING},
            "evaluation": {"benchmarks": {}},
            **changes,
        }
    )


def queries(count):
    rows = [
        {
            "query_id": f"q{number:02d}",
            "source": "sums",
            "category": "math",
            "messages": [{"role": "user", "content": f"{number}+{number}"}],
            "query_text": f"{number}+{number}",
            "reference_answer": str(2 * number),
        }
        for number in range(count)
    ]
    return tables.conform(pl.DataFrame(rows), tables.QUERY)


class House:
    """The two rooms, their upstream table, and a lake."""

    def __init__(self, directory, recipe):
        self.recipe, self.lake = recipe, Lake(root=str(directory / "lake"))
        self.instance = dg.DagsterInstance.ephemeral()
        self.rows, self.existing, self.compute = queries(8), [], LocalCompute()

    def materialize(self, asset, partition):
        partitions = Partitions.of(self.recipe)
        house = self

        @dg.asset(partitions_def=partitions.source, io_manager_key="io_manager")
        def distillation_queries() -> pl.DataFrame:
            return house.rows

        @dg.asset(partitions_def=partitions.source, io_manager_key="io_manager")
        def existing_responses() -> pl.DataFrame:
            return tables.conform(
                pl.DataFrame(house.existing, schema_overrides=tables.EXISTING_RESPONSE), tables.EXISTING_RESPONSE
            )

        result = dg.materialize(
            [
                distillation_queries,
                existing_responses,
                *build_models(self.recipe, partitions),
                *build_assets(self.recipe, partitions),
            ],
            selection=asset,
            partition_key=dg.MultiPartitionKey(partition) if isinstance(partition, dict) else partition,
            instance=self.instance,
            resources={
                "lake": self.lake,
                "io_manager": ParquetIOManager(lake=self.lake),
                "model_store": ModelStore(directory=str(self.lake.root) + "-models"),
                "engine": EngineResource(processes=1),
                "verifier_suite": VerifierSuite(workers=1),
                "compute": self.compute,
            },
        )
        return result.asset_materializations_for_node(asset)[0]

    def respond(self, source="sums", teacher="long"):
        self.materialize("distillation_queries", source)
        self.materialize("existing_responses", source)
        self.materialize("teacher_models", teacher)
        event = self.materialize("responses", {"source": source, "teacher": teacher})
        table = self.lake.read_table(f"responses/source={source}/teacher={teacher}/data.parquet")
        return table, {name: value.value for name, value in event.metadata.items()}


@pytest.fixture
def house(tmp_path, tiny_model):
    return House(tmp_path, make_recipe(tiny_model))


def data_version(house):
    partition = dg.MultiPartitionKey({"source": "sums", "teacher": "long"})
    records = house.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey("responses"), asset_partitions=[str(partition)]), limit=1
    ).records
    return records[0].asset_materialization.tags["dagster/data_version"]


def test_every_query_has_every_pass_once_and_the_facts_say_so(house):
    table, facts = house.respond()
    assert dict(table.schema) == tables.RESPONSE
    assert table.select("query_id", "pass_index").rows() == [(f"q{n:02d}", p) for n in range(8) for p in range(3)]
    assert table["response_id"].n_unique() == table["seed"].n_unique() == 24
    assert table["model_revision"].n_unique() == 1
    assert table.filter(pl.col("completion_tokens") > 12).is_empty()
    assert (facts["responses_new"], facts["responses_reused"], facts["chunks_reused"]) == (24, 0, 0)
    assert facts["chunks_new"] >= 1
    assert facts["tokens"] == table["completion_tokens"].sum()
    assert facts["engine"].startswith("transformers ")
    assert facts["share_truncated"] == (table["status"] == "truncated").mean()
    assert facts["share_failed"] == (table["status"] == "empty").mean()
    assert facts["by_status"].startswith("| status | responses | share |")
    assert 0 < table["seconds"].sum() < 600
    assert "svg" in facts["lengths"]


def test_a_second_run_generates_nothing_and_changes_nothing(house):
    first, _ = house.respond()
    before = data_version(house)
    second, facts = house.respond()
    assert second.equals(first)
    assert (facts["responses_new"], facts["responses_reused"]) == (0, 24)
    assert data_version(house) == before


def test_a_grown_and_reordered_source_asks_only_for_what_is_new(house):
    first, _ = house.respond()
    house.rows = queries(10).reverse()
    second, facts = house.respond()
    assert (facts["responses_new"], facts["responses_reused"]) == (6, 24)
    old = second.filter(pl.col("query_id").is_in(first["query_id"].unique().to_list()))
    assert old.equals(first)
    house.rows = queries(2)
    third, facts = house.respond()
    assert (third.height, facts["responses_new"]) == (6, 0)


def test_more_passes_keep_the_first_ones(tmp_path, tiny_model):
    first, _ = House(tmp_path, make_recipe(tiny_model, passes=2)).respond()
    second, facts = House(tmp_path, make_recipe(tiny_model, passes=3)).respond()
    assert (facts["responses_new"], facts["responses_reused"]) == (8, 16)
    assert second.filter(pl.col("pass_index") < 2).equals(first)


def test_the_limit_of_a_category_holds_and_changes_the_keys(house):
    long, _ = house.respond()
    short, _ = house.respond(teacher="short")
    assert short["completion_tokens"].max() <= 4
    assert not set(long["response_id"]) & set(short["response_id"])


def test_a_teacher_that_does_not_answer_a_source_has_an_empty_table(house):
    table, facts = house.respond(source="codes", teacher="long")
    assert table.is_empty()
    assert dict(table.schema) == tables.RESPONSE
    assert facts["dagster/row_count"] == 0


def test_a_partition_over_its_budget_fails_before_any_token(tmp_path, tiny_model):
    recipe = make_recipe(tiny_model, responses={"token_budget": 100})
    house = House(tmp_path, recipe)
    with pytest.raises(RecipeError, match=r"may generate 288 tokens, responses.token_budget is 100.*Fix: lower"):
        house.respond()
    assert house.lake.list_files("_chunks") == []


def test_each_model_is_one_row_that_says_where_it_comes_from(house):
    for asset, partition in (("teacher_models", "long"), ("student_models", "student")):
        house.materialize(asset, partition)
        row = house.lake.read_table(f"{asset}/partition={partition}/data.parquet").row(0, named=True)
        assert list(row) == list(tables.MODEL)
        assert (row["name"], row["model"], row["license"]) == (partition, "tiny", "CC0-1.0")
        assert row["revision"] == row["sha256"][:16]
        assert str(house.lake.root) not in str(row), "no path of this machine in a table"


def test_the_keys_depend_on_everything_that_changes_a_response(tiny_model):
    recipe = make_recipe(tiny_model)

    def keys(rows, teacher="long", revision="r1", of=recipe):
        return response_plan(rows, teacher, revision, of)[1]["response_id"].to_list()

    base = keys(queries(3))
    assert sorted(base) == sorted(keys(queries(3).reverse()))
    for other in (keys(queries(3), teacher="short"), keys(queries(3), revision="r2")):
        assert not set(base) & set(other)
    assert check_budget(queries(3), "long", recipe) == 3 * 3 * 12


def test_texts_are_split_and_failed_responses_stay_visible():
    plan = pl.DataFrame(
        {"response_id": ["a", "b", "c"], "query_id": ["q"] * 3, "category": ["math"] * 3, "pass_index": [0, 1, 2]}
    )
    generated = pl.DataFrame(
        [
            {"response_id": "a", "text": "<think>1+1</think><answer>2</answer>", "status": "ok"},
            {"response_id": "b", "text": "", "status": "server_error"},
            {"response_id": "c", "text": "<think>1+1, or \\boxed{2}", "status": "ok", "finish_reason": "stop"},
        ],
        schema=GENERATED,
    )
    rows = response_rows(generated, plan, "s", "t", "r", "f")
    assert rows.select("think", "answer", "status").rows() == [
        ("1+1", "2", "ok"),
        (None, None, "server_error"),
        ("1+1, or \\boxed{2}", None, "truncated"),  # the model ended a text whose think part is open
    ]


def came_with(query, answer, index=0, teacher=None, think="t", **more):
    text = f"<think>{think}</think><answer>{answer}</answer>"
    row = {"query_id": f"q{query:02d}", "source": "sums", "teacher": teacher, "pass_index": index, "text": text}
    return row | {"response_source": "openr1", "place": "f:1"} | more


def test_an_imported_teacher_has_what_came_with_the_source_and_loads_no_model(house):
    house.existing = [came_with(1, 2, index, "released", released_score=1.0) for index in range(5)]
    house.existing += [came_with(2, 4), came_with(3, 6, teacher="long"), came_with(99, 1)]
    table, facts = house.respond(teacher="released")
    assert dict(table.schema) == tables.RESPONSE
    assert table.select("query_id", "pass_index").rows() == [*(("q01", n) for n in range(4)), ("q02", 0)]
    assert set(table["engine"]) == {"imported"} and set(table["response_source"]) == {"openr1"}
    assert table["released_score"].to_list() == [1.0] * 4 + [None]
    assert (table["think"][0], table["answer"][0], table["status"][0]) == ("t", "2", "ok")
    assert table["completion_tokens"].null_count() == 5
    assert (facts["responses_imported"], facts["responses_new"], facts["engine"]) == (5, 0, "imported")
    assert table.equals(house.respond(teacher="released")[0])


def test_existing_responses_are_ignored_unless_the_recipe_reads_them(house):
    house.existing = [came_with(1, 2)]
    assert house.respond()[1]["responses_imported"] == 0


def test_only_the_missing_passes_are_generated(tmp_path, tiny_model):
    plain, _ = House(tmp_path / "plain", make_recipe(tiny_model)).respond()
    house = House(tmp_path / "filled", make_recipe(tiny_model, teacher_options={"existing_responses": "fill"}))
    house.existing = [came_with(1, 2, 0), came_with(1, 2, 2), came_with(3, 0, 1)]
    table, facts = house.respond()
    assert (table.height, facts["responses_imported"], facts["responses_new"]) == (24, 3, 21)
    assert table.select("query_id", "pass_index").n_unique() == 24
    generated = table.filter(pl.col("engine") != "imported")
    assert generated["response_source"].unique().to_list() == ["long"]
    assert generated.join(plain, on="response_id").height == 21, "the same keys as without imported passes"


def test_a_query_with_an_accepted_response_is_not_asked(tmp_path, tiny_model):
    options = {"existing_responses": "accept", "response_source": "am-0309"}
    house = House(tmp_path, make_recipe(tiny_model, passes=1, teacher_options=options))
    house.existing = [came_with(1, 2), came_with(2, 5), came_with(3, 7, 0), came_with(3, 6, 1)]
    table, facts = house.respond()
    by_query = {key: rows["response_source"].to_list() for (key,), rows in table.group_by("query_id")}
    assert by_query["q01"] == ["openr1"]
    assert by_query["q02"] == ["openr1", "am-0309"]
    assert by_query["q03"] == ["openr1", "openr1"]
    assert by_query["q04"] == ["am-0309"]
    assert table.filter(pl.col("query_id") == "q02")["pass_index"].to_list() == [0, 1]
    assert "| accepted | 2 |" in facts["queries_closed"]
    assert (facts["responses_saved"], facts["responses_new"]) == (2, 6)
    assert facts["tokens_saved_estimate"] == round(2 * facts["tokens_asked"] / 6)
    first = house.respond()[0]
    assert first.equals(table), "verdicts are stored: the same again"


def test_an_imported_text_says_how_it_ended():
    rows = [came_with(0, 1) | {"text": text, "category": "math"} for text in ("", "<think>on and", "plain")]
    frame = pl.DataFrame(rows, schema=tables.EXISTING_RESPONSE | {"category": pl.String()})
    found = imported_rows(frame, "t", "r")
    assert found["status"].to_list() == ["empty", "truncated", "ok"]
    assert found["response_id"].n_unique() == 3


def test_an_imported_model_cannot_be_a_student(tiny_model):
    with pytest.raises(ValueError, match="cannot be trained"):
        make_recipe(tiny_model, students={"student": {"model": "released"}})
