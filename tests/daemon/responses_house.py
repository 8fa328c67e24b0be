"""The real `responses` asset for tests with the real daemon: one source, one served teacher, a process per step."""

import os
from pathlib import Path

import dagster as dg
import polars as pl

from deepdistill_assets import tables
from deepdistill_assets.models.assets import build_assets as build_models
from deepdistill_assets.partitions import Partitions
from deepdistill_assets.recipe import Recipe
from deepdistill_assets.responses.assets import build_assets
from deepdistill_resources.compute import LocalCompute
from deepdistill_resources.engines.resource import EngineResource
from deepdistill_resources.io_managers import ParquetIOManager
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ModelStore
from deepdistill_resources.verifiers.suite import VerifierSuite

QUERIES, PASSES, CHUNK = 160, 2, 4
PARTITION = "s|t"
TABLE = "responses/source=s/teacher=t/data.parquet"


def recipe(url):
    return Recipe.model_validate(
        {
            "name": "served",
            "title": "Served",
            "description": "For tests",
            "models": {"m": {"kind": "served", "license": "MIT", "name": "tiny", "base_url": url}},
            "sources": {"s": {"category": "math", "license": "MIT", "reader": "none"}},
            "teachers": {"t": {"model": "m", "passes": PASSES, "style": {"mode": "few_shot"}}},
            "responses": {"chunk_size": CHUNK},
            "students": {"x": {"model": "m"}},
            "selection": {"stage1": {"teacher": "t"}},
            "training": {"stage1": {"learning_rate": 1e-4, "epochs": 1}},
            "evaluation": {"benchmarks": {}},
        }
    )


def house(home, url):
    chosen = recipe(url)
    partitions, lake = Partitions.of(chosen), Lake(root=f"{home}/lake")

    @dg.asset(partitions_def=partitions.source, io_manager_key="io_manager")
    def distillation_queries() -> pl.DataFrame:
        names = pl.DataFrame({"query_id": [f"q{number:03d}" for number in range(QUERIES)]})
        texts = names.with_columns(query_text="fault:slow " + pl.col("query_id"), category=pl.lit("math"))
        turns = pl.concat_list(pl.struct(role=pl.lit("user"), content="query_text"))
        return tables.conform(texts.with_columns(messages=turns), tables.QUERY)

    @dg.asset(partitions_def=partitions.source, io_manager_key="io_manager")
    def existing_responses() -> pl.DataFrame:
        return tables.empty(tables.EXISTING_RESPONSE)

    return dg.Definitions(
        assets=[
            distillation_queries,
            existing_responses,
            *build_models(chosen, partitions),
            *build_assets(chosen, partitions),
        ],
        resources={
            "lake": lake,
            "io_manager": ParquetIOManager(lake=lake),
            "model_store": ModelStore(directory=f"{home}/models"),
            "engine": EngineResource(max_concurrency=4),
            "verifier_suite": VerifierSuite(workers=1),
            "compute": LocalCompute(),
        },
        executor=dg.multiprocess_executor.configured({"start_method": {"spawn": {}}}),
    )


if "TEACHER" in os.environ:
    defs = house(Path(os.environ["HOUSE"]), os.environ["TEACHER"])
