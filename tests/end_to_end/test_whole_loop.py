"""The whole graph for real on the smallest world: killed, continued, and equal to an undisturbed run."""

import signal
import subprocess

import polars as pl
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PICKLES = [bytes([0x80, protocol]) for protocol in range(2, 6)]
VOLATILE = ["started_at", "seconds"]


def tables(house, asset):
    files = sorted((house.lake / asset).rglob("data.parquet"))
    frames = [pl.read_parquet(file) for file in files]
    return pl.concat(frames).drop(VOLATILE, strict=False)


def kill_when_seen(house, text):
    process = house.start("run", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    for line in process.stdout:
        if text in line:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_killed_run_continues_and_ends_as_if_nothing_had_happened(new_house):
    killed, calm = new_house(), new_house()
    for moment in ("raw_queries", "distillation_queries", "verified_responses", "stage1_dataset"):
        kill_when_seen(killed, moment)
    code, output = killed.run("run")
    assert code == 0, output
    assert "digits-held-out" in output and "digits--stage2" in output

    code, again = killed.run("run")
    assert code == 0 and "\n0 partitions materialized" in again, again

    assert calm.run("run")[0] == 0
    for asset in ("raw_queries", "distillation_queries"):
        assert tables(killed, asset).equals(tables(calm, asset)), asset
    # Sampled texts may differ in rounding where batches were cut elsewhere; what was asked may not.
    asked = ["response_id", "query_id", "teacher", "pass_index", "seed"]
    assert tables(killed, "responses")[asked].equals(tables(calm, "responses")[asked])

    responses = tables(calm, "responses")
    assert responses["response_id"].is_unique().all()
    assert responses.height == 4 * 2 * tables(calm, "distillation_queries").height
    assert set(tables(killed, "verified_responses")["response_id"]) == set(responses["response_id"])

    code, story = calm.run("why", responses["query_id"][0])
    assert code == 0 and "digits-600" in story and "deduped_queries" in story, story

    for file in calm.home.rglob("*"):  # lake, chunks, checkpoints, logs and Dagster's own files
        if file.is_file():
            content = file.read_bytes()
            assert content[:2] not in PICKLES, f"{file} is a pickle"
            assert b"canary-7351" not in content, f"{file} holds a secret of the environment"
