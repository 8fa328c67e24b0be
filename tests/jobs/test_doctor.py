"""What `deepdistill doctor` says: what is chosen, what was tried for real, and a fix beside each failure."""

import dataclasses
from pathlib import Path

import pytest

from deepdistill_resources.errors import DeepDistillError
from deepdistill_resources.profiles import read_environment
from jobs.doctor import examine

RECIPE = """
name: served
title: "A served teacher"
description: "one source, one teacher behind a server"
models:
  base: {{kind: directory, path: {path}, license: MIT}}
  served: {{kind: served, name: tiny, base_url: "{url}", license: MIT}}
sources:
  sums: {{category: math, license: MIT, reader: digits, options: {{levels: {{2: 3}}}}}}
teachers:
  tiny: {{model: served, passes: 1}}
selection:
  stage1: {{teacher: tiny}}
students:
  base: {{model: base}}
training:
  stage1: {{learning_rate: 1.0e-4, epochs: 1, global_batch_size: 8, max_length: 128}}
evaluation:
  benchmarks:
    exam: {{category: math, license: MIT, reader: digits, options: {{split: held_out, levels: {{2: 3}}}}}}
"""


@pytest.fixture
def environment(tmp_path):
    recipe = tmp_path / "served.yaml"
    recipe.write_text(RECIPE.format(path=tmp_path, url="http://127.0.0.1:9/v1"))
    return read_environment({"DEEPDISTILL_HOME": str(tmp_path / "home"), "DEEPDISTILL_RECIPE": str(recipe)})


def found(environment):
    return {finding.what: finding for finding in examine(environment)}


def test_it_says_what_the_profile_resolves_to(environment, tmp_path):
    findings = found(environment)
    assert "profile embedded" in findings["chosen"].found and "recipe served" in findings["chosen"].found
    assert str(tmp_path / "home") in findings["home"].found
    assert "create-once holds" in findings["lake"].found and "SQLite" in findings["events"].found


@pytest.mark.parametrize("steps", ["processes", "pods"])
def test_it_says_where_steps_run(environment, steps):
    chosen = dataclasses.replace(environment, profile="cluster", steps=steps)
    named = {"processes": "one_process_per_step", "pods": "one_pod_per_step"}
    assert found(chosen)["steps"].found == named[steps]


def test_every_failure_has_a_fix_beside_it(environment, tmp_path):
    (tmp_path / "file").write_text("")
    broken = dataclasses.replace(environment, profile="cluster", lake=str(tmp_path / "file" / "lake"))
    failed = {name: finding for name, finding in found(broken).items() if not finding.passed}
    assert {"lake", "events", "step logs", "engine"} <= set(failed)
    assert all(finding.fix for finding in failed.values()), failed
    assert "DEEPDISTILL_LAKE" in failed["lake"].fix and "DAGSTER_POSTGRES_URL" in failed["events"].fix


def test_a_postgres_that_is_down_is_named_without_its_password(environment):
    pytest.importorskip("psycopg2", reason="the cluster's packages are not installed")
    url = "postgresql+psycopg2://deepdistill:canary-password@127.0.0.1:9/dagster"
    environment = dataclasses.replace(environment, profile="cluster", postgres_url=url)
    finding = found(environment)["events"]
    assert not finding.passed and "refused" in finding.found and "start it" in finding.fix
    assert "canary-password" not in repr((finding, environment))


def test_a_postgres_url_without_its_driver_is_explained(environment):
    environment = dataclasses.replace(environment, profile="cluster", postgres_url="postgresql://me:pw@127.0.0.1/x")
    finding = found(environment)["events"]
    assert not finding.passed and "postgresql+psycopg2" in finding.fix


def test_a_server_is_asked_for_one_token(environment, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "deepdistill_resources" / "engines"))
    from faulty_server import faulty_server

    with faulty_server() as url:
        recipe = tmp_path / "served.yaml"
        recipe.write_text(RECIPE.format(path=tmp_path, url=url))
        finding = found(environment)["engine"]
    assert finding.passed and "answered for served" in finding.found, finding


def test_an_engine_that_does_not_exist_is_refused():
    with pytest.raises(DeepDistillError, match="no engine named 'llama'"):
        read_environment({"DEEPDISTILL_ENGINE": "llama"})


def test_a_ray_cluster_that_is_not_there_is_named(environment):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    assert found(environment)["compute"].found == "in this process"
    finding = found(dataclasses.replace(environment, profile="ray", ray_address="127.0.0.1:9"))["compute"]
    assert not finding.passed and "no Ray cluster at 127.0.0.1:9" in finding.found and "ray start" in finding.fix


def test_a_check_that_breaks_is_a_finding_with_a_fix_too_and_the_others_still_run(environment, monkeypatch):
    monkeypatch.setattr("jobs.doctor._disk", lambda home: 1 // 0)
    findings = found(environment)
    assert not findings["disk"].passed and "ZeroDivisionError" in findings["disk"].found and findings["disk"].fix
    assert findings["lake"].passed


def test_a_trainer_that_cannot_start_is_seen_before_hours_of_work(environment):
    assert found(environment)["trainer"].found == "in this process"
    finding = found(dataclasses.replace(environment, profile="gpu", trainer="fsdpp"))["trainer"]
    assert not finding.passed and finding.fix == "use ddp, deepspeed, fsdp, or the path of a file."
