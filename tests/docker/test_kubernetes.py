"""The values for the official Helm chart, and the pods that follow from them: made by dagster-k8s without a cluster."""

import json
import re
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster._core.run_coordinator import QueuedRunCoordinator

from deepdistill_resources.pods import CONFIG_TAG, GPU, gpu_request
from jobs.build import build_definitions

pytest.importorskip("dagster_k8s", reason="the dev extra is not installed")
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import construct_dagster_k8s_job, get_user_defined_k8s_config

from jobs.kubernetes_launcher import WakingK8sRunLauncher

CLONE = Path(__file__).parents[2]
FILE = CLONE / "docker" / "kubernetes" / "values.yaml"
VALUES = yaml.safe_load(FILE.read_text())
LAUNCHER = VALUES["runLauncher"]["config"]["customRunLauncher"]
(CODE,) = VALUES["dagster-user-deployments"]["deployments"]
SERVERS = [CODE, VALUES["dagsterWebserver"], VALUES["dagsterDaemon"]]
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: none
clusters: [{name: none, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: none, context: {cluster: none, user: none}}]
users: [{name: none, user: {}}]
"""


@pytest.fixture
def launcher(tmp_path):
    """The launcher that the values describe, with a cluster that is not there."""
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    known = {"load_incluster_config": False, "kubeconfig_file": str(tmp_path / "kubeconfig")}
    config = LAUNCHER["config"] | known | {"job_namespace": "deepdistill"}
    return WakingK8sRunLauncher.from_config_value(None, config)


@pytest.fixture
def definitions(monkeypatch):
    for variable in CODE["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    return build_definitions()


def pod_of(launcher, definitions, asset):
    """Return the pod of one step as dagster-k8s builds it: the launcher's settings, the deployment's, the step's."""
    names = {"envSecrets": "env_secrets", "volumeMounts": "volume_mounts"}
    said = {names.get(key, key): CODE[key] for key in ("env", "envSecrets", "resources", "volumes", "volumeMounts")}
    said["env_secrets"] = [secret["name"] for secret in said["env_secrets"]]
    repository = RepositoryPythonOrigin(
        "python",
        ModuleCodePointer("jobs.definitions", "defs"),
        "deepdistill-gpu:0.1.0",
        container_context={"k8s": said},
    )
    job = definitions.resolve_implicit_global_asset_job_def()
    step = next(node for node in job.nodes if node.name == asset)
    with dg.DagsterInstance.ephemeral() as instance:
        launcher.register_instance(instance)
        run = instance.create_run_for_job(job, job_code_origin=JobPythonOrigin(job.name, repository))
        context = K8sContainerContext.create_for_run(run, launcher, include_run_tags=False)
    context = context.merge(K8sContainerContext(run_k8s_config=get_user_defined_k8s_config(step.tags)))
    config = context.get_k8s_job_config(repository.container_image, launcher)
    made = construct_dagster_k8s_job(config, ["dagster"], "step", context.run_k8s_config)
    return made.spec.template.spec


def test_the_launcher_is_kubernetes_own_and_takes_these_settings():
    assert (LAUNCHER["module"], LAUNCHER["class"]) == (WakingK8sRunLauncher.__module__, WakingK8sRunLauncher.__name__)
    schema = resolve_to_config_type(WakingK8sRunLauncher.config_type())
    checked = process_config(schema, LAUNCHER["config"] | {"job_namespace": "deepdistill"})
    assert checked.success, checked.errors


def test_a_step_of_the_gpu_pool_asks_for_a_gpu_beside_cpu_and_memory(launcher, definitions):
    pod = pod_of(launcher, definitions, "responses")
    asked = pod.containers[0].resources
    assert asked.limits == {GPU: "1", "memory": "32Gi"}
    assert asked.requests == CODE["resources"]["requests"]
    assert [toleration.key for toleration in pod.tolerations] == [GPU]


def test_a_step_on_cpu_asks_for_none(launcher, definitions):
    pod = pod_of(launcher, definitions, "clean_queries")
    assert pod.containers[0].resources.limits == {"memory": "32Gi"} and not pod.tolerations


