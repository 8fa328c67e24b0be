"""HTTP to one OpenAI-compatible server: bounded and adaptive, and patient while it is busy or restarts.

The server may be busy (429, 503), gone for a while (connection refused) or faulty (500, cut and malformed replies,
stalls). The first two are waited out, a faulty attempt is repeated a few times. Whoever answers after an interruption
must be the same model as before it: another one's replies are never mixed in.
"""

import asyncio
import json
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import aiohttp

from deepdistill_resources.errors import EngineError

Read = TypeVar("Read")
RETRIED = frozenset({408, 409, 425, 500, 502, 504})
BUSY = frozenset({429, 503})
MISCONFIGURED = frozenset({401, 403, 404, 405})  # the same for every request
CONNECT_SECONDS = 30.0
IDENTIFY_SECONDS = 60.0
LONGEST_PAUSE = 60.0
CHANGING = ("created", "permission", "status")  # fields of a served model's entry that say nothing about the model


@dataclass(frozen=True)
class ServerSettings:
    """How a server is treated.

    `max_concurrency` requests in flight at most; `max_attempts` per request; `timeout_seconds` for one attempt, its
    whole reply included (a long reasoning response takes an hour at 10 tokens per second); `retry_seconds` before the
    second attempt, doubled for each further one; `patience_seconds` that a server may be busy or gone without answering
    anybody before the run is given up.
    """

    max_concurrency: int = 64
    max_attempts: int = 5
    timeout_seconds: float = 3600.0
    retry_seconds: float = 1.0
    patience_seconds: float = 900.0


class Faulty(Exception):
    """One attempt failed and may succeed when it is repeated."""


