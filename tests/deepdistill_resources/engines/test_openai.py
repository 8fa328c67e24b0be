import asyncio
import importlib.util
import itertools
import random
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from deepdistill_resources.engines import server
from deepdistill_resources.engines.base import GenerationRequest, SamplingParameters
from deepdistill_resources.engines.openai import OpenAIEngine
from deepdistill_resources.engines.prompting import PromptStyle
from deepdistill_resources.engines.server import Concurrency, ServerSettings
from deepdistill_resources.errors import EngineError
from deepdistill_resources.models import ResolvedModel

SCRIPT = Path(__file__).parent / "faulty_server.py"
_SPEC = importlib.util.spec_from_file_location("faulty_server", SCRIPT)
faulty = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(faulty)

SETTINGS = ServerSettings(
    max_concurrency=8, max_attempts=3, timeout_seconds=20, retry_seconds=0.01, patience_seconds=60
)
PLAIN = PromptStyle(mode="few_shot")


def model(url: str, name: str = faulty.MODEL) -> ResolvedModel:
    return ResolvedModel("served", None, "r1", None, "apache-2.0", "served tiny", served_name=name, base_url=url)


def request(text: str, key: str | None = None) -> GenerationRequest:
    return GenerationRequest(key or text, ({"role": "user", "content": text},), "math", 1)


@pytest.fixture(scope="module")
def url():
    with faulty.faulty_server() as url:
        yield url


@pytest.fixture(scope="module")
def session(url):
    return OpenAIEngine(SETTINGS).open(model(url), PLAIN)


def answer(session, text: str):
    (response,) = session.generate([request(text)], SamplingParameters())
    return response


@pytest.mark.parametrize("fault", [*faulty.ONCE, "cut", "half_closed"])
def test_a_passing_fault_is_asked_again(session, fault):
    assert answer(session, f"fault:{fault} passing").status == "ok"


def test_attempts_that_are_made_again_are_counted_by_reason(url):
    session = OpenAIEngine(SETTINGS).open(model(url), PLAIN)
    for fault in ("busy", "overloaded", "broken", "invalid_utf8"):
        assert answer(session, f"fault:{fault} counted").status == "ok"
    assert answer(session, "fault:always_broken counted").status == "server_error"
    assert session.retries == {"HTTP 429": 1, "HTTP 503": 1, "HTTP 500": 1 + 2, "malformed reply": 1}


@pytest.mark.parametrize("fault", ["no_choices", "duplicated", "aborted", "unfinished"])
def test_a_reply_that_may_be_cut_or_doubled_is_never_taken_for_an_answer(session, fault):
    response = answer(session, f"fault:at_first_{fault} passing")
    assert (response.finish_reason, response.text) == ("stop", "<answer>passing 0</answer>")


@pytest.mark.parametrize("fault", ["stall", "trickle"])
def test_a_reply_that_does_not_end_is_given_up_and_asked_again(url, fault):
    hurried = ServerSettings(max_attempts=3, timeout_seconds=2, retry_seconds=0.01)
    assert answer(OpenAIEngine(hurried).open(model(url), PLAIN), f"fault:{fault} passing").status == "ok"


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("always_broken", "server_error"),
        ("no_choices", "server_error"),
        ("unprocessable", "server_error"),
        ("null_content", "empty"),
        ("no_text", "empty"),
        ("long", "truncated"),
        ("overflow", "context_overflow"),
        ("filtered", "refused"),
        ("refusing", "refused"),
    ],
)
def test_every_fault_has_a_named_status(session, fault, status):
    response = answer(session, f"fault:{fault} lasting")
    assert response.status == status
    assert response.error or status in ("empty", "truncated", "refused")


@pytest.mark.parametrize(("fault", "logprob"), [("nan", None), ("infinite", None), ("logprobs", -0.75)])
def test_only_finite_log_probabilities_are_kept(session, fault, logprob):
    response = answer(session, f"fault:{fault} here")
    assert (response.status, response.cumulative_logprob) == ("ok", logprob)


def test_half_a_character_can_be_stored(session):
    assert answer(session, "fault:half_character here").text.encode() == "so \ufffd".encode()


def test_each_request_comes_back_once_with_its_own_answer(session):
    requests = [request(f"query {index}") for index in range(300)]
    found = {response.key: response.text for response in session.generate(requests, SamplingParameters())}
    assert found == {item.key: f"<answer>{item.key.split()[-1]} 0</answer>" for item in requests}


def test_a_crowded_server_answers_everybody_in_the_end(url):
    many = ServerSettings(max_concurrency=32, max_attempts=1, retry_seconds=0.01, patience_seconds=120)
    requests = [request(f"fault:crowded {index}") for index in range(100)]
    responses = list(OpenAIEngine(many).open(model(url), PLAIN).generate(requests, SamplingParameters()))
    assert [response.status for response in responses] == ["ok"] * 100


def test_concurrency_is_halved_once_for_requests_that_were_in_flight_together():
    concurrency = Concurrency(64)
    started = time.monotonic()
    for _ in range(10):
        concurrency.busy(started)
    assert concurrency.allowed == 32
    for _ in range(32):
        concurrency.succeeded()
    assert 32.9 < concurrency.allowed < 33


def test_the_time_at_work_is_that_of_requests_in_flight_by_those_allowed(monkeypatch):
    now = itertools.count(100.0)
    monkeypatch.setattr(server, "time", SimpleNamespace(monotonic=lambda: next(now)))  # a look at it is a second
    concurrency = Concurrency(4)

    async def ask(count):
        for _ in range(count):
            await concurrency.__aenter__()
        for _ in range(count):
            await concurrency.__aexit__()

    asyncio.run(ask(2))
    assert concurrency.busy_seconds == pytest.approx(0 + 1 / 4 + 2 / 4 + 1 / 4)


