"""Steps as Kubernetes pods: what a step of the pool `gpu` asks for, and the executor that starts the pods."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from deepdistill_resources.errors import MissingPackageError

CONFIG_TAG = "dagster-k8s/config"  # of an op; read by the executor below, and by no other
GPU = "nvidia.com/gpu"


def gpu_request(count: int) -> dict[str, Any]:
    """Return what a pod asks Kubernetes for to get GPUs, beside the CPU and memory of every pod."""
    return {
        "container_config": {"resources": {"limits": {GPU: str(count)}}},
        "pod_spec_config": {"tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]},
    }


def one_pod_per_step(gpus: int, gpu_steps: Sequence[str]) -> dg.ExecutorDefinition:
    """Return the executor that starts a pod for each step.

    Args:
        gpus: how many GPUs a step of the pool `gpu` needs; the tags of the steps ask for one.
        gpu_steps: the names of these steps.

    Raises:
        MissingPackageError: dagster-k8s is not installed.
    """
    try:
        from dagster_k8s import k8s_job_executor
    except ModuleNotFoundError as error:
        raise MissingPackageError("dagster-k8s is not installed.", "pip install 'deepdistill[cluster]'.") from error
    more = {step: gpu_request(gpus) for step in gpu_steps} if gpus > 1 else {}
    return k8s_job_executor.configured({"per_step_k8s_config": more}, name="one_pod_per_step")