class Rejected(Exception):
    """The server answered this request, and always will, with a client error; `status` is HTTP's."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"HTTP {status}: {reason}")
        self.status, self.reason = status, reason


class _Unavailable(Exception):
    """Nobody is answered at the moment; `after` is what the server's Retry-After asked for, in seconds."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Concurrency:
    """Requests in flight: halved when the server says it is busy, one more after each round of successes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.allowed, self.running = limit, float(limit), 0
        self.busy_seconds = 0.0  # a second with half of what is allowed in flight counts half
        self._halved_at, self._counted_at = 0.0, time.monotonic()
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> float:
        while self.running >= int(self.allowed):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        now = self._count()
        self.running += 1
        return now

    async def __aexit__(self, *error: object) -> None:
        self._count()
        self.running -= 1
        for _ in range(min(len(self._waiting), max(0, int(self.allowed) - self.running))):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)

    def _count(self) -> float:
        now = time.monotonic()
        self.busy_seconds += (now - self._counted_at) * min(1.0, self.running / int(self.allowed))
        self._counted_at = now
        return now

    def succeeded(self) -> None:
        """Allow a little more."""
        self.allowed = min(self.limit, self.allowed + 1 / self.allowed)

    def busy(self, started: float) -> None:
        """Halve, once for all requests that were in flight together."""
        if started > self._halved_at:
            self.allowed, self._halved_at = max(1.0, self.allowed / 2), time.monotonic()


class Server:
    """One server and the model it must serve.

    Args:
        url: with or without the closing `/v1`.
        model: the name that requests carry.
        key: sent as a bearer token; None sends nothing.
    """

    def __init__(self, url: str, model: str, settings: ServerSettings, key: str | None = None) -> None:
        self.base = url.rstrip("/").removesuffix("/v1") + "/v1"
        self.model, self.settings = model, settings
        self._key, self._headers = key, {"Authorization": f"Bearer {key}"} if key else {}
        self._identity: dict[str, Any] = {}
        self.retries: Counter[str] = Counter()  # attempts that were made again, by reason

    @property
    def software(self) -> str:
        """What the server calls itself (vllm, llamacpp, sglang, a company), `unknown` where it does not say."""
        return str(self._identity.get("owned_by") or "unknown")

    def without_key(self, content: bytes) -> bytes:
        """Return a reply without our key, which some servers repeat when they refuse it."""
        return content.replace(self._key.encode(), b"***") if self._key else content

    async def reach(self) -> None:
        """Ask who is there; raises EngineError when nobody answers or another model is served."""
        async with self.connection() as connection:
            try:
                await connection.identify()
            except (_Unavailable, Faulty) as error:
                raise EngineError(
                    f"no OpenAI-compatible server answers at {self.base}: {error}.",
                    "start the server, or correct base_url in the recipe.",
                ) from error

    def connection(self) -> "Connection":
        """Return a connection for one event loop, to be entered with `async with`."""
        return Connection(self, self._headers)

    def recognise(self, served: list[dict[str, Any]]) -> None:
        """Compare what is served now with what was served at first; raises EngineError when it differs."""
        entry = next((item for item in served if item.get("id") == self.model), None)
        if entry is None:
            names = ", ".join(str(item.get("id")) for item in served)
            raise EngineError(f"the server at {self.base} serves {names}, not {self.model}.")
        identity = {name: value for name, value in entry.items() if name not in CHANGING}
        if self._identity and identity != self._identity:
            changed = sorted(
                name for name in identity | self._identity if identity.get(name) != self._identity.get(name)
            )
            raise EngineError(
                f"the server at {self.base} came back with another {self.model}: {', '.join(changed)} differ.",
                "serve the model of the recipe again; what is done is kept, and nothing was mixed.",
            )
        self._identity = identity


class Connection:
    """Requests to a server within one event loop."""

    def __init__(self, server: Server, headers: dict[str, str]) -> None:
        self._server, self._settings, self._headers = server, server.settings, headers
        self.concurrency = Concurrency(server.settings.max_concurrency)
        self._answered_at = time.monotonic()
        self._held_until = 0.0
        self._interrupted = False
        self._identifying = asyncio.Lock()

    async def __aenter__(self) -> "Connection":
        connector = aiohttp.TCPConnector(limit=0)  # the bound is `concurrency`
        self._client = aiohttp.ClientSession(connector=connector, headers=self._headers, trust_env=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def post(self, path: str, body: dict[str, Any], read: Callable[[dict[str, Any]], Read]) -> Read:
        """Return `read` of the reply's JSON object; what `read` raises as Faulty is a failed attempt.

        Raises:
            Faulty: all attempts failed; the last one's reason.
            Rejected: a client error that concerns this request alone.
            EngineError: the server was busy or gone for too long, is another one, or refuses every request.
        """
        payload, failed, waits = json.dumps(body).encode(), 0, 0
        while True:
            try:
                async with self.concurrency as started:
                    try:
                        reply = await self._attempt(path, payload, read)
                    except _Unavailable:
                        self.concurrency.busy(started)
                        raise
                self.concurrency.succeeded()
                self._answered_at = time.monotonic()
                return reply
            except _Unavailable as error:
                waits += 1
                self._server.retries[_reason(error)] += 1
                await self._wait_out(error, waits)
            except Faulty as error:
                failed += 1
                if failed >= self._settings.max_attempts:
                    raise
                self._server.retries[_reason(error)] += 1
                await asyncio.sleep(self._pause(failed))

    async def identify(self) -> None:
        """Check that the server still serves the model it served at first."""
        status, headers, content = await self._exchange("GET", "/models", None, IDENTIFY_SECONDS)
        if 400 <= status < 500 and status not in BUSY:
            raise EngineError(f"{self._server.base}/models refuses: HTTP {status}: {_excerpt(content)}")
        _raise_for_status(status, headers, content)
        try:
            served = [dict(item) for item in json.loads(content)["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise Faulty(f"malformed list of models: {type(error).__name__}") from error
        self._server.recognise(served)

    async def _attempt(self, path: str, payload: bytes, read: Callable[[dict[str, Any]], Read]) -> Read:
        if (pause := self._held_until - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        if self._interrupted:
            async with self._identifying:
                if self._interrupted:
                    await self.identify()
                    self._interrupted = False
        status, headers, content = await self._exchange("POST", path, payload, self._settings.timeout_seconds)
        if status in MISCONFIGURED:
            raise EngineError(f"{self._server.base}{path} refuses: HTTP {status}: {_excerpt(content)}")
        _raise_for_status(status, headers, content)
        try:
            body = json.loads(content)
        except ValueError as error:  # cut, or not UTF-8
            raise Faulty(f"malformed reply: {type(error).__name__}") from error
        if not isinstance(body, dict):
            raise Faulty(f"malformed reply: a JSON {type(body).__name__}")
        return read(body)

    async def _exchange(
        self, method: str, path: str, payload: bytes | None, seconds: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        headers = {"content-type": "application/json"} if payload else {}
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        url = self._server.base + path
        try:
            async with self._client.request(method, url, data=payload, headers=headers, timeout=timeout) as reply:
                return reply.status, reply.headers, self._server.without_key(await reply.read())
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._interrupted = True
            raise _Unavailable(f"{type(error).__name__}: {error}") from error
        except TimeoutError as error:
            self._interrupted = True
            raise Faulty(f"no reply in {seconds:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: what is sent is no HTTP
            self._interrupted = True
            raise Faulty(f"{type(error).__name__}: {error}") from error

    async def _wait_out(self, error: _Unavailable, waits: int) -> None:
        silent = time.monotonic() - self._answered_at
        if silent > self._settings.patience_seconds and not self.concurrency.running:
            raise EngineError(
                f"the server at {self._server.base} answered nobody for {silent:.0f} s: {error}.",
                "run it again when the server is well: what is done is kept.",
            ) from error
        if error.after is not None:  # the server's wish concerns everybody
            self._held_until = max(self._held_until, time.monotonic() + error.after)
        await asyncio.sleep(self._pause(1 if error.after is not None else waits))

    def _pause(self, failed: int) -> float:
        return min(LONGEST_PAUSE, self._settings.retry_seconds * 2 ** min(failed - 1, 16)) * random.uniform(0.5, 1.5)


def _raise_for_status(status: int, headers: Mapping[str, str], content: bytes) -> None:
    if status in BUSY:
        raise _Unavailable(f"HTTP {status}: {_excerpt(content)}", _retry_after(headers.get("retry-after")))
    if status in RETRIED or status >= 500:
        raise Faulty(f"HTTP {status}: {_excerpt(content)}")
    if status >= 400:
        raise Rejected(status, _excerpt(content))


def _reason(error: Exception) -> str:
    """Return what errors of one kind have in common: `HTTP 503`, `ClientConnectorError`, `malformed reply`."""
    return str(error).partition(":")[0]


def _excerpt(content: bytes) -> str:
    return content[:500].decode("utf-8", "replace")


def _retry_after(value: str | None) -> float | None:
    """Read seconds or an HTTP date; None where there is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(LONGEST_PAUSE, max(0.0, seconds)) if seconds == seconds else None
