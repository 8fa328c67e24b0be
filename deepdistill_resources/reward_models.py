"""Reward models with five heads: loaded by transformers from a directory, or behind an HTTP endpoint.

Head order and composite are those of RLHFlow/Decision-Tree-Reward-Llama-3.1-8B as arXiv 2504.17565 section 2.4 uses it:
raw outputs are unbounded regressions, clamped to 0-4; reward = (helpfulness + correctness + coherence) / 12.
"""

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx

from deepdistill_resources.engines.server import MISCONFIGURED
from deepdistill_resources.errors import EngineError, ModelError
from deepdistill_resources.models import ResolvedModel

HEADS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
REWARDED = ("helpfulness", "correctness", "coherence")
HIGHEST = 4.0
HEAD_BIAS = "score.bias"
TOKENS_PER_BATCH = 8192  # padded
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})

Conversation = Sequence[dict[str, str]]  # ends with the assistant's message
Heads = dict[str, float]  # by name, clamped to 0-4


class RewardError(Exception):
    """One conversation has no score: it is too long (`final`), or the endpoint did not answer."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def composite(heads: Heads) -> float:
    """Return the reward on 0-1.

    >>> composite(dict.fromkeys(HEADS, 4.0))
    1.0
    """
    return sum(heads[name] for name in REWARDED) / (len(REWARDED) * HIGHEST)


def clamped(outputs: Sequence[float]) -> Heads:
    """Return raw outputs, in head order, as named scores of 0-4; raises RewardError unless they are five numbers."""
    if len(outputs) != len(HEADS) or not all(math.isfinite(value) for value in outputs):
        raise RewardError(f"the reward model gave {list(outputs)[:8]}, not {len(HEADS)} numbers")
    return {name: min(max(float(value), 0.0), HIGHEST) for name, value in zip(HEADS, outputs, strict=True)}


class RewardModel(ABC):
    """Scores conversations."""

    @abstractmethod
    def score(self, conversations: Sequence[Conversation]) -> list[Heads | RewardError]:
        """Return the heads of each conversation, in order, or why there are none."""


def open_reward_model(
    model: ResolvedModel, device: str = "auto", concurrency: int = 16, attempts: int = 5, seconds: float = 600.0
) -> RewardModel:
    """Load a reward model, or reach its endpoint.

    Raises:
        ModelError: no weights, no sequence-classification model, or not the five heads in their order.
        EngineError: the endpoint does not answer or serves another model.
    """
    if model.path is None:
        return HttpRewardModel(model, concurrency, attempts, seconds)
    return LocalRewardModel(model.path, device)


class LocalRewardModel(RewardModel):
    """A directory in Hugging Face layout: a sequence-classification model with the five heads, and its tokenizer."""

    def __init__(self, path: Path, device: str = "auto") -> None:
        self._model, self._tokenizer, self._device = _loaded(str(path), _device(device))
        self._longest = int(getattr(self._model.config, "max_position_embeddings", 1 << 20))

    def score(self, conversations: Sequence[Conversation]) -> list[Heads | RewardError]:
        """See `RewardModel.score`; batched by length, so that little is padded."""
        tokens = [self._encode(conversation) for conversation in conversations]
        found: list[Heads | RewardError] = [
            RewardError(f"{len(item)} tokens, the reward model takes {self._longest}", final=True) for item in tokens
        ]
        fitting = [index for index, item in enumerate(tokens) if 0 < len(item) <= self._longest]
        for batch in _batches(sorted(fitting, key=lambda index: len(tokens[index])), tokens):
            for index, outputs in zip(batch, self._forward([tokens[index] for index in batch]), strict=True):
                try:
                    found[index] = clamped(outputs)
                except RewardError as error:
                    found[index] = error
        return found

    def _encode(self, conversation: Conversation) -> list[int]:
        messages = [{"role": item["role"], "content": item["content"]} for item in conversation]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _forward(self, batch: list[list[int]]) -> list[list[float]]:
        import torch

        # The head is read at the last token that is no padding, so padding must be a token that no text here holds.
        used = {token for item in batch for token in item}
        padding = next(token for token in range(len(used) + 1) if token not in used)
        self._model.config.pad_token_id = padding
        width = max(map(len, batch))
        ids = torch.tensor([item + [padding] * (width - len(item)) for item in batch], device=self._device)
        mask = torch.tensor([[1] * len(item) + [0] * (width - len(item)) for item in batch], device=self._device)
        with torch.inference_mode():
            return self._model(input_ids=ids, attention_mask=mask).logits.float().cpu().tolist()


def _batches(indexes: list[int], tokens: list[list[int]]) -> Iterator[list[int]]:
    """Yield indexes, which are sorted by length, in batches whose padded size stays below the limit."""
    batch: list[int] = []
    for index in indexes:
        if batch and (len(batch) + 1) * len(tokens[index]) > TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@lru_cache(maxsize=1)
def _loaded(path: str, device: str) -> tuple[Any, Any, str]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # the loaders raise many kinds
        raise ModelError(f"the reward model at {path} cannot be loaded: {type(error).__name__}: {error}") from error
    missing, unknown = sorted(report["missing_keys"]), sorted(set(report["unexpected_keys"]) - {HEAD_BIAS})
    if missing or unknown:  # a language model's directory, for example: its head would be random numbers
        raise ModelError(
            f"the weights at {path} are no plain reward model: missing {missing[:3]}, unknown {unknown[:3]}.",
            "give a sequence-classification model, not a language model.",
        )
    if HEAD_BIAS in report["unexpected_keys"]:
        _add_bias(model, Path(path))
    check_heads(path, {int(place): str(name) for place, name in model.config.id2label.items()})
    if tokenizer.chat_template is None:
        raise ModelError(f"the tokenizer of the reward model at {path} has no chat template.")
    return model.to(device).eval(), tokenizer, device


def _add_bias(model: Any, path: Path) -> None:
    """Give the linear head its bias, which transformers' own classes leave out."""
    import torch
    from safetensors import safe_open

    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            if HEAD_BIAS in weights.keys():  # noqa: SIM118 - it is no mapping
                model.score.bias = torch.nn.Parameter(weights.get_tensor(HEAD_BIAS).to(model.score.weight.dtype))


