import re
import time
from collections import Counter
from dataclasses import replace

import polars as pl
import pytest

from deepdistill_resources import generation
from deepdistill_resources.chunk_store import ChunkStore
from deepdistill_resources.engines.base import (
    GenerationRequest,
    GenerationResponse,
    GenerationSession,
    SamplingParameters,
)
from deepdistill_resources.errors import EngineError
from deepdistill_resources.generation import (
    GENERATED,
    LazySession,
    content_key,
    generate_missing,
    read_generated,
    seed_of,
)
from deepdistill_resources.lake import Lake

SAMPLING = SamplingParameters(max_new_tokens=8)


class ScriptedSession(GenerationSession):
    """Answers with the key; `script` maps a key to the statuses of its first attempts (None: no reply at all)."""

    engine_name, engine_version = "scripted", "1"

    def __init__(self, script=None):
        self.script, self.asked = {key: list(value) for key, value in (script or {}).items()}, []

    def generate(self, requests, sampling):
        for request in requests:
            self.asked.append(request.key)
            left = self.script.get(request.key)
            status = left.pop(0) if left else "ok"
            if status is not None:
                error = "HTTP 503" if status == "server_error" else None
                yield GenerationResponse(request.key, f"to {request.key}", status, "stop", 3, 5, -1.0, 0.1, error)

    def perplexities(self, texts):
        return [None for _ in texts]


def requests(keys):
    return [GenerationRequest(key, ({"role": "user", "content": key},), "math", seed_of(key)) for key in keys]


@pytest.fixture
def store(tmp_path):
    return ChunkStore(Lake(root=str(tmp_path)), "chunks", "response_id", GENERATED)


def run(session, store, keys, **options):
    return generate_missing(session, store, requests(keys), SAMPLING, lambda _: None, retry_seconds=0, **options)


def test_only_what_is_missing_is_asked_for(store):
    run(ScriptedSession(), store, "abc")
    session = ScriptedSession()
    report = run(session, store, "edcba")
    assert sorted(session.asked) == ["d", "e"]
    assert (report.requested, report.reused, report.generated) == (5, 3, 2)
    rows = read_generated(store, requests("edcba"), report)
    assert rows["response_id"].to_list() == list("abcde")
    assert dict(rows.schema) == GENERATED
    assert rows["engine"].unique().to_list() == ["scripted 1"]
    assert rows["seed"].to_list() == [seed_of(key) for key in "abcde"]


class Paced(ScriptedSession):
    """Works for 0.05 s per response, and is held up for as long."""

    def generate(self, requests, sampling):
        for response in super().generate(requests, sampling):
            started = time.monotonic()
            time.sleep(0.05)
            self.busy_seconds += time.monotonic() - started
            time.sleep(0.05)
            yield response


def test_the_share_of_the_engines_ceiling_is_its_time_at_work(store):
    session = LazySession(Paced)
    first, second = run(session, store, "abcd"), run(session, store, "abcdefgh")
    for report in (first, second):
        assert 0.2 <= report.busy_seconds < report.seconds - 0.2
        own = report.completion_tokens / report.busy_seconds
        assert report.tokens_per_second / own == pytest.approx(report.share_of_engine_ceiling)
        assert 0 < report.share_of_engine_ceiling < 1
    assert first.busy_seconds + second.busy_seconds == pytest.approx(session.busy_seconds)
    assert run(ScriptedSession(), store, "z").share_of_engine_ceiling is None  # it does not tell


def test_a_transient_failure_is_asked_again_and_logged_but_never_committed(store):
    session = ScriptedSession({"b": ["server_error", "server_error"]})
    report = run(session, store, "abc")
    assert session.asked.count("b") == 3
    assert (report.retries, report.failed) == (2, {})
    assert [attempt.error for attempt in store.attempts()] == ["HTTP 503", "HTTP 503"]
    assert set(store.read("abc")["status"]) == {"ok"}


def test_final_outcomes_are_rows_and_not_asked_again(store):
    statuses = {"a": ["truncated"], "b": ["empty"], "c": ["refused"], "d": ["context_overflow"]}
    report = run(ScriptedSession(statuses), store, "abcd")
    assert dict(report.statuses) == {"truncated": 1, "empty": 1, "refused": 1, "context_overflow": 1}
    assert store.missing("abcd") == []


