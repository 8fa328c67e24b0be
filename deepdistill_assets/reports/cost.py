"""What responses cost: tokens, engine seconds and money, per teacher and source, and per accepted sample."""

from collections.abc import Mapping

import polars as pl

from deepdistill_assets.recipe import Teacher
from deepdistill_assets.tables import COST, conform

SPENT = ("prompt_tokens", "completion_tokens", "engine_seconds", "money")


def cost_of(responses: pl.LazyFrame, selection: pl.LazyFrame, teachers: Mapping[str, Teacher]) -> pl.DataFrame:
    """Return the cost report (columns of `COST`).

    Args:
        responses: all responses; only counts are read, never texts.
        selection: decisions of stage I; kept rows are the accepted samples.
        teachers: the recipe's, for their prices per million tokens.
    """
    groups = ["teacher", "source", "category"]
    spent = (
        responses.group_by(groups)
        .agg(
            pl.len().cast(pl.Int64).alias("responses"),
            pl.col("prompt_tokens").sum(),
            pl.col("completion_tokens").sum(),
            pl.col("seconds").sum().alias("engine_seconds"),
        )
        .collect(engine="streaming")
    )
    accepted = pl.len().cast(pl.Int64).alias("accepted_samples")
    kept = selection.filter("keep").group_by(groups).agg(accepted).collect(engine="streaming")
    money = _price(teachers, "prompt") + _price(teachers, "completion")
    joined = spent.join(kept, on=groups, how="left").with_columns(
        pl.col("accepted_samples").fill_null(0), money.alias("money")
    )
    return conform(joined.with_columns(_per_accepted()), COST).sort(groups)


def cost_totals(cost: pl.DataFrame) -> pl.DataFrame:
    """Return the report summed over sources, one row per teacher."""
    totals = cost.group_by("teacher").agg(pl.col("responses", *SPENT, "accepted_samples").sum()).sort("teacher")
    return totals.with_columns(_per_accepted())


def _price(teachers: Mapping[str, Teacher], kind: str) -> pl.Expr:
    prices = {name: float(getattr(teacher, f"{kind}_price")) for name, teacher in teachers.items()}
    per_million = pl.col("teacher").replace_strict(prices, default=0.0, return_dtype=pl.Float64)
    return per_million * pl.col(f"{kind}_tokens") / 1_000_000


def _per_accepted() -> list[pl.Expr]:
    accepted = pl.col("accepted_samples")
    return [pl.when(accepted > 0).then(pl.col(name) / accepted).alias(f"{name}_per_accepted_sample") for name in SPENT]