def test_a_session_tells_its_time_at_work(url):
    session = OpenAIEngine(SETTINGS).open(model(url), PLAIN)
    started = time.monotonic()
    list(session.generate([request(f"what is {n}?") for n in range(50)], SamplingParameters()))
    assert 0 < session.busy_seconds <= time.monotonic() - started


def test_other_or_changing_models_stop_the_run(url):
    session = OpenAIEngine(SETTINGS).open(model(url), PLAIN)
    with pytest.raises(EngineError, match="another"):
        answer(session, "fault:other_model")

    dated = OpenAIEngine(SETTINGS).open(model(url), PLAIN)
    assert answer(dated, "fault:dated_model").status == "ok"  # what commercial servers do
    with pytest.raises(EngineError, match="nothing is mixed"):
        answer(dated, "the undated one again")


def test_a_wrong_model_name_is_refused_at_once(url):
    with pytest.raises(EngineError, match="serves tiny"):
        OpenAIEngine(SETTINGS).open(model(url, "large"), PromptStyle())


def test_no_server_is_one_clear_error():
    with pytest.raises(EngineError, match="no OpenAI-compatible server"):
        OpenAIEngine(SETTINGS).open(model("http://127.0.0.1:9"), PromptStyle())


def test_a_missing_key_and_a_server_that_likes_nothing_stop_the_run(url):
    with pytest.raises(EngineError, match="HTTP 401: no key"):
        answer(OpenAIEngine(SETTINGS).open(model(url), PLAIN), "fault:locked")
    requests = [request(f"fault:unprocessable {index}") for index in range(1000)]
    with pytest.raises(EngineError, match="rejected the first"):
        list(OpenAIEngine(SETTINGS).open(model(url), PLAIN).generate(requests, SamplingParameters()))


def test_a_server_that_repeats_our_key_does_not_bring_it_into_the_error(url, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "canary-key-7351")
    session = OpenAIEngine(SETTINGS).open(replace(model(url), api_key_env="TEACHER_KEY"), PLAIN)
    with pytest.raises(EngineError, match=r"HTTP 401: wrong key: Bearer \*\*\*"):
        answer(session, "fault:repeats_key")


def test_chat_style_sends_messages_and_joins_what_the_server_split(url):
    style = PromptStyle(system="Think.", suffixes={"math": " fault:thoughtful"})
    response = answer(OpenAIEngine(SETTINGS).open(model(url), style), "4")
    assert response.text == "<think>2+2</think><answer>fault:thoughtful 0</answer>"


def test_several_passes_in_one_request_are_paid_once():
    requests = [request(f"query {query}", f"{query}-{number}") for query in range(3) for number in range(4)]
    with faulty.recording_server() as (url, bodies):
        session = OpenAIEngine(SETTINGS, samples_per_request=4).open(model(url), PLAIN)
        responses = {item.key: item for item in session.generate(requests[1:], SamplingParameters())}
    assert sorted(body.get("n", 1) for body in bodies) == [3, 4, 4]
    assert sorted(responses) == sorted(item.key for item in requests[1:])
    assert responses["1-2"].text == "<answer>1 2</answer>"
    assert sum(item.prompt_tokens for item in responses.values()) == 9
    assert sum(item.completion_tokens for item in responses.values()) == 5 * 11


def test_a_reader_that_stops_early_stops_the_requests():
    with faulty.recording_server() as (url, bodies):
        session = OpenAIEngine(SETTINGS).open(model(url), PLAIN)
        stream = session.generate((request(f"query {index}") for index in itertools.count()), SamplingParameters())
        for _ in range(5):
            next(stream)
        stream.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "streamed"]
        asked = len(bodies)
        time.sleep(0.3)
        assert len(bodies) <= asked + SETTINGS.max_concurrency


def _free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


class Process:
    """A faulty server that can be killed and started again on its port."""

    def __init__(self) -> None:
        # Not one of the ports that the kernel gives to clients: a client that knocks at such a port while nobody
        # listens there may be given that very port, and the server could not come back.
        self.port = next(port for port in random.sample(range(20_000, 30_000), 100) if _free(port))
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self, parameters: int = 1) -> None:
        self.process = subprocess.Popen([sys.executable, str(SCRIPT), str(self.port), str(parameters)])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def process():
    process = Process()
    process.start()
    yield process
    process.kill()


def interrupted(process, parameters):
    """All responses to 300 requests; after the first ten the server is killed, and started again a second later."""
    session = OpenAIEngine(SETTINGS).open(model(process.url), PLAIN)
    stream = session.generate([request(f"query {index}") for index in range(300)], SamplingParameters())
    found = list(itertools.islice(stream, 10))
    process.kill()
    threading.Timer(1.0, process.start, [parameters]).start()
    return found + list(stream)


def test_a_server_that_restarts_is_waited_for_and_nothing_is_lost(process):
    found = interrupted(process, parameters=1)
    assert sorted(response.key for response in found) == sorted(f"query {index}" for index in range(300))
    assert {response.status for response in found} == {"ok"}


def test_a_server_that_comes_back_with_another_model_stops_the_run(process):
    with pytest.raises(EngineError, match="came back with another tiny: meta differ"):
        interrupted(process, parameters=2)


def test_a_server_that_stays_away_is_one_clear_error(process):
    settings = ServerSettings(retry_seconds=0.1, patience_seconds=0.5)
    session = OpenAIEngine(settings).open(model(process.url), PLAIN)
    process.kill()
    with pytest.raises(EngineError, match="answered nobody"):
        answer(session, "anybody there?")
