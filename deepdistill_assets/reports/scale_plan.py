"""What a run of the paper's size needs: hours, nodes for a deadline, storage, from costs per unit.

hours of a stage = units x seconds per unit / 3600; nodes = hours / (devices of a node x hours of the deadline x use).
A device is a core, or an engine: a GPU, or as many as the teacher is spread over.
"""

import math
from dataclasses import dataclass

import polars as pl

BYTES_PER_GB = 1e9


@dataclass(frozen=True)
class Size:
    """How much there is: distinct queries, raw ones per distinct one, teachers, passes, tokens of a response."""

    queries: float = 3.34e6
    raw_per_query: float = 3.0
    teachers: int = 3
    passes: int = 4
    tokens: float = 4000.0

    @property
    def responses(self) -> float:
        """All of them."""
        return self.queries * self.teachers * self.passes


@dataclass(frozen=True)
class UnitCosts:
    """Seconds of a core per unit, and what an engine does a second; where from stands in docs/cluster.md.

    Args:
        core_raw_query: cleaning, signatures, duplicates and survivors, through the lake.
        core_verified_response: math-verify.
        core_stored_response: committed, read and written as a table.
        tokens_per_second: of an engine.
        perplexity_share: of the generation's time.
        bytes_per_token: of the chunk store and the lake together.
    """

    core_raw_query: float = 32e-6
    core_verified_response: float = 1 / 80
    core_stored_response: float = 60e-6
    tokens_per_second: float = 2500.0
    perplexity_share: float = 0.03
    bytes_per_token: float = 3.4


@dataclass(frozen=True)
class Cluster:
    """Cores and engines of a node, the deadline, and the share of it that is work."""

    cores: int = 64
    engines: int = 8
    days: float = 14.0
    use: float = 0.8


def scale_plan(size: Size, costs: UnitCosts, cluster: Cluster) -> pl.DataFrame:
    """Return a row per stage: stage, device, units, hours of that device, nodes that make the deadline.

    >>> plan = scale_plan(Size(), UnitCosts(), Cluster())
    >>> plan.filter(pl.col("stage") == "generation")["hours"].item()
    17813.3
    """
    raw, responses = size.queries * size.raw_per_query, size.responses
    generated = responses * size.tokens / costs.tokens_per_second
    stages = [
        ("curation", "core", raw, raw * costs.core_raw_query),
        ("generation", "engine", responses, generated),
        ("response store", "core", responses, responses * costs.core_stored_response),
        ("verification", "core", responses, responses * costs.core_verified_response),
        ("perplexity", "engine", responses, generated * costs.perplexity_share),
    ]
    rows = []
    for stage, device, units, seconds in stages:
        devices = cluster.cores if device == "core" else cluster.engines
        nodes = math.ceil(seconds / 3600 / (devices * cluster.days * 24 * cluster.use))
        rows.append((stage, device, round(units), round(seconds / 3600, 1), nodes))
    return pl.DataFrame(rows, schema=["stage", "device", "units", "hours", "nodes"], orient="row")


def storage_gigabytes(size: Size, costs: UnitCosts) -> float:
    """Return what the responses take in the chunk store and the lake, each compressed."""
    return size.responses * size.tokens * costs.bytes_per_token / BYTES_PER_GB


def measured(cost: pl.DataFrame) -> tuple[Size, UnitCosts]:
    """Return the paper's size, with tokens per response and speed of the engines of a cost report (`COST` rows)."""
    made = cost.filter(pl.col("engine_seconds") > 0)
    responses, tokens, seconds = (
        float(made[name].sum()) for name in ("responses", "completion_tokens", "engine_seconds")
    )
    if not tokens:
        return Size(), UnitCosts()
    return Size(tokens=tokens / responses), UnitCosts(tokens_per_second=tokens / seconds)
