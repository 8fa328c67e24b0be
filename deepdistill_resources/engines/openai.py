"""Any OpenAI-compatible server (vllm serve, SGLang, llama.cpp, a commercial API): many requests at once."""

import asyncio
import json
import math
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
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
from deepdistill_resources.engines.server import Connection, Faulty, Rejected, Server, ServerSettings
from deepdistill_resources.engines.streaming import completed, streamed
from deepdistill_resources.errors import EngineError, ModelError
from deepdistill_resources.models import ResolvedModel

FINISHED: dict[str, Status] = {"stop": "ok", "length": "truncated", "content_filter": "refused"}
REJECTED_AT_FIRST = 20  # requests refused, and none answered: then the recipe does not fit the server
# What these servers take beyond the OpenAI parameters. Without it they apply defaults of their own or of the model's
# generation_config.json (llama.cpp: top_k 40, min_p 0.05), and responses are not sampled as the recipe says.
PLAIN_SAMPLING: dict[str, dict[str, Any]] = {
    "vllm": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "include_stop_str_in_output": True},
    "sglang": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "no_stop_trim": True},
    "llamacpp": {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0},
}

HandOver = Callable[[GenerationResponse], Awaitable[None]]


class OpenAISession(GenerationSession):
    """A reached server; chat style goes to `/v1/chat/completions`, few-shot style to `/v1/completions`."""

    engine_name = "openai"

    def __init__(
        self, model: ResolvedModel, style: PromptStyle, settings: ServerSettings, samples_per_request: int = 1
    ) -> None:
        if not model.base_url or not model.served_name:
            raise ModelError(f"model {model.name} has no server.", "give it an origin of kind served.")
        key = os.environ.get(model.api_key_env or "")
        self._server = Server(model.base_url, model.served_name, settings, key)
        self._name, self._style = model.served_name, style
        self._samples, self._limit = samples_per_request, settings.max_concurrency
        self._answered_as: str | None = None
        self._answered = self._rejected = 0
        completed(self._server.reach())
        self.engine_version = self._server.software

    @property
    def retries(self) -> Counter[str]:
        """See `GenerationSession.retries`: what the server was busy, gone or faulty for."""
        return self._server.retries.copy()

    def generate(
        self, requests: Iterable[GenerationRequest], sampling: SamplingParameters
    ) -> Iterator[GenerationResponse]:
        """Yield responses as they finish; see `GenerationSession.generate`."""
        groups = _groups(requests, self._samples)

        async def produce(hand_over: HandOver) -> None:
            async with self._server.connection() as connection:
                try:
                    await _together([self._work(connection, groups, sampling, hand_over) for _ in range(self._limit)])
                finally:
                    self.busy_seconds += connection.concurrency.busy_seconds

        return streamed(produce)

    async def _work(
        self,
        connection: Connection,
        groups: Iterator[list[GenerationRequest]],
        sampling: SamplingParameters,
        hand_over: HandOver,
    ) -> None:
        for group in groups:  # shared by all workers: each takes the next one when it is free
            for response in await self._ask(connection, group, sampling):
                await hand_over(response)

    async def _ask(
        self, connection: Connection, group: list[GenerationRequest], sampling: SamplingParameters
    ) -> list[GenerationResponse]:
        started = time.monotonic()
        path, body = self._body(group, sampling)
        try:
            responses = await connection.post(path, body, lambda reply: self._read(reply, group, started))
        except Faulty as error:
            return [_without_text(item, "server_error", started, str(error)) for item in group]
        except Rejected as error:
            self._note_rejection(error)
            return [_without_text(item, _rejected_status(error), started, str(error)) for item in group]
        self._answered += 1
        return responses

    def _note_rejection(self, error: Rejected) -> None:
        self._rejected += 1
        if not self._answered and self._rejected >= REJECTED_AT_FIRST:
            raise EngineError(
                f"the server at {self._server.base} rejected the first {self._rejected} requests: {error}.",
                "make the teacher's sampling and style fit the server.",
            )

    def _body(self, group: list[GenerationRequest], sampling: SamplingParameters) -> tuple[str, dict[str, Any]]:
        request = group[0]
        body: dict[str, Any] = {
            "model": self._name,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": request.seed,
            **PLAIN_SAMPLING.get(self._server.software, {}),
        }
        if len(group) > 1:
            body["n"] = len(group)
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if request.json_schema:
            schema = {"name": "reply", "strict": True, "schema": json.loads(request.json_schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self._style.mode == "few_shot":
            prompt = self._style.render([dict(message) for message in request.messages], request.category, None)
            return "/completions", {**body, "prompt": prompt}
        messages = self._style.chat_messages([dict(message) for message in request.messages], request.category)
        if self._style.prefill:
            messages.append({"role": "assistant", "content": self._style.prefill})
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        return "/chat/completions", {**body, "messages": messages}

    def _read(self, reply: dict[str, Any], group: list[GenerationRequest], started: float) -> list[GenerationResponse]:
        """Return one response per request; raises Faulty for anything but as many whole choices as were asked for."""
        self._check_model(reply.get("model"))
        try:
            choices = sorted(reply["choices"], key=lambda choice: choice.get("index") or 0)
            texts = [_text(choice, self._style.prefill) for choice in choices]
            finishes = [str(choice["finish_reason"]) for choice in choices]
            usage = reply.get("usage") or {}
            prompt_tokens, completion_tokens = (
                int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion")
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Faulty(f"malformed reply: {type(error).__name__}") from error
        if len(choices) != len(group):
            raise Faulty(f"{len(choices)} choices instead of {len(group)}")
        if unknown := [reason for reason in finishes if reason not in FINISHED]:
            raise Faulty(f"the reply ended with {unknown[0]!r}: it may be cut")  # e.g. abort: the server went down
        tokens = _shared(completion_tokens, [len(text) for text in texts])
        return [
            GenerationResponse(
                key=request.key,
                text=text,
                status=_status(choice, text),
                finish_reason=str(choice["finish_reason"]),
                prompt_tokens=0 if place else prompt_tokens,  # read, and paid, once
                completion_tokens=tokens[place],
                cumulative_logprob=_cumulative_logprob(choice.get("logprobs")),
                seconds=time.monotonic() - started,
            )
            for place, (request, choice, text) in enumerate(zip(group, choices, texts, strict=True))
        ]

    def _check_model(self, model: str | None) -> None:
        """A reply may name a dated version of the model that was asked for, and always the same one."""
        self._answered_as = self._answered_as or model
        if model is not None and (not model.startswith(self._name) or model != self._answered_as):
            raise EngineError(f"the server answered as model {model!r}, not {self._name!r}; nothing is mixed.")

    def perplexities(self, texts: list[str]) -> list[float | None]:
        """Score texts through `/v1/completions` with echoed prompt log-probabilities; a long one by its beginning."""

        async def score() -> list[float | None]:
            found: list[float | None] = [None] * len(texts)
            waiting = iter([(place, text) for place, text in enumerate(texts) if text])

            async def work() -> None:
                for place, text in waiting:
                    found[place] = await self._perplexity(connection, text)

            async with self._server.connection() as connection:
                await _together([work() for _ in range(min(self._limit, len(texts)))])
            return found

        return completed(score())

    async def _perplexity(self, connection: Connection, text: str) -> float | None:
        body = {"model": self._name, "prompt": text, "max_tokens": 1, "echo": True, "logprobs": 0, "temperature": 0}
        try:
            return await connection.post("/completions", body, _perplexity)
        except Rejected as error:
            if _rejected_status(error) == "context_overflow" and len(text) > 1:
                return await self._perplexity(connection, text[: len(text) // 2])
            reason = str(error)
        except Faulty as error:
            reason = str(error)
        raise EngineError(
            f"the server at {self._server.base} does not score prompts: {reason}.",
            "use a server that echoes log-probabilities (vllm serve), or set quality.perplexity_model to null.",
        )


async def _together(coroutines: list[Any]) -> None:
    """Run all; the first exception ends the others and is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _groups(requests: Iterable[GenerationRequest], size: int) -> Iterator[list[GenerationRequest]]:
    """Yield neighbours that differ in key and seed only, at most `size` together."""
    group: list[GenerationRequest] = []
    for request in requests:
        if group and (len(group) >= size or _prompt(request) != _prompt(group[0])):
            yield group
            group = []
        group.append(request)
    if group:
        yield group


def _prompt(request: GenerationRequest) -> tuple[Any, ...]:
    return request.messages, request.category, request.json_schema


def _rejected_status(error: Rejected) -> Status:
    reason = error.reason.lower()
    if "context" in reason:
        return "context_overflow"
    return "refused" if "content_filter" in reason or "content management policy" in reason else "server_error"


def _text(choice: dict[str, Any], prefill: str) -> str:
    """Return what the model wrote, its opening included; some servers split the think part off."""
    message = choice.get("message") or {}
    text = str((choice["text"] if "text" in choice else message.get("content")) or "")
    thought = message.get("reasoning_content") or message.get("reasoning")
    if thought:
        text = f"<think>{thought}</think>{text}"
    elif text and not text.startswith(prefill):  # llama.cpp repeats the opening
        text = prefill + text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a character cannot be stored


def _status(choice: dict[str, Any], text: str) -> Status:
    if (choice.get("message") or {}).get("refusal"):
        return "refused"
    return FINISHED[choice["finish_reason"]] if text else "empty"


def _shared(tokens: int, lengths: list[int]) -> list[int]:
    """Share the tokens of one reply among its choices by length of text; the sum stays what is paid."""
    ends = [tokens * sum(lengths[: place + 1]) // max(1, sum(lengths)) for place in range(len(lengths))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _cumulative_logprob(logprobs: Any) -> float | None:
    try:
        values = [item["logprob"] for item in logprobs["content"]]
        return float(sum(values)) if values and all(math.isfinite(value) for value in values) else None
    except (KeyError, TypeError):
        return None


def _perplexity(reply: dict[str, Any]) -> float | None:
    try:
        logprobs = reply["choices"][0]["logprobs"]["token_logprobs"][1:-1]  # neither the first nor the generated token
    except (KeyError, IndexError, TypeError) as error:
        raise Faulty("the reply has no log-probabilities of the prompt") from error
    known = [value for value in logprobs if value is not None and math.isfinite(value)]
    return math.exp(-sum(known) / len(known)) if known else None


def _without_text(request: GenerationRequest, status: Status, started: float, error: str) -> GenerationResponse:
    seconds = time.monotonic() - started
    return GenerationResponse(request.key, "", status, "error", 0, 0, None, seconds, error)


class OpenAIEngine(Engine):
    """Opens sessions on OpenAI-compatible servers; the API key, if any, is read from the variable `api_key_env`.

    `samples_per_request` above 1 asks for several passes of a query in one request (`n`). The prompt is then paid once,
    but only the first seed of the request is sent.
    """

    def __init__(self, settings: ServerSettings | None = None, samples_per_request: int = 1) -> None:
        self._settings, self._samples = settings or ServerSettings(), samples_per_request

    def open(self, model: ResolvedModel, style: PromptStyle) -> OpenAISession:
        """Reach the model's server; raises EngineError when it does not answer or serves another model."""
        return OpenAISession(model, style, self._settings, self._samples)
