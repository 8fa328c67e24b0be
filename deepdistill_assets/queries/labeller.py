"""Labels that a language model gives to queries: category, difficulty, and the IFEval constraints that a query states.

Prompts are files in `prompts/`. A reply that is not one JSON object of the wanted shape gives no label but a reason.
Replies are kept in chunks by content: a query is asked once per model, prompt and sampling, whatever else changes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from deepdistill_assets.queries.rows import json_text
from deepdistill_assets.recipe import Difficulty, Labelling
from deepdistill_resources.chunk_store import ChunkStore
from deepdistill_resources.engines.base import GenerationRequest, GenerationResponse, GenerationSession
from deepdistill_resources.generation import (
    GenerationReport,
    content_key,
    generate_missing,
    read_generated,
    require_few_failures,
)
from deepdistill_resources.judges.prompt import Prompt
from deepdistill_resources.judges.reply import MalformedReply, parse_reply
from deepdistill_resources.verifiers.ifeval.checks import IFEVAL
from deepdistill_resources.verifiers.ifeval.text import MissingArgument
from deepdistill_resources.verifiers.instructions import follows

Tag = Literal[
    "Information seeking",
    "Reasoning",
    "Planning",
    "Editing",
    "Coding & Debugging",
    "Math",
    "Role playing",
    "Data analysis",
    "Creative writing",
    "Advice seeking",
    "Brainstorming",
    "Instruction following",
    "Others",
]
TAGS: tuple[str, ...] = get_args(Tag)
GIVEN = "given_labels"  # key of a query's metadata: labels that its source gave
BLOCK = 10_000  # queries labelled at a time
NO_MODEL, NOT_ASKED, STATES_NONE = "no label model in the recipe", "not asked", "the query states none"
NOT_GIVEN = "not given by the source"
LABELS: dict[str, pl.DataType] = {
    "label_category": pl.String(),
    "label_tags": pl.List(pl.String()),
    "category_null_reason": pl.String(),
    "label_difficulty": pl.String(),
    "difficulty_null_reason": pl.String(),
    "label_constraints": pl.String(),
    "constraints_null_reason": pl.String(),
}
Reply = TypeVar("Reply", bound=BaseModel)
Columns = dict[str, Any]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CategoryReply(_Shape):
    """What the query mainly asks for, and what else fits."""

    primary_tag: Tag
    other_tags: list[Tag] = Field(default=[], max_length=12)


class DifficultyReply(_Shape):
    """How difficult a query is, after what it takes."""

    knowledge: str = Field(max_length=2000)
    difficulty: Difficulty


class StatedConstraint(_Shape):
    """One rule that a query states."""

    instruction_id: str
    kwargs: dict[str, Any] = {}


class ConstraintsReply(_Shape):
    """All checkable rules that a query states."""

    constraints: list[StatedConstraint] = Field(max_length=20)


@dataclass(frozen=True)
class Task:
    """One kind of label: the prompt that asks, the shape of the reply, and the columns that it fills."""

    name: Literal["category", "difficulty", "constraints"]
    shape: type[BaseModel]
    columns: Callable[[Any], Columns]

    @property
    def prompt(self) -> Prompt:
        """The prompt file."""
        return _prompt(self.name)


@cache
def _prompt(name: str) -> Prompt:
    return Prompt.load(Path(__file__).parent / "prompts" / f"label_{name}.md")


def _category(reply: CategoryReply) -> Columns:
    return {"label_category": reply.primary_tag, "label_tags": list(dict.fromkeys(reply.other_tags))}


def _difficulty(reply: DifficultyReply) -> Columns:
    return {"label_difficulty": reply.difficulty}


def _constraints(reply: ConstraintsReply) -> Columns:
    """Return the constraints as a query carries them; one that cannot be checked makes the whole reply useless."""
    for stated in reply.constraints:
        if stated.instruction_id not in IFEVAL:
            raise MalformedReply(f"no instruction is called {stated.instruction_id!r:.80}")
        try:
            follows(stated.instruction_id, stated.kwargs, "probe")
        except MissingArgument as error:
            raise MalformedReply(f"{stated.instruction_id}: {error}"[:200]) from error
    if not reply.constraints:
        return {"constraints_null_reason": STATES_NONE}
    return {"label_constraints": json_text([stated.model_dump() for stated in reply.constraints])}


TASKS = (
    Task("category", CategoryReply, _category),
    Task("difficulty", DifficultyReply, _difficulty),
    Task("constraints", ConstraintsReply, _constraints),
)


@dataclass(frozen=True)
class Labeller:
    """A model that labels queries.

    Args:
        model: name and revision; part of every label's key.
        settings: which labels, sampling, how much of a query is shown.
        session: the opened model.
        store: where replies are kept (schema `GENERATED`).
        log: gets progress lines.
    """

    model: str
    settings: Labelling
    session: GenerationSession
    store: ChunkStore
    log: Callable[[str], None]

    def labels(self, queries: pl.DataFrame) -> pl.DataFrame:
        """Return one row (columns of `LABELS`) per query, in order.

        Raises:
            EngineError: more than 5 % of all requests failed to the end; what is done stays committed.
        """
        blocks, reports = [pl.DataFrame(schema=LABELS)], list[GenerationReport]()
        most = queries.height * len(wanted_tasks(self.settings, "instruction_following", has_constraints=False))
        for start in range(0, queries.height, BLOCK):
            rows, report = self._block(queries[start : start + BLOCK])
            blocks.append(rows)
            reports.append(report)
            require_few_failures(reports, of=most)
        require_few_failures(reports)
        return pl.concat(blocks)

    def _block(self, queries: pl.DataFrame) -> tuple[pl.DataFrame, GenerationReport]:
        rows = [_empty_row(NOT_ASKED) for _ in range(queries.height)]
        asked = [(index, task, request) for index, task, request in self._requests(queries)]
        requests = list({request.key: request for _, _, request in asked}.values())
        report = generate_missing(self.session, self.store, requests, self.settings.sampling, self.log, tolerant=True)
        replies = {
            row["response_id"]: row for row in read_generated(self.store, requests, report).iter_rows(named=True)
        }
        for index, task, request in asked:
            rows[index] |= _label(task, replies[request.key])
        return pl.DataFrame(rows, schema=LABELS), report

    def _requests(self, queries: pl.DataFrame) -> Iterator[tuple[int, Task, GenerationRequest]]:
        columns = queries.select("query_text", "category", "constraints")
        for index, (text, category, constraints) in enumerate(columns.iter_rows()):
            shown = (text or "")[: self.settings.max_query_characters]
            for task in wanted_tasks(self.settings, category, constraints is not None):
                key = content_key(
                    model=self.model,
                    prompt=task.prompt.hash,
                    sampling=self.settings.sampling.model_dump(mode="json"),
                    query=shown,
                )
                yield index, task, task.prompt.request(key, {"query": shown}, task.shape.model_json_schema())


def wanted_tasks(settings: Labelling, category: str, has_constraints: bool) -> list[Task]:
    """Return what is asked of a query; constraints only of instruction following that carries none as data."""
    wanted = {
        "category": settings.category,
        "difficulty": settings.difficulty,
        "constraints": settings.constraints and category == "instruction_following" and not has_constraints,
    }
    return [task for task in TASKS if wanted[task.name]]


def unlabelled(count: int, reason: str = NO_MODEL) -> pl.DataFrame:
    """Return rows (columns of `LABELS`) without labels, with the reason."""
    return pl.DataFrame([_empty_row(reason)] * count, schema=LABELS)


def with_given_labels(labels: pl.DataFrame, queries: pl.DataFrame) -> pl.DataFrame:
    """Return labels in which a label that the source gave stands as it is; `label_model` then names the source.

    Args:
        labels: columns of `QUERY_LABEL`, in the order of the queries.
        queries: columns of `QUERY`.
    """
    given = queries.select(
        pl.col("metadata").str.json_path_match(f"$.{GIVEN}.{name}").alias(f"given_{name}")
        for name in ("category", "difficulty")
    )
    labels = pl.concat([labels, given, queries.select("source")], how="horizontal")
    named = pl.any_horizontal(pl.col("given_category", "given_difficulty").is_not_null())
    return labels.with_columns(
        *(_given(name, named) for name in ("category", "difficulty")),
        *(_missing(name, named) for name in ("category", "difficulty")),
        label_model=pl.when(named).then(pl.format("source {}", "source")).otherwise("label_model"),
        label_tags=pl.when(~named).then("label_tags"),
        label_prompts=pl.when(~named).then("label_prompts"),
    ).drop("given_category", "given_difficulty", "source")


def _given(name: str, named: pl.Expr) -> pl.Expr:
    return pl.when(named).then(f"given_{name}").otherwise(f"label_{name}").alias(f"label_{name}")


def _missing(name: str, named: pl.Expr) -> pl.Expr:
    reason = pl.when(pl.col(f"given_{name}").is_null()).then(pl.lit(NOT_GIVEN))
    return pl.when(named).then(reason).otherwise(f"{name}_null_reason").alias(f"{name}_null_reason")


def prompt_hashes(settings: Labelling) -> str:
    """Return the prompts that are asked, `name#hash` each."""
    chosen = {"category": settings.category, "difficulty": settings.difficulty, "constraints": settings.constraints}
    return " ".join(f"{task.prompt.name}#{task.prompt.hash}" for task in TASKS if chosen[task.name])


def _empty_row(reason: str) -> Columns:
    reasons = {f"{task.name}_null_reason": reason for task in TASKS}
    return dict.fromkeys(LABELS) | reasons


def _label(task: Task, reply: Columns) -> Columns:
    """Return the columns that a reply fills: the label, or why there is none."""
    response = GenerationResponse(
        key=reply["response_id"],
        text=reply["text"] or "",
        status=reply["status"],
        finish_reason=reply["finish_reason"] or "",
        prompt_tokens=0,
        completion_tokens=0,
        cumulative_logprob=None,
        seconds=0.0,
    )
    try:
        return {f"{task.name}_null_reason": None} | task.columns(parse_reply(response, task.shape))
    except MalformedReply as error:
        return {f"{task.name}_null_reason": f"reply: {error}"}


def with_label_constraints(queries: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """Return queries (columns of `QUERY`) that take the constraints of their label where they carry none as data."""
    found = labels.filter(pl.col("label_constraints").is_not_null()).select("query_id", "label_constraints")
    joined = queries.join(found.unique("query_id"), on="query_id", how="left", maintain_order="left")
    return joined.with_columns(pl.coalesce("constraints", "label_constraints").alias("constraints")).drop(
        "label_constraints"
    )
