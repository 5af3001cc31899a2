"""A small cohort while everything fails; `python -m histocodec.benchmarks.studies.cohort_faults` is the large one."""

import sys
from pathlib import Path

import pytest

from histocodec.benchmarks.studies.cohort_faults import FAULTS, FailingStore, study

pytest.importorskip("distributed")
pytest.importorskip("moto")


def test_a_store_fails_one_write_in_so_many() -> None:
    store = FailingStore(("", 0), every=10)
    faults = [store.fault() for _ in range(30)]
    assert [number for number, fault in enumerate(faults, 1) if fault] == [10, 20, 30]
    assert {fault for fault in faults if fault} == set(FAULTS)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kills processes")
def test_nothing_is_lost_or_doubled_when_workers_scheduler_and_store_fail(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HISTOCODEC_MODELS", str(tiny_file.parent))
    found = study("scheduler", slides=12, kills=1, scheduler_kills=1, every=5, delay=0.4, model=str(tiny_file))
    assert found.wrong == ()
    assert (found.done, found.worker_kills, found.scheduler_kills) == (12, 1, 1), str(found)
    assert found.failed_writes >= 2