def test_a_pod_cannot_write_to_its_image_gains_no_rights_and_has_its_secrets_by_name(launcher, definitions):
    pod = pod_of(launcher, definitions, "responses")
    (container,) = pod.containers
    security = container.security_context
    assert security.read_only_root_filesystem and security.run_as_non_root and security.run_as_user == 10001
    assert not security.allow_privilege_escalation and security.capabilities.drop == ["ALL"]
    assert security.seccomp_profile.type == "RuntimeDefault" and pod.security_context.fs_group == 10001
    assert [source.secret_ref.name for source in container.env_from if source.secret_ref] == ["deepdistill"]
    assert {mount.mount_path for mount in container.volume_mounts} >= {"/data", "/tmp", "/dagster", "/dev/shm"}
    assert {mount.name for mount in container.volume_mounts} <= {volume.name for volume in pod.volumes}


def test_every_asset_of_the_pool_has_the_tag_and_no_other(definitions):
    for asset in definitions.assets:
        said = json.loads(asset.op.tags.get(CONFIG_TAG, "null"))
        assert said == (gpu_request(1) if asset.op.pool == "gpu" else None), asset.key


@pytest.mark.parametrize(("steps", "name"), [("pods", "one_pod_per_step"), ("processes", "one_process_per_step")])
def test_the_environment_chooses_where_steps_run(monkeypatch, steps, name):
    monkeypatch.setenv("DEEPDISTILL_STEPS", steps)
    assert build_definitions("cluster").executor.name == name


def test_a_model_over_several_gpus_gets_them(monkeypatch):
    monkeypatch.setenv("DEEPDISTILL_STEPS", "pods")
    monkeypatch.setenv("DEEPDISTILL_TENSOR_PARALLEL", "4")
    job = build_definitions("cluster").resolve_implicit_global_asset_job_def()
    asked = job.executor_def.apply_config_mapping({"config": {}}).value["config"]["per_step_k8s_config"]
    assert asked["responses"].items() >= gpu_request(4).items() and "clean_queries" not in asked


def test_a_lost_wake_up_is_mended_here_too(launcher, tmp_path):
    class Cluster:
        def read_namespaced_job_status(self, *_, **__):
            raise AssertionError("asked")

    from jobs.dagster_home import prepare

    with dg.DagsterInstance.from_config(str(prepare(tmp_path / "dagster"))) as instance:
        launcher.register_instance(instance)
        launcher._api_client.batch_api = Cluster()
        store = instance.event_log_storage
        store.set_concurrency_slots("gpu", 1)
        store.add_pending_step("gpu", "run", "step", should_assign=False)
        run = instance.create_run_for_job(dg.GraphDefinition(name="g").to_job("j"))
        launcher.check_run_worker_health(run)
        assert store.claim_concurrency_slot("gpu", "run", "step").is_claimed


def test_the_servers_are_as_hard_as_the_pods_of_runs():
    for server in SERVERS:
        assert server["securityContext"] == LAUNCHER["config"]["security_context"]
        assert server["resources"]["requests"] and server["resources"]["limits"]["memory"]
    assert VALUES["dagsterWebserver"]["service"]["type"] == "ClusterIP"


def test_the_instance_has_the_limits_of_the_cluster():
    cluster = yaml.safe_load((CLONE / "docker" / "dagster.cluster.yaml").read_text())
    daemon, more = VALUES["dagsterDaemon"], VALUES["additionalInstanceConfig"]

    def snake(values):
        return {re.sub("([A-Z])", lambda found: f"_{found[1].lower()}", name): value for name, value in values.items()}

    assert snake(daemon["runRetries"]) == cluster["run_retries"]
    monitoring = snake(daemon["runMonitoring"])
    assert monitoring.items() >= (cluster["run_monitoring"] | {"start_timeout_seconds": 900}).items()
    assert more["concurrency"] == cluster["concurrency"]
    assert not VALUES["telemetry"]["enabled"] and not more["nux"]["enabled"]


def test_dagster_takes_the_limits_beside_the_queue(tmp_path):
    queue = VALUES["dagsterDaemon"]["runCoordinator"]["config"]["customRunCoordinator"]
    settings = VALUES["additionalInstanceConfig"] | {"run_coordinator": queue}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(settings))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        limits = instance.get_concurrency_config()
        assert isinstance(instance.run_coordinator, QueuedRunCoordinator)
        assert limits.run_queue_config.max_concurrent_runs == 8 and limits.pool_config.default_pool_limit == 1


def test_no_secret_is_in_the_values():
    assert VALUES["postgresql"]["postgresqlPassword"] == "" and not VALUES["generatePostgresqlPasswordSecret"]
    for server in SERVERS:
        assert server["envSecrets"] == [{"name": "deepdistill"}]
        assert not [entry for entry in server["env"] if re.search("KEY|SECRET|PASSWORD|URL", entry["name"])]