def test_a_response_that_fails_to_the_end_is_a_row_of_the_result_but_stays_wanted(store):
    keys = [f"{number:02d}" for number in range(40)]
    report = run(ScriptedSession({"07": ["server_error"] * 9}), store, keys)
    rows = read_generated(store, requests(keys), report)
    assert rows.height == 40
    assert rows.filter(pl.col("status") == "server_error")["response_id"].to_list() == ["07"]
    assert store.missing(keys) == ["07"]


def test_too_many_failures_are_an_error_and_what_is_done_stays(store):
    with pytest.raises(EngineError, match=r"2 of 4 responses failed; the last error: HTTP 503"):
        run(ScriptedSession({"a": ["server_error"] * 9, "b": ["server_error"] * 9}), store, "abcd")
    assert store.missing("abcd") == ["a", "b"]


def test_an_engine_that_forgets_a_request_is_asked_again(store):
    session = ScriptedSession({"b": [None]})
    report = run(session, store, "abc")
    assert (session.asked.count("b"), report.failed) == (2, {})


def test_duplicated_and_foreign_replies_are_left_out(store):
    class Babbling(ScriptedSession):
        def generate(self, wanted, sampling):
            for response in super().generate(wanted, sampling):
                yield response
                yield response
                yield GenerationResponse("foreign", "x", "ok", "stop", 1, 1, None, 0.0)

    assert run(Babbling(), store, "abc").generated == 3
    assert pl.concat(store.scan())["response_id"].to_list() == ["a", "b", "c"]


def test_an_interrupted_run_keeps_its_whole_chunks(store):
    class Dying(ScriptedSession):
        def generate(self, wanted, sampling):
            for number, response in enumerate(super().generate(wanted, sampling)):
                if number == 5:
                    raise EngineError("the machine is gone")
                yield response

    with pytest.raises(EngineError, match="the machine is gone"):
        run(Dying(), store, "abcdefgh", chunk_size=2)
    assert store.missing("abcdefgh") == ["e", "f", "g", "h"]


class Watched(ScriptedSession):
    """Waits, before each response, for the next line of the log; has repeated an attempt when two are done."""

    def __init__(self, lines):
        super().__init__()
        self.lines = lines

    @property
    def retries(self):
        return Counter({"HTTP 429": 3}) if len(self.asked) > 2 else Counter()

    def generate(self, requests, sampling):
        for response in super().generate(requests, sampling):
            seen = len(self.lines)
            while len(self.lines) == seen:
                time.sleep(0.001)
            yield response


def test_progress_says_how_much_how_fast_how_long_and_what_was_repeated(store, monkeypatch):
    monkeypatch.setattr(generation, "PROGRESS_SECONDS", 0.01)
    lines = []
    report = generate_missing(Watched(lines), store, requests("abcd"), SAMPLING, lines.append)
    assert lines[0] == "0 of 4 responses, 0 tokens/s", "also before the first response is done"
    last = next(line for line in reversed(lines) if line.startswith("3 of 4 responses, "))
    assert re.fullmatch(r"3 of 4 responses, [\d,]+ tokens/s, about \d+ s left, 3 retries \(HTTP 429 3\)", last)
    assert report.retries == 3


def test_a_key_is_its_parts_whatever_their_order_and_seeds_follow_from_it():
    key = content_key(query_id="q", pass_index=0, sampling={"temperature": 0.6, "top_p": 0.95})
    assert key == content_key(sampling={"top_p": 0.95, "temperature": 0.6}, pass_index=0, query_id="q")
    assert key != content_key(query_id="q", pass_index=1, sampling={"temperature": 0.6, "top_p": 0.95})
    assert seed_of(key) == seed_of(key) != seed_of(key, run_seed=1)
    assert 0 <= seed_of(key) < 2**31


def test_seconds_are_shares_of_the_engines_time_whatever_the_engine_says(store):
    class Slow(ScriptedSession):
        def generate(self, wanted, sampling):
            for number, response in enumerate(super().generate(wanted, sampling)):
                time.sleep(0.01)
                yield replace(response, seconds=99.0, completion_tokens=10 * number)

    report = run(Slow(), store, "abcd", chunk_size=2)
    rows = read_generated(store, requests("abcd"), report)
    assert 0.04 <= rows["seconds"].sum() <= report.seconds
    assert rows["seconds"][1] > rows["seconds"][0], "more tokens, more of the chunk's time"
