"""Offline vLLM: continuous batching, prefix caching, one seed per response; results come back as they finish.

The n samples of a query are n requests: that is what vLLM makes of `n`, too, and so each has a seed of its own and
returns on its own. Their prompt is computed once (prefix caching).
"""

import gc
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from deepdistill_resources.engines.base import (
    Engine,
    GenerationRequest,
    GenerationResponse,
    GenerationSession,
    SamplingParameters,
    Status,
)
from deepdistill_resources.engines.prompting import PromptStyle
from deepdistill_resources.errors import EngineError, MissingPackageError, ModelError
from deepdistill_resources.models import ResolvedModel

FINISHED: dict[str, Status] = {"stop": "ok", "length": "truncated", "repetition": "truncated"}
# A small model may else fill a reply that a schema binds with line ends, until it is cut.
COMPACT_JSON = {"backend": "xgrammar", "disable_any_whitespace": True}


@dataclass(frozen=True)
class VllmSettings:
    """What vLLM is started with; `dtype` auto is float32 on a CPU, else the model's own."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    max_model_len: int | None = None
    dtype: str = "auto"
    enforce_eager: bool = False
    in_flight: int = 2048  # requests handed to the scheduler at once; bounds memory, keeps batches full


_KEPT: dict[tuple[str, str, VllmSettings], Any] = {}  # the engine of the last model; the next partition needs it too


def _loaded(vllm: Any, model: ResolvedModel, settings: VllmSettings) -> Any:
    key = (str(model.path), model.revision, settings)
    if key in _KEPT:
        return _KEPT[key]
    _KEPT.clear()  # two engines do not fit: the old one's memory is needed before the new one is loaded
    gc.collect()
    try:
        _KEPT[key] = vllm.LLM(
            model=str(model.path),
            tensor_parallel_size=settings.tensor_parallel_size,
            pipeline_parallel_size=settings.pipeline_parallel_size,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            max_model_len=settings.max_model_len,
            dtype=_dtype(settings.dtype),
            enforce_eager=settings.enforce_eager,
            enable_prefix_caching=True,
            enable_chunked_prefill=_chunked_prefill(),
            structured_outputs_config=COMPACT_JSON,
            trust_remote_code=False,
        )
    except Exception as error:
        raise EngineError(f"vLLM cannot load {model.name}: {type(error).__name__}: {error}") from error
    _wake_when_dead(_KEPT[key].llm_engine.engine_core)
    return _KEPT[key]


def _wake_when_dead(core: Any) -> None:
    """Hand an exception to whoever waits for output of an engine process that was killed; vLLM 0.32 waits for ever."""
    resources, outputs = getattr(core, "resources", None), getattr(core, "outputs_queue", None)
    if resources is None or outputs is None:  # the engine runs in this process
        return

    def watch() -> None:
        while not resources.engine_dead:
            time.sleep(1)
        outputs.put_nowait(RuntimeError("the engine's process ended"))

    threading.Thread(target=watch, name="vllm-watch", daemon=True).start()


def _dtype(wanted: str) -> str:
    from vllm.platforms import current_platform

    return "float32" if wanted == "auto" and current_platform.is_cpu() else wanted


def _chunked_prefill() -> bool | None:
    """Return False on a CPU: there vLLM 0.32 dies of a prompt that is split and has a seed; else its own default."""
    from vllm.platforms import current_platform

    return False if current_platform.is_cpu() else None


def _structured(request: GenerationRequest) -> Any:
    if request.json_schema is None:
        return None
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(json=request.json_schema)


@contextmanager
def _engine_errors() -> Iterator[None]:
    """Turn what ends the engine into an EngineError; a ValueError concerns one request and is left to the caller."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        _KEPT.clear()  # the next session starts a new engine
        raise EngineError(
            f"vLLM stopped: {type(error).__name__}: {error}",
            "the lines of the engine's own process in the log name the cause (often memory); run it again.",
        ) from error


