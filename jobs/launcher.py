"""Dagster's default run launcher, which also notices that a run's process, or its whole code server, is gone.

Without this a run whose code server was killed (power cut, out of memory) would stay STARTED for ever, and its pool
slots with it. `dagster.yaml` names the class; run monitoring asks it about every started run.
"""

import time
from collections.abc import Mapping
from typing import Any, Self

import dagster as dg
from dagster import DagsterRun
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._core.storage.event_log.base import EventLogStorage
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import ConfigurableClassData, deserialize_value

ANSWER_SECONDS = 10


class WatchfulRunLauncher(DefaultRunLauncher):
    """Asks the code server that started a run whether it still has it.

    `unreachable_seconds` in `dagster.yaml`: how long a code server may be silent before its runs count as lost.
    """

    def __init__(self, unreachable_seconds: float = 45.0, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(inst_data)
        self.unreachable_seconds = unreachable_seconds
        self.silent_since: dict[str, float] = {}

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Return what `dagster.yaml` may say."""
        return {"unreachable_seconds": dg.Field(float, is_required=False, default_value=45.0)}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> Self:
        """Make the launcher that `dagster.yaml` describes."""
        return cls(inst_data=inst_data, **config_value)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Tell run monitoring to ask."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Return RUNNING, NOT_FOUND (the code server does not know the run) or FAILED (there is no code server)."""
        hand_out_free_slots(self._instance.event_log_storage)
        client = self._get_grpc_client_for_termination(run.run_id)  # type: ignore[no-untyped-call]
        if client is None:  # not started by a code server: `deepdistill run` looks after its own
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        try:
            answer = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run.run_id), timeout=ANSWER_SECONDS)
        except DagsterUserCodeUnreachableError:
            return self._silent(run)
        self.silent_since.pop(run.run_id, None)
        if deserialize_value(answer, CanCancelExecutionResult).can_cancel:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "the code server does not have this run any more.")

    def _silent(self, run: DagsterRun) -> CheckRunHealthResult:
        seconds = time.monotonic() - self.silent_since.setdefault(run.run_id, time.monotonic())
        if seconds < self.unreachable_seconds:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "its code server does not answer.")
        return CheckRunHealthResult(WorkerStatus.FAILED, f"its code server has not answered for {seconds:.0f} s.")


def hand_out_free_slots(storage: EventLogStorage) -> None:
    """Wake steps that wait for a pool although it has a free slot.

    Dagster (1.13) can lose a wake-up: a step that begins to wait in the moment in which the last one gives its slot
    back is never told, and would wait for ever.
    """
    for pool in storage.get_concurrency_keys():
        info = storage.get_concurrency_info(pool)
        told = sum(step.assigned_timestamp is not None for step in info.pending_steps)
        if told < info.slot_count and told < len(info.pending_steps):
            storage.assign_pending_steps([pool])  # type: ignore[attr-defined]  # of every SQL store
