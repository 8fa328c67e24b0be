"""The arms of the selection study: equally many rows of one teacher, chosen in different ways.

cv: what Algorithm 1 kept. random: passing responses. pass-rate: passing responses of queries that the teacher sometimes
fails (0 < pass_rate < 1). everything: passing or not. All arms leave out what the quality checks dropped.
"""

import polars as pl

from deepdistill_assets.tables import DATASET, conform
from deepdistill_resources.engines.prompting import join_response
from deepdistill_resources.errors import TrainingError


def arm_responses(
    arm: str, decisions: pl.LazyFrame, verified: pl.LazyFrame, quality: pl.LazyFrame, grades: pl.LazyFrame, teacher: str
) -> pl.DataFrame:
    """Return response_id and query_id of all candidates of an arm, sorted by response_id.

    Args:
        decisions: DECISION rows of stage I.
        verified: VERIFICATION rows.
        quality: QUALITY_CHECK rows.
        grades: GRADE rows.
        teacher: the stage I teacher; the others' responses take no part.
    """
    own = pl.col("teacher") == teacher
    mine = verified.filter(own).join(quality.filter("keep"), on="response_id", how="semi")
    passing = mine.filter("passed")
    between = own & (pl.col("pass_rate") > 0) & (pl.col("pass_rate") < 1)
    chosen = {
        "cv": lambda: mine.join(decisions.filter("keep"), on="response_id", how="semi"),
        "random": lambda: passing,
        "pass-rate": lambda: passing.join(grades.filter(between), on="query_id", how="semi"),
        "everything": lambda: mine,
    }[arm]()
    return chosen.select("response_id", "query_id").collect(engine="streaming").sort("response_id")


def draw(candidates: pl.DataFrame, rows: int, seed: int, arm: str) -> pl.DataFrame:
    """Return `rows` of the candidates, drawn without replacement.

    Raises:
        TrainingError: the arm has fewer candidates, so the arms would not train on equally many rows.
    """
    if candidates.height < rows:
        raise TrainingError(
            f"arm {arm!r} of the selection study has {candidates.height} rows, {rows} are wanted.",
            f"set training.selection_study_rows to {candidates.height} at most.",
        )
    return candidates.sample(rows, seed=seed)


def arm_dataset(chosen: pl.DataFrame, responses: pl.DataFrame, queries: pl.DataFrame) -> pl.DataFrame:
    """Return DATASET rows (all in the train split) of the chosen responses.

    Args:
        chosen: response_id, query_id.
        responses: response_id, source, category, teacher, think, answer, completion_tokens.
        queries: query_id, messages.
    """
    rows = chosen.join(responses, on="response_id", how="inner").join(queries, on="query_id", how="inner")
    texts = [join_response(think, answer) for think, answer in rows.select("think", "answer").iter_rows()]
    rows = rows.with_columns(pl.Series("response", texts, dtype=pl.String), pl.lit("train").alias("split"))
    return conform(rows.rename({"response_id": "example_id"}).drop("think", "answer"), DATASET)
