"""Where a cohort's tasks run: on this machine, on a scheduler that runs already, or on one that a cluster starts."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from histocodec.errors import StoreError, UnsupportedError, UsageError
from histocodec.extras import requires_extra

if TYPE_CHECKING:
    from distributed import Client

CLUSTERS = {  # the module, the package that has it, and the class
    "slurm": ("dask_jobqueue", "dask-jobqueue", "SLURMCluster"),
    "pbs": ("dask_jobqueue", "dask-jobqueue", "PBSCluster"),
    "sge": ("dask_jobqueue", "dask-jobqueue", "SGECluster"),
    "lsf": ("dask_jobqueue", "dask-jobqueue", "LSFCluster"),
    "kubernetes": ("dask_kubernetes.operator", "dask-kubernetes", "KubeCluster"),
}
CONNECT_SECONDS = 30.0  # to wait for a scheduler
QUIET = logging.CRITICAL  # Dask logs every worker that goes, at length; what matters is in the ledger


@dataclass(frozen=True)
class Place:
    """Where tasks run. At most one of `scheduler`, an address such as tcp://host:8786, and `cluster`, a key of
    CLUSTERS, is given; without both, `workers` processes on this machine, one for each two cores by default.

    `resources` are what each task takes of a worker, as Dask counts them: {"GPU": 1}. `memory` is the limit of a
    worker's memory on this machine, as Dask has it ("auto", "8GB"). `settings` are the cluster's own.
    """

    workers: int | None = None
    scheduler: str | None = None
    cluster: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    memory: str = "auto"
    settings: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scheduler is not None and self.cluster is not None:
            raise UsageError("--scheduler and --cluster exclude each other; give one")
        if self.scheduler is not None and self.workers is not None:
            raise UsageError("--workers and --scheduler exclude each other: that scheduler has its own workers")
        if self.cluster is not None and self.cluster not in CLUSTERS:
            raise UsageError(f"--cluster {self.cluster}: one of {', '.join(CLUSTERS)} is allowed")
        if self.settings and self.cluster is None:
            raise UsageError("--cluster-option is for --cluster; leave it out")

    @property
    def local_workers(self) -> int:
        """The number of processes on this machine."""
        return self.workers or max(1, cores() // 2)

    @property
    def threads(self) -> int | None:
        """The threads of each task: on this machine, its share of the cores; elsewhere, the worker knows."""
        if self.scheduler is not None or self.cluster is not None:
            return None
        return max(1, cores() // self.local_workers)

    def __str__(self) -> str:
        if self.scheduler is not None:
            return self.scheduler
        count = f"{self.workers or 1} jobs" if self.cluster else f"{self.local_workers} workers on this machine"
        return f"{self.cluster}, {count}" if self.cluster else count


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def connected(place: Place) -> Iterator["Client"]:
    """A client of a scheduler, which is started first unless it is named. What was started ends with the block.

    Raises UnsupportedError where a package is missing, StoreError where the scheduler cannot be reached or the cluster
    cannot be started.
    """
    with requires_extra("cohort"):
        import dask
        from distributed import Client
    # How often Dask gives a task to another worker after one died with it. Then it is the ledger's turn to count.
    settings = {"distributed.scheduler.allowed-failures": 2, "distributed.worker.daemon": True}
    with dask.config.set(settings):
        if place.scheduler is not None:
            try:
                client = Client(place.scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
            except (OSError, ValueError, TypeError) as exc:
                raise StoreError(
                    f"{place.scheduler}: no Dask scheduler can be reached there ({exc}); start one with `dask "
                    "scheduler`, and workers with `dask worker ADDRESS --nthreads 1`"
                ) from exc
            logging.getLogger("distributed").setLevel(QUIET)
            try:
                yield client
            finally:
                client.close(timeout=5)
            return
        with _cluster(place) as cluster, Client(cluster, timeout=CONNECT_SECONDS, set_as_default=False) as client:
            yield client


@contextmanager
def _cluster(place: Place) -> Iterator[Any]:
    if place.cluster is None:
        from distributed import LocalCluster

        cluster: Any = LocalCluster(
            n_workers=place.local_workers,
            threads_per_worker=1,  # a task has threads of its own
            processes=True,
            memory_limit=place.memory,
            resources=dict(place.resources) or None,
            dashboard_address="127.0.0.1:0",
            silence_logs=QUIET,
        )
    else:
        cluster = _started(place)
    try:
        yield cluster
    finally:
        cluster.close(timeout=5)


def _started(place: Place) -> Any:
    """A cluster of another kind, by its own package."""
    assert place.cluster is not None
    module, package, name = CLUSTERS[place.cluster]
    try:
        from importlib import import_module

        kind = getattr(import_module(module), name)
    except ImportError as exc:
        raise UnsupportedError(
            f"--cluster {place.cluster}: this needs the Python package {package}, which is not installed: pip install "
            f"{package}"
        ) from exc
    try:
        cluster = kind(**place.settings)
        cluster.scale(place.workers or 1)
    except Exception as exc:  # what these packages raise is of many kinds
        raise StoreError(f"--cluster {place.cluster}: cannot be started: {type(exc).__name__}: {exc}") from exc
    return cluster
