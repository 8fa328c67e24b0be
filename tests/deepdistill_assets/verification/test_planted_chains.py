"""The rows of recipe am-quickstart under what its small model cannot be: a judge beside the rule, a reward model."""

import json
import runpy
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from deepdistill_assets import tables
from deepdistill_assets.partitions import Partitions
from deepdistill_assets.queries.existing_responses import existing_response_table
from deepdistill_assets.queries.query_table import query_table
from deepdistill_assets.queries.readers import read_rows
from deepdistill_assets.recipe import Recipe, load_recipe
from deepdistill_assets.responses.imported import existing_of, imported_rows
from deepdistill_assets.verification.assets import build_assets
from deepdistill_resources.compute import LocalCompute
from deepdistill_resources.engines.resource import EngineResource
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ModelStore
from deepdistill_resources.verifiers.suite import VerifierSuite

RESOURCES = Path(__file__).parents[2] / "deepdistill_resources"
judge_that = runpy.run_path(str(RESOURCES / "judges" / "scripted.py"))["judge_that"]
FEW = "few-shot"


def recipe_with(**verification) -> Recipe:
    values = load_recipe("am-quickstart").model_dump(mode="json")
    values["models"]["reward"] = {"kind": "directory", "path": verification.pop("at", "none"), "license": "MIT"}
    values["verification"] |= verification
    return Recipe.model_validate(values)


def rows_of(recipe: Recipe, key: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the queries and the imported responses of a source."""
    source = recipe.sources[key]
    queries = query_table(read_rows(source.reader, source.options, None, 0), key, source).kept
    existing = existing_response_table(read_rows(source.reader, source.options, None, 0), key, [FEW])
    found = pl.concat(existing_of(existing.collected().kept.lazy(), queries, FEW))
    return queries, imported_rows(found, FEW, "r")


def verified(recipe: Recipe, key: str, tmp_path, also=()) -> dg.ExecuteInProcessResult:
    queries, responses = rows_of(recipe, key)

    class Given(dg.InMemoryIOManager):
        def load_input(self, context):
            given = {"responses": responses, "distillation_queries": queries}
            found = given.get(context.asset_key.path[-1])
            return super().load_input(context) if found is None else found

    partitions = Partitions.of(recipe)
    upstream = [
        dg.AssetSpec("responses", partitions_def=partitions.source_teacher),
        dg.AssetSpec("distillation_queries", partitions_def=partitions.source),
    ]
    return dg.materialize(
        [*upstream, *build_assets(recipe, partitions)],
        selection=["verified_responses", *also],
        partition_key=dg.MultiPartitionKey({"source": key, "teacher": FEW}),
        resources={
            "io_manager": Given(),
            "lake": Lake(root=str(tmp_path / "lake")),
            "compute": LocalCompute(),
            "verifier_suite": VerifierSuite(
                workers=1,
                engine=EngineResource(device="cpu"),
                model_store=ModelStore(directory=str(tmp_path / "models")),
            ),
        },
    )


def planted(recipe: Recipe, key: str, rows: pl.DataFrame) -> pl.DataFrame:
    queries, _ = rows_of(recipe, key)
    names = queries.select("query_id", planted=pl.col("metadata").str.json_path_match("$.planted"))
    return rows.join(names, on="query_id", how="left", maintain_order="left")


def test_with_a_judge_beside_both_must_agree_and_each_disagreement_is_a_row(tmp_path, monkeypatch):
    recipe = recipe_with(judge="beside", judge_model="smollm2-135m-instruct")
    judge, session = judge_that(lambda user: json.dumps({"correct": "480" not in user}), control=False)
    monkeypatch.setattr(VerifierSuite, "_judge", lambda self, settings: judge)
    result = verified(recipe, "math-chains", tmp_path, also=["judge_disagreements"])
    rows = planted(recipe, "math-chains", result.output_for_node("verified_responses"))
    doubted = rows.filter(rule_verdict="passed", second_opinion="failed")
    assert set(doubted["verdict"]) == {"failed"} and doubted.height == 1, "right by the rule, wrong by the judge"
    wrong = rows.filter(pl.col("planted").str.starts_with("wrong chain"), ~pl.col("passed"))
    assert wrong.height == 4 and set(wrong["second_opinion"]) == {"passed"}, "the judge says right, the rule says wrong"
    assert rows.filter(planted="right chain")["passed"].sum() == 2
    disagreements = result.output_for_node("judge_disagreements")
    assert disagreements.height == 5 and session.requests
    assert set(disagreements["verdict"]) == {"failed"}


@pytest.mark.parametrize(("quantile", "passing"), [(0.0, 2), (0.5, 1), (1.0, 0)])
def test_chat_is_cut_off_at_a_quantile_of_a_reward_models_scores(tmp_path, quantile, passing):
    reward = runpy.run_path(str(RESOURCES / "test_reward_models.py"))
    path = reward["save"](tmp_path / "five", names=reward["NAMES"])
    recipe = recipe_with(at=str(path), reward_model="reward", quantiles={"other": quantile})
    rows = verified(recipe, "chat-chains", tmp_path).output_for_node("verified_responses")
    assert rows["verify_score"].is_between(0, 1).all() and rows["verify_score"].n_unique() == 3
    assert rows["passed"].sum() == passing, "strictly above the quantile"
    assert rows.sort("verify_score")["passed"].to_list() == [False] * (3 - passing) + [True] * passing


def test_without_a_reward_model_chat_is_unverifiable(tmp_path):
    rows = verified(recipe_with(), "chat-chains", tmp_path).output_for_node("verified_responses")
    assert set(rows["verdict"]) == {"unverifiable"} and not rows["passed"].any()
    assert rows.schema == pl.Schema(tables.VERIFICATION)