class VllmSession(GenerationSession):
    """A loaded vLLM engine."""

    engine_name = "vllm"

    def __init__(self, model: ResolvedModel, style: PromptStyle, settings: VllmSettings) -> None:
        if model.path is None:
            raise ModelError(f"model {model.name} has no weights here.", "use the openai engine for a served model.")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        try:
            import vllm
        except ImportError as error:
            raise MissingPackageError("vllm is not installed.", "pip install 'deepdistill[gpu]'.") from error
        self._vllm, self._style, self._in_flight = vllm, style, settings.in_flight
        self.engine_version = str(vllm.__version__)
        self._llm = _loaded(vllm, model, settings)
        self._context = int(self._llm.model_config.max_model_len)
        self._tokenizer = self._llm.get_tokenizer()

    def generate(
        self, requests: Iterable[GenerationRequest], sampling: SamplingParameters
    ) -> Iterator[GenerationResponse]:
        """Yield responses as the scheduler finishes them; see `GenerationSession.generate`."""
        waiting = iter(requests)
        running: dict[str, tuple[GenerationRequest, float]] = {}
        try:
            while True:
                for request in islice(waiting, self._in_flight - len(running)):
                    failure = self._add(request, sampling)
                    if failure:
                        yield failure
                    else:
                        running[request.key] = (request, time.monotonic())
                if not running:
                    return
                stepped = time.monotonic()
                with _engine_errors():
                    outputs = self._llm.llm_engine.step()
                self.busy_seconds += time.monotonic() - stepped
                for output in outputs:
                    if output.finished and output.request_id in running:
                        request, started = running.pop(output.request_id)
                        yield self._response(request, output, started)
        finally:
            if running and _KEPT:  # the reader stopped early; the engine is kept and must not answer these later
                self._llm.llm_engine.abort_request(list(running))

    def _add(self, request: GenerationRequest, sampling: SamplingParameters) -> GenerationResponse | None:
        prompt = self._style.render([dict(item) for item in request.messages], request.category, self._tokenizer)
        tokens = self._tokenizer(prompt, add_special_tokens=self._style.mode == "few_shot")["input_ids"]
        if len(tokens) >= self._context:
            error = f"the prompt has {len(tokens)} tokens, the model takes {self._context}"
            return _without_text(request, "context_overflow", len(tokens), error)
        parameters = self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            stop=list(sampling.stop) or None,
            include_stop_str_in_output=True,
            seed=request.seed,
            logprobs=0,
            structured_outputs=_structured(request),
        )
        try:
            with _engine_errors():
                self._llm.llm_engine.add_request(request.key, {"prompt_token_ids": tokens}, parameters)
        except ValueError as error:
            return _without_text(request, "server_error", len(tokens), str(error))
        return None

    def _response(self, request: GenerationRequest, output: Any, started: float) -> GenerationResponse:
        best, tokens = output.outputs[0], len(output.prompt_token_ids or ())
        if best.finish_reason not in FINISHED:
            return _without_text(request, "server_error", tokens, f"vLLM ended it with {best.finish_reason!r}")
        logprob = best.cumulative_logprob
        return GenerationResponse(
            key=request.key,
            text=self._style.prefill + best.text if best.text else "",
            status=FINISHED[best.finish_reason] if best.text.strip() else "empty",
            finish_reason=str(best.finish_reason),
            prompt_tokens=tokens,
            completion_tokens=len(best.token_ids),
            cumulative_logprob=logprob if logprob is not None and math.isfinite(logprob) else None,
            seconds=time.monotonic() - started,
        )

    def perplexities(self, texts: list[str]) -> list[float | None]:
        """See `GenerationSession.perplexities`; a text longer than the context is measured on its first tokens."""
        parameters = self._vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0.0)
        encoded = [ids[: self._context - 1] for ids in self._tokenizer(texts)["input_ids"]] if texts else []
        scored = [index for index, ids in enumerate(encoded) if len(ids) > 1]
        found: list[float | None] = [None] * len(texts)
        prompts = [{"prompt_token_ids": encoded[index]} for index in scored]
        with _engine_errors():
            outputs = self._llm.generate(prompts, parameters, use_tqdm=False) if prompts else []
        for index, output in zip(scored, outputs, strict=True):
            found[index] = _perplexity(output.prompt_token_ids, output.prompt_logprobs)
        return found


def _perplexity(tokens: list[int], logprobs: list[Any]) -> float | None:
    known = [entry[token].logprob for token, entry in zip(tokens, logprobs, strict=False) if entry]
    return math.exp(-sum(known) / len(known)) if known else None


def _without_text(request: GenerationRequest, status: Status, tokens: int, error: str) -> GenerationResponse:
    return GenerationResponse(request.key, "", status, "error", tokens, 0, None, 0.0, error)


class VllmEngine(Engine):
    """Opens vLLM sessions; a loaded engine is kept for the next session of the same model."""

    def __init__(self, settings: VllmSettings | None = None) -> None:
        self._settings = settings or VllmSettings()

    def open(self, model: ResolvedModel, style: PromptStyle) -> VllmSession:
        """Load the model; raises MissingPackageError without vLLM, EngineError when it does not load."""
        return VllmSession(model, style, self._settings)
