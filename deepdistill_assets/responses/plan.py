"""Which responses are wanted: one per query and pass, each with a content key and a seed of its own."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import polars as pl

from deepdistill_assets.recipe import Recipe, Teacher
from deepdistill_assets.tables import RESPONSE, conform
from deepdistill_resources.engines.base import GenerationRequest, SamplingParameters
from deepdistill_resources.engines.prompting import never_ends, split_response
from deepdistill_resources.errors import RecipeError
from deepdistill_resources.generation import content_key, seed_of

Requests = dict[SamplingParameters, list[GenerationRequest]]
PLAN = {"response_id": pl.String(), "query_id": pl.String(), "category": pl.String(), "pass_index": pl.Int64()}


def sampling_of(teacher: Teacher, category: str) -> SamplingParameters:
    """Return a teacher's sampling parameters for one category."""
    limit = teacher.max_new_tokens.get(category)  # type: ignore[call-overload]
    return teacher.sampling.model_copy(update={"max_new_tokens": limit}) if limit else teacher.sampling


def response_plan(
    queries: pl.DataFrame,
    teacher_name: str,
    revision: str,
    recipe: Recipe,
    passes: Iterable[int] | None = None,
    imported: Mapping[str, Collection[int]] | None = None,
) -> tuple[Requests, pl.DataFrame]:
    """Return the requests by their sampling parameters, and the table of PLAN columns, sorted by query and pass.

    Args:
        queries: columns query_id, category and messages.
        revision: the teacher model's content-based revision.
        passes: which passes are asked for; None: all of the teacher's.
        imported: the passes that came with a query. They are not asked for again (`fill`), or the generated passes are
            counted on after them (`accept`); a key is made from the pass as it was asked for, so it never changes.
    """
    teacher, imported = recipe.teachers[teacher_name], imported or {}
    identity: dict[str, Any] = {"teacher": teacher_name, "revision": revision, "style": teacher.style.fingerprint()}
    wanted = list(range(teacher.passes) if passes is None else passes)
    requests: Requests = {}
    rows = []
    for query in queries.sort("query_id").select("query_id", "category", "messages").iter_rows(named=True):
        sampling = sampling_of(teacher, query["category"])
        messages = tuple(dict(message) for message in query["messages"])
        settings = {**identity, "sampling": sampling.model_dump(mode="json")}
        there = imported.get(query["query_id"], ())
        for index in wanted:
            if teacher.existing_responses == "fill" and index in there:
                continue
            key = content_key(query_id=query["query_id"], pass_index=index, **settings)
            request = GenerationRequest(key, messages, query["category"], seed_of(key, recipe.seed))
            requests.setdefault(sampling, []).append(request)
            shown = index if teacher.existing_responses == "fill" else index + max(there, default=-1) + 1
            rows.append((key, query["query_id"], query["category"], shown))
    return requests, pl.DataFrame(rows, schema=PLAN, orient="row")


def check_budget(queries: pl.DataFrame, teacher_name: str, recipe: Recipe) -> int:
    """Return the most tokens that a partition can generate; raises RecipeError above the recipe's budget."""
    teacher = recipe.teachers[teacher_name]
    counts = queries["category"].value_counts().iter_rows()
    most = sum(sampling_of(teacher, category).max_new_tokens * teacher.passes * count for category, count in counts)
    budget = recipe.responses.token_budget
    if budget is not None and most > budget:
        raise RecipeError(
            f"this partition may generate {most:,} tokens, responses.token_budget is {budget:,}.",
            "lower limits, passes or max_new_tokens in the recipe, or raise the budget.",
        )
    return most


def response_rows(
    generated: pl.DataFrame,
    plan: pl.DataFrame,
    source: str,
    teacher: str,
    revision: str,
    style: str,
    response_source: str | None = None,
) -> pl.DataFrame:
    """Return RESPONSE rows, sorted by query and pass: generated texts with their think and answer parts.

    A response whose think part never ends is `truncated`, also where the model itself ended it.
    """
    texts = [text or "" for text in generated["text"]]
    parts = [split_response(text) for text in texts]
    cut = (pl.col("status") == "ok") & pl.Series([never_ends(text) for text in texts], dtype=pl.Boolean)
    frame = (
        generated.with_columns(
            pl.Series("think", [part.think for part in parts], dtype=pl.String),
            pl.Series("answer", [part.answer for part in parts], dtype=pl.String),
            pl.when(cut).then(pl.lit("truncated")).otherwise("status").alias("status"),
        )
        .join(plan, on="response_id", how="left", validate="1:1")
        .with_columns(
            source=pl.lit(source),
            teacher=pl.lit(teacher),
            model_revision=pl.lit(revision),
            sampling_fingerprint=pl.lit(style),
            response_source=pl.lit(response_source or teacher),
        )
    )
    return conform(frame, RESPONSE).sort("query_id", "pass_index")