def check_heads(path: str, labels: dict[int, str]) -> None:
    """Raise ModelError unless there are five heads that are unnamed or in the expected order."""
    names = [labels[place].lower() for place in sorted(labels)]
    unnamed = all(name.startswith("label_") for name in names)
    in_order = all(expected in name for name, expected in zip(names, HEADS, strict=False))
    if len(names) != len(HEADS) or not (unnamed or in_order):
        raise ModelError(
            f"the reward model at {path} has the heads {', '.join(names)}; expected are {', '.join(HEADS)}.",
            "use a model with that head layout.",
        )


def _device(wanted: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


class HttpRewardModel(RewardModel):
    """An endpoint that takes a chat and returns raw outputs: `POST /pooling` as `vllm serve --runner pooling` has it.

    A request is `{"model", "messages", "task": "classify", "use_activation": false}`, a reply
    `{"data": [{"data": [five numbers]}]}`.
    """

    def __init__(self, model: ResolvedModel, concurrency: int, attempts: int, seconds: float) -> None:
        if not model.base_url or not model.served_name:
            raise ModelError(f"reward model {model.name} has no server.", "give it an origin of kind served.")
        self._base, self._name = model.base_url.rstrip("/").removesuffix("/v1"), model.served_name
        self._concurrency, self._attempts = concurrency, attempts
        key = self._key = os.environ.get(model.api_key_env or "")
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=httpx.Timeout(seconds, connect=30)
        )
        self._check_model()

    def _said(self, reply: httpx.Response) -> str:
        """Return the beginning of a reply, without our key, which some servers repeat."""
        return (reply.text.replace(self._key, "***") if self._key else reply.text)[:200]

    def _check_model(self) -> None:
        try:
            reply = self._client.get(f"{self._base}/v1/models")
            reply.raise_for_status()
            served = [str(item["id"]) for item in reply.json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"no reward endpoint answers at {self._base}: {type(error).__name__}.",
                "start the server, or correct base_url in the recipe.",
            ) from error
        if self._name not in served:
            raise EngineError(f"the server at {self._base} serves {', '.join(served)}, not {self._name}.")

    def score(self, conversations: Sequence[Conversation]) -> list[Heads | RewardError]:
        """See `RewardModel.score`; raises EngineError when the endpoint refuses every request."""
        with ThreadPoolExecutor(self._concurrency) as threads:
            return list(threads.map(self._score, conversations))

    def _score(self, conversation: Conversation) -> Heads | RewardError:
        reason = "no attempt was made"
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(min(0.5 * 2**attempt, 20.0))
            try:
                return self._ask(conversation)
            except RewardError as error:
                if error.final:
                    return error
                reason = str(error)
        return RewardError(reason)

    def _ask(self, conversation: Conversation) -> Heads:
        messages = [{"role": item["role"], "content": item["content"]} for item in conversation]
        body = {"model": self._name, "messages": messages, "task": "classify", "use_activation": False}
        try:
            reply = self._client.post(f"{self._base}/pooling", json=body)
        except httpx.HTTPError as error:
            raise RewardError(f"{type(error).__name__}: {error}") from error
        if reply.status_code in _RETRIED:
            raise RewardError(f"HTTP {reply.status_code}")
        if reply.status_code in MISCONFIGURED:
            raise EngineError(
                f"{self._base}/pooling refuses: HTTP {reply.status_code}: {self._said(reply)}",
                "correct the key or the server, and run it again: what is done is kept.",
            )
        if reply.status_code >= 400:  # too long for the model, most often
            raise RewardError(f"HTTP {reply.status_code}: {self._said(reply)}", final=True)
        try:
            return clamped([float(value) for value in reply.json()["data"][0]["data"]])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise RewardError(f"malformed reply: {type(error).__name__}") from error
