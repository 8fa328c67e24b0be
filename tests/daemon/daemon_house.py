"""A house for tests with the real daemon, partitioned as the real one: source x teacher, benchmark x checkpoint.

Real assets, lake, chunk store, pools, automation and retries; only the science is small. Files in its home steer it:
`fail-SOURCE` makes the responses of one source fail, `slow` lets every response take a while. Where HOUSE_MODEL_SERVER
is set, responses are asked of that server, as of a served teacher.
"""

import os
import time
from pathlib import Path

import dagster as dg
import polars as pl

from deepdistill_assets.stage import Stage, materialized, partition_of
from deepdistill_resources.chunk_store import ChunkStore
from deepdistill_resources.engines.base import GenerationRequest, SamplingParameters
from deepdistill_resources.engines.prompting import PromptStyle
from deepdistill_resources.engines.resource import EngineResource
from deepdistill_resources.errors import EngineError, SourceError
from deepdistill_resources.io_managers import ParquetIOManager
from deepdistill_resources.lake import Lake
from deepdistill_resources.models import ModelStore, ServedOrigin
from jobs import run_log
from jobs.automation import fill_sensors, with_nightly_fill
from jobs.sensors import failure_sensor

ROW = {"key": pl.String(), "text": pl.String(), "writer": pl.Int64()}
KEYS = [f"query-{number}" for number in range(8)]
CHUNK = 2


def asked(engine, keys):
    """What the model server says to each key; the key itself where there is no server."""
    if not (url := os.environ.get("HOUSE_MODEL_SERVER")):
        return keys
    origin = ServedOrigin(kind="served", name="tiny", base_url=url, license="none", api_key_env=None)
    session = engine.open(ModelStore(directory="none").resolve("tiny", origin), PromptStyle())
    try:
        requests = [GenerationRequest(key, ({"role": "user", "content": key},), "other", seed=0) for key in keys]
        responses = {response.key: response for response in session.generate(requests, SamplingParameters())}
    finally:
        session.close()
    if lost := [response.error for response in responses.values() if response.status != "ok"]:
        raise EngineError(f"{len(lost)} of {len(keys)} not answered: {lost[0]}")
    return [responses[key].text for key in keys]


def house(home, root=None):
    source = dg.StaticPartitionsDefinition((os.environ.get("HOUSE_SOURCES") or "a,b").split(","))
    teacher = dg.StaticPartitionsDefinition(["s", "t"])
    checkpoint = dg.StaticPartitionsDefinition(["base", "stage1"])
    pairs = dg.MultiPartitionsDefinition({"source": source, "teacher": teacher})
    scored = dg.MultiPartitionsDefinition(
        {"benchmark": dg.StaticPartitionsDefinition(["exam"]), "checkpoint": checkpoint}
    )
    stage = Stage("queries", None)
    place = Path(home)

    @stage.asset(schema=ROW, version=1, partitions_def=source)
    def queries() -> dg.MaterializeResult:
        """What is asked."""
        return materialized(pl.DataFrame({"key": KEYS, "text": KEYS, "writer": [0] * len(KEYS)}, schema=ROW))

    @stage.asset(schema=ROW, version=1, partitions_def=pairs, pool="gpu", kinds=("python",))
    def responses(
        context: dg.AssetExecutionContext, queries: pl.DataFrame, lake: Lake, engine: EngineResource
    ) -> dg.MaterializeResult:
        """What is answered, in chunks that survive a kill."""
        name = partition_of(context, "source")
        if (place / f"fail-{name}").exists():
            raise SourceError("no answers tonight.", "come back tomorrow.")
        directory = f"_chunks/{context.partition_key.replace('|', '/')}"
        store = ChunkStore(lake, directory, "key", ROW)
        missing = store.missing(queries["key"])
        context.log.info(f"{len(missing)} of {queries.height} to do")
        for begin in range(0, len(missing), CHUNK):
            keys = missing[begin : begin + CHUNK]
            answers = {"key": keys, "text": asked(engine, keys), "writer": [os.getpid()] * len(keys)}
            store.commit(pl.DataFrame(answers, schema=ROW))
            if (place / "slow").exists():
                time.sleep(5)
        return materialized(store.read(queries["key"]), metadata={"chunks": len(store.chunks())}, volatile=["writer"])

    @stage.asset(schema=ROW, version=1)
    def dataset(responses: pl.DataFrame) -> dg.MaterializeResult:
        """All answers together."""
        return materialized(responses, volatile=["writer"])

    @stage.asset(schema=ROW, version=1, partitions_def=checkpoint)
    def checkpoints(dataset: pl.DataFrame) -> dg.MaterializeResult:
        """What was trained."""
        return materialized(dataset, volatile=["writer"])

    @stage.asset(schema=ROW, version=1, partitions_def=scored, pool="gpu")
    def benchmark_responses(checkpoints: pl.DataFrame) -> dg.MaterializeResult:
        """What the checkpoints answer."""
        return materialized(checkpoints, volatile=["writer"])

    @stage.asset(schema=ROW, version=1)
    def scoreboard(benchmark_responses: pl.DataFrame) -> dg.MaterializeResult:
        """How well they answer."""
        return materialized(benchmark_responses, volatile=["writer"])

    assets = with_nightly_fill(stage.declared)
    lake = Lake(root=root or str(place / "lake"), endpoint_url=os.environ.get("AWS_ENDPOINT_URL") or None)
    return dg.Definitions(
        assets=assets,
        sensors=[*fill_sensors(assets), failure_sensor(None)],
        resources={"lake": lake, "io_manager": ParquetIOManager(lake=lake), "engine": EngineResource()},
        executor=dg.in_process_executor,
        loggers={run_log.NAME: run_log.run_logger},
    )


if "HOUSE" in os.environ:
    defs = house(os.environ["HOUSE"], os.environ.get("HOUSE_LAKE") or None)
