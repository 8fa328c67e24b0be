"""transformers on this machine: the embedded default. Two or more single-threaded processes on a CPU, or one GPU."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from deepdistill_resources.engines.base import (
    Engine,
    GenerationRequest,
    GenerationResponse,
    GenerationSession,
    SamplingParameters,
)
from deepdistill_resources.engines.prompting import PromptStyle
from deepdistill_resources.engines.worker_pool import Job, WorkerPool, shared_pool
from deepdistill_resources.errors import EngineError, ModelError
from deepdistill_resources.models import ResolvedModel

WINDOW = 4096  # requests that are rendered, sorted and dealt out together
SHARED_FROM = 64  # requests from which starting processes pays


@dataclass(frozen=True)
class TransformersSettings:
    """Rows decoded at once per process; processes (0: one per core, at most 8); device; type of the weights."""

    batch_size: int = 64
    processes: int = 0
    device: str = "auto"  # auto | cpu | cuda
    dtype: str = "auto"  # auto: float32 on a CPU (bfloat16 is slower there), bfloat16 on a GPU


class TransformersSession(GenerationSession):
    """One model and style. The model is loaded where it is first needed: here, or in the decoding processes."""

    engine_name = "transformers"

    def __init__(self, model: ResolvedModel, style: PromptStyle, settings: TransformersSettings) -> None:
        if model.path is None:
            raise ModelError(f"model {model.name} has no weights here.", "use the openai engine for a served model.")
        self.engine_version = version("transformers")
        self._path, self._revision, self._style, self._settings = model.path, model.revision, style, settings
        self._device = _device(settings.device)
        self._tokenizer = _tokenizer(str(model.path), model.revision)

    def generate(
        self, requests: Iterable[GenerationRequest], sampling: SamplingParameters
    ) -> Iterator[GenerationResponse]:
        """Yield responses as they finish; see `GenerationSession.generate`."""
        remaining = iter(requests)
        while window := list(islice(remaining, WINDOW)):
            for category in sorted({request.category for request in window}):
                yield from self._generate([item for item in window if item.category == category], sampling)

    def perplexities(self, texts: list[str]) -> list[float | None]:
        """See `GenerationSession.perplexities`; one forward pass per group of texts of similar length."""
        pool = self._pool(len(texts))
        if pool is None:
            return self._decoder().perplexities(texts)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        shares = [order[start :: pool.size] for start in range(pool.size)]
        shares = [share for share in shares if share]
        jobs = [self._job("perplexities", texts=[texts[index] for index in share]) for share in shares]
        found: list[float | None] = [None] * len(texts)
        for job, message in pool.run(jobs):
            if "error" in message:
                raise EngineError(f"perplexities under {self._path} failed: {message['error']}")
            for index, value in zip(shares[job], message.get("perplexities", ()), strict=False):
                found[index] = value
        return found

    def _generate(
        self, requests: list[GenerationRequest], sampling: SamplingParameters
    ) -> Iterator[GenerationResponse]:
        encoded = [(request.key, self._encode(request), request.seed) for request in requests]
        pool = self._pool(len(requests))
        if pool is None:
            from deepdistill_resources.engines.decoding import DecodeRequest

            responses = self._timed(self._decoder().decode([DecodeRequest(*item) for item in encoded], sampling))
        else:
            responses = self._in_processes(pool, encoded, sampling)
        for response in responses:
            yield replace(response, text=self._style.prefill + response.text) if response.text else response

    def _timed(self, responses: Iterator[GenerationResponse]) -> Iterator[GenerationResponse]:
        """Count the seconds in which responses are waited for: then, and only then, this process decodes."""
        while True:
            started = time.monotonic()
            response = next(responses, None)
            self.busy_seconds += time.monotonic() - started
            if response is None:
                return
            yield response

    def _in_processes(
        self, pool: WorkerPool, encoded: list[Any], sampling: SamplingParameters
    ) -> Iterator[GenerationResponse]:
        shares = _dealt(encoded, pool.size)
        jobs = [self._job("generate", requests=share, sampling=sampling.model_dump()) for share in shares]
        unanswered = [{key for key, _, _ in share} for share in shares]
        for job, message in pool.run(jobs):
            if "response" in message:
                unanswered[job].discard(message["response"]["key"])
                yield GenerationResponse(**message["response"])
            elif "worked" in message:
                self.busy_seconds += message["worked"] / pool.size
            elif "error" in message:
                for key in sorted(unanswered[job]):
                    yield GenerationResponse(key, "", "server_error", "error", 0, 0, None, 0.0, message["error"])

    def _job(self, kind: str, **values: Any) -> Job:
        place = {"path": str(self._path), "revision": self._revision, "batch_size": self._settings.batch_size}
        return {"kind": kind, **place, **values}

    def _encode(self, request: GenerationRequest) -> tuple[int, ...]:
        prompt = self._style.render([dict(message) for message in request.messages], request.category, self._tokenizer)
        # A chat template writes the special tokens itself; a plain prompt gets those that the tokenizer adds.
        plain = self._style.mode == "few_shot"
        return tuple(self._tokenizer(prompt, add_special_tokens=plain)["input_ids"])

    def _pool(self, items: int) -> WorkerPool | None:
        size = self._settings.processes or min(8, _cores())
        if self._device != "cpu" or size < 2 or size * _weight_bytes(self._path) > _memory_bytes() / 4:
            return None
        pool = shared_pool(size)
        return pool if pool.started or items > SHARED_FROM else None

    def _decoder(self) -> Any:
        return _decoder(str(self._path), self._revision, self._settings, self._device)


class TransformersEngine(Engine):
    """Opens sessions on models that transformers can load."""

    def __init__(self, settings: TransformersSettings | None = None) -> None:
        self._settings = settings or TransformersSettings()

    def open(self, model: ResolvedModel, style: PromptStyle) -> TransformersSession:
        """Return a session; raises ModelError when the model has no tokenizer or weights here."""
        return TransformersSession(model, style, self._settings)


def _dealt(encoded: Sequence[Any], shares: int) -> list[list[Any]]:
    """Deal requests out by prompt, longest first, so that shares cost the same and equal prompts stay together."""
    by_prompt: dict[tuple[int, ...], list[Any]] = {}
    for item in encoded:
        by_prompt.setdefault(item[1], []).append(item)
    dealt: list[list[Any]] = [[] for _ in range(shares)]
    for prompt in sorted(by_prompt, key=lambda tokens: (-len(tokens), tokens)):
        min(dealt, key=len).extend(by_prompt[prompt])
    return [share for share in dealt if share]


def _weight_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@lru_cache(maxsize=4)
def _tokenizer(path: str, revision: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: no tokenizer can be loaded: {error}") from error


@lru_cache(maxsize=1)
def _decoder(path: str, revision: str, settings: TransformersSettings, device: str) -> Any:
    import torch

    from deepdistill_resources.engines.decoding import Decoder

    kind = settings.dtype if settings.dtype != "auto" else "bfloat16" if device == "cuda" else "float32"
    return Decoder(Path(path), settings.batch_size, device, getattr(torch, kind))
