"""What every generation engine is given and gives back."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from deepdistill_resources.engines.prompting import PromptStyle
from deepdistill_resources.models import ResolvedModel

Status = Literal["ok", "truncated", "context_overflow", "empty", "refused", "server_error"]
FINAL_STATUSES: frozenset[str] = frozenset({"ok", "truncated", "context_overflow", "empty", "refused"})


class SamplingParameters(BaseModel):
    """How tokens are drawn. `temperature` 0 is greedy decoding."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = 0.6
    top_p: float = 0.95
    max_new_tokens: int = 32768
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class GenerationRequest:
    """One response wanted.

    Args:
        key: the response's content key; comes back with the response.
        messages: the query, a list of `{"role", "content"}`; the engine's prompt style renders it.
        category: selects the category's suffix and few-shot examples in the prompt style.
        seed: seed of this response alone; independent of batch and order.
        json_schema: a JSON schema that the response should follow; servers and vLLM hold it to that, an engine that
            cannot leaves it to the prompt, so the reader checks in any case.
    """

    key: str
    messages: tuple[dict[str, str], ...]
    category: str
    seed: int
    json_schema: str | None = None


@dataclass(frozen=True)
class GenerationResponse:
    """One response: `text` is what the model wrote after the prompt (a prefilled opening included)."""

    key: str
    text: str
    status: Status
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cumulative_logprob: float | None
    seconds: float
    error: str | None = None


class GenerationSession(ABC):
    """A model that is loaded and ready to answer.

    `busy_seconds` is how long it has been at work in `generate`, a time at half of what it can do counting half: what
    it did took that long at its own pace. 0 where it does not tell.
    """

    engine_name: str
    engine_version: str
    busy_seconds: float = 0.0

    @property
    def retries(self) -> Counter[str]:
        """How often `generate` made an attempt again by itself so far, by reason; it may be read by another thread."""
        return Counter()

    @abstractmethod
    def generate(
        self, requests: Iterable[GenerationRequest], sampling: SamplingParameters
    ) -> Iterator[GenerationResponse]:
        """Yield one response per request, in any order, as each finishes. Transient failures are `server_error`."""

    @abstractmethod
    def perplexities(self, texts: list[str]) -> list[float | None]:
        """Return the perplexity of each text under the model: exp(mean negative log-likelihood of tokens 2..n).

        None where a text has fewer than two tokens.
        """

    def close(self) -> None:  # noqa: B027 - most sessions hold nothing
        """Give back what the session holds."""


class Engine(ABC):
    """Opens sessions; bound to a name (`transformers`, `vllm`, `openai`, ...) in `engines/__init__.py`."""

    @abstractmethod
    def open(self, model: ResolvedModel, style: PromptStyle) -> GenerationSession:
        """Load the model (or reach the server) and return a session; raises EngineError or ModelError."""
