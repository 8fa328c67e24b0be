"""Dagster's launcher for Kubernetes, which also wakes steps that wait for a pool with a free slot.

A run is a pod here, and Kubernetes knows whether it lives; only the lost wake-up is left to look after.
"""

from dagster import DagsterRun
from dagster._core.launcher import CheckRunHealthResult
from dagster_k8s import K8sRunLauncher

from jobs.launcher import hand_out_free_slots


class WakingK8sRunLauncher(K8sRunLauncher):
    """K8sRunLauncher, and a look at the pools whenever run monitoring asks about a run."""

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Return what Kubernetes says about the run's pod."""
        hand_out_free_slots(self._instance.event_log_storage)
        return super().check_run_worker_health(run)
