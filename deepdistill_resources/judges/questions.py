"""What a judge can be asked: prompt, shape of the reply, and the control question that a good mark has to survive."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from deepdistill_resources.judges.prompt import Prompt

Fields = Mapping[str, str]
_PROMPTS = Path(__file__).parent / "prompts"


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SameAnswer(_Reply):
    """Whether two answers are the same."""

    correct: bool

    @property
    def mark(self) -> float:
        """0 or 1."""
        return float(self.correct)


class Similarity(_Reply):
    """How similar two answers are, from 0 to 5."""

    score: float = Field(ge=0, le=5)

    @property
    def mark(self) -> float:
        """The score on 0 to 1."""
        return self.score / 5


class Quality(_Reply):
    """How good an answer is, from 0 to 10."""

    score: float = Field(ge=0, le=10)

    @property
    def mark(self) -> float:
        """The score on 0 to 1."""
        return self.score / 10


class _Marked(Protocol):
    @property
    def mark(self) -> float: ...


@dataclass(frozen=True)
class Question:
    """One kind of question.

    Args:
        file: name of the prompt's file in `prompts/`.
        shape: the reply.
        control: makes the fields of the control question, in which a good mark would be wrong: a judge that gives it
            there too has not compared anything, or was talked into it.
    """

    file: str
    shape: type[BaseModel]
    control: Callable[[Fields], dict[str, str]]

    @cached_property
    def prompt(self) -> Prompt:
        """The prompt, read once."""
        return Prompt.load(_PROMPTS / self.file)

    @cached_property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the reply."""
        return {**self.shape.model_json_schema(), "additionalProperties": False}


def other_reference(fields: Fields) -> dict[str, str]:
    """Return the fields with a reference that is certainly another one: every number plus one, or no answer at all.

    >>> other_reference({"reference": "3/4 m", "candidate": "3/4 m"})["reference"]
    '4/5 m'
    """
    changed = re.sub(r"\d+", lambda match: str(int(match.group()) + 1), fields["reference"][:1000])
    return {**fields, "reference": changed if changed != fields["reference"] else "None of this: there is no answer."}


def other_query(fields: Fields) -> dict[str, str]:
    """Return the fields with a query that the candidate cannot be a good answer to."""
    return {**fields, "query": "Translate the word 'umbrella' into Swahili, Finnish and Welsh, one line each."}


SAME_ANSWER = Question("same_answer.md", SameAnswer, other_reference)
SIMILARITY = Question("similarity.md", Similarity, other_reference)
QUALITY = Question("quality.md", Quality, other_query)
QUESTIONS = (SAME_ANSWER, SIMILARITY, QUALITY)


def prompt_hashes() -> dict[str, str]:
    """Return the hash of each prompt, by its name: what marks depend on beside the model."""
    return {question.prompt.name: question.prompt.hash for question in QUESTIONS}
