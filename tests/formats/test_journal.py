"""The journal: what was finished stays finished, and whatever interrupts, one whole container is left."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from histocodec.errors import OutputError, UsageError
from histocodec.formats.container.attributes import KEY
from histocodec.formats.container.files import write_atomically
from histocodec.formats.container.layout import shard_key
from histocodec.formats.container.read import is_container
from histocodec.formats.encode import journal as module
from histocodec.formats.encode import lock
from histocodec.formats.encode.journal import Journal, journal_path, old_path, partial_path, source_identity
from histocodec.formats.encode.records import Change, Round, ShardRecord
from histocodec.geometry import ChunkKey, ShardKey

FINGERPRINT: dict[str, module.Json] = {
    "source": {"name": "a.svs", "size": 5, "mtime": 7},
    "options": {"quality": 50, "levels": [0, 1]},
    "model": "0" * 64,
}

SIZES, CHECKS = (np.array(values, "<u4").tobytes() for values in ((5, 0, 6, 7), (1, 0, 2, 3)))


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    return tmp_path / "a.zarr"


def container(path: Path, content: str) -> None:
    """A folder that passes for a container, and can be told from another."""
    path.mkdir(exist_ok=True)
    (path / "zarr.json").write_text(json.dumps({"attributes": {KEY: {}}}))
    (path / "content").write_text(content)


def content(path: Path) -> str:
    return (path / "content").read_text()


def record(journal: Journal, row: int, data: bytes) -> ShardRecord:
    made = ShardRecord.of(ShardKey(0, row, 0), data, b"\x01\x00\x02\x01" if data else bytes(4), bytes(4), SIZES, CHECKS)
    if data:
        write_atomically(journal.partial / shard_key(ShardKey(0, row, 0)), data)
    journal.append(made)
    return made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_finished_shards_are_known_after_a_resume(dst: Path) -> None:
    with Journal.start(dst, FINGERPRINT) as journal:
        made = [record(journal, 0, b"shard"), record(journal, 1, b"")]
    assert names(dst.parent) == ["a.zarr.journal", "a.zarr.partial"]
    with Journal.start(dst, FINGERPRINT, resume=True) as journal:
        assert list(journal.records.values()) == made
        assert journal.records[ShardKey(0, 0, 0)].tiles == b"\x01\x00\x02\x01"


def test_its_lines_are_those_of_every_version(dst: Path) -> None:
    """So that one resumes what another began."""
    changes = (Change(ChunkKey(0, 2, 5), 1, 70), Change(ChunkKey(0, 3, 4), 2, 40))
    with Journal.start(dst, {"model": "m"}) as journal:
        record(journal, 7, b"shard")
        journal.begin(Round(0, changes))
    lines = journal_path(dst).read_text().splitlines()
    assert [line.rpartition("  ")[0] for line in lines] == [
        '{"journal":3,"created":"2025-12-01T00:00:00Z","fingerprint":{"model":"m"}}',
        '{"level":0,"row":7,"column":0,"file_bytes":5,'
        '"sha256":"df3598cd66f1bb5bc4e2c17be89b7c7ecf0c81e53939f471a6b72db8d139edae",'
        '"tiles":"01000201","quality":"00000000","sizes":"05000000000000000600000007000000",'
        '"checks":"01000000000000000200000003000000"}',
        '{"level":0,"changes":[[2,5,1,70],[3,4,2,40]]}',
    ]
    with Journal.start(dst, {"model": "m"}, resume=True) as journal:
        assert list(journal.rounds) == [Round(0, changes)]


def test_it_keeps_the_time_when_the_encode_began(dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    before = datetime.now(UTC).replace(microsecond=0)
    with Journal.start(dst, FINGERPRINT) as journal:
        created = journal.created
    assert before <= datetime.strptime(created, "%Y-%m-%dT%H:%M:%S%z") <= datetime.now(UTC)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    with Journal.start(dst, FINGERPRINT, resume=True) as journal:
        assert journal.created == created
    with Journal.start(dst, FINGERPRINT, overwrite=True) as journal:
        assert journal.created == "1970-01-01T00:00:00Z"


@pytest.mark.parametrize("epoch", ["x", "-1", "1.5", "1" * 40, str(module.LATEST + 1)])
def test_a_source_date_that_is_none_is_refused(dst: Path, monkeypatch: pytest.MonkeyPatch, epoch: str) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH is"):
        Journal.start(dst, FINGERPRINT)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(module.LATEST))
    with Journal.start(dst, FINGERPRINT) as journal:
        assert journal.created == "9999-12-31T23:59:59Z"


def test_resuming_nothing_starts_anew(dst: Path) -> None:
    with Journal.start(dst, FINGERPRINT, resume=True) as journal:
        assert not journal.records
        assert journal.partial.is_dir()


def test_a_line_cut_short_is_ignored_and_written_over(dst: Path) -> None:
    with Journal.start(dst, FINGERPRINT) as journal:
        first = record(journal, 0, b"one")
    whole = journal_path(dst).read_bytes()
    with Journal.start(dst, FINGERPRINT, resume=True) as journal:
        second = record(journal, 1, b"two")
    both = journal_path(dst).read_bytes()
    for size in range(len(whole), len(both)):
        journal_path(dst).write_bytes(both[:size])
        with Journal.start(dst, FINGERPRINT, resume=True) as journal:
            assert list(journal.records.values()) == [first]
            record(journal, 1, b"two")
        assert journal_path(dst).read_bytes() == both
    with Journal.start(dst, FINGERPRINT, resume=True) as journal:
        assert list(journal.records.values()) == [first, second]


def test_a_line_that_was_altered_is_no_promise_nor_is_what_follows(dst: Path) -> None:
    """A shard of background has no file that could contradict its line."""
    with Journal.start(dst, FINGERPRINT) as journal:
        for row in range(3):
            record(journal, row, b"")
    sound = journal_path(dst).read_bytes()
    journal_path(dst).write_bytes(sound.replace(b'"row":1', b'"row":5'))
    with Journal.start(dst, FINGERPRINT, resume=True) as journal:
        assert list(journal.records) == [ShardKey(0, 0, 0)]


def test_a_shard_that_is_not_as_recorded_is_encoded_again(dst: Path) -> None:
    with Journal.start(dst, FINGERPRINT) as journal:
        for row in range(4):
            record(journal, row, b"shard" if row < 3 else b"")
    (partial_path(dst) / shard_key(ShardKey(0, 0, 0))).write_bytes(b"shart")
    (partial_path(dst) / shard_key(ShardKey(0, 1, 0))).unlink()
    (partial_path(dst) / shard_key(ShardKey(0, 3, 0))).parent.mkdir(parents=True)
    (partial_path(dst) / shard_key(ShardKey(0, 3, 0))).write_bytes(b"stray")
    with Journal.start(dst, FINGERPRINT, resume=True) as journal:
        assert list(journal.records) == [ShardKey(0, 2, 0)]


def test_files_of_a_killed_writer_are_removed(dst: Path) -> None:
    with Journal.start(dst, FINGERPRINT) as journal:
        deep = journal.partial / "latents/0" / "c"
        deep.mkdir(parents=True)
        (journal.partial / ".0.123.tmp").write_bytes(b"half")
        (deep / ".0.45.tmp").write_bytes(b"half")
        (deep / "0").write_bytes(b"whole")
    with Journal.start(dst, FINGERPRINT, resume=True) as journal:
        assert names(journal.partial) == ["latents"]
        assert names(deep) == ["0"]


def test_looking_for_files_of_a_killed_writer_follows_no_link(dst: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".0.1.tmp").write_bytes(b"somebody's")
    Journal.start(dst, FINGERPRINT).close()
    (partial_path(dst) / "link").symlink_to(elsewhere)
    Journal.start(dst, FINGERPRINT, resume=True).close()
    assert names(elsewhere) == [".0.1.tmp"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": {"name": "a.svs", "size": 6, "mtime": 7}}, "source.size was 5 and now is 6"),
        ({"options": {"quality": 51, "levels": [0, 1]}}, "options.quality was 50 and now is 51"),
        ({"options": {"quality": 50, "levels": [0]}}, r"options.levels was \[0, 1\] and now is \[0\]"),
        ({"model": "1" * 64}, "model was '0{64}'"),
        ({"more": 1}, "more was None and now is 1"),
    ],
)
def test_another_request_is_not_resumed(dst: Path, change: dict[str, module.Json], message: str) -> None:
    with Journal.start(dst, FINGERPRINT) as journal:
        record(journal, 0, b"shard")
    before = journal_path(dst).read_bytes()
    with pytest.raises(UsageError, match=message):
        Journal.start(dst, {**FINGERPRINT, **change}, resume=True)
    assert journal_path(dst).read_bytes() == before
    assert partial_path(dst).is_dir()


def test_a_tuple_in_the_fingerprint_is_the_list_that_json_makes_of_it(dst: Path) -> None:
    pairs: dict[str, module.Json] = {"levels": (0, 1)}  # type: ignore[dict-item]  # what callers do
    Journal.start(dst, pairs).close()
    Journal.start(dst, pairs, resume=True).close()


def test_an_interrupted_encode_is_not_lost_by_accident(dst: Path) -> None:
    with Journal.start(dst, FINGERPRINT) as journal:
        record(journal, 0, b"shard")
    with pytest.raises(OutputError, match="--resume continues it, --overwrite starts anew"):
        Journal.start(dst, FINGERPRINT)
    with Journal.start(dst, FINGERPRINT, overwrite=True) as journal:
        assert not journal.records
        assert names(journal.partial) == []


def test_two_encoders_do_not_share_a_target(dst: Path) -> None:
    with Journal.start(dst, FINGERPRINT):
        with pytest.raises(OutputError, match="another encode is writing"):
            Journal.start(dst, FINGERPRINT, resume=True)
        code = (
            "import sys; from pathlib import Path; from histocodec.formats.encode.journal import Journal\n"
            "try: Journal.start(Path(sys.argv[1]), {}, overwrite=True)\n"
            "except Exception as exc: print(type(exc).__name__)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(dst)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "BusyError"
    Journal.start(dst, FINGERPRINT, resume=True).close()


def test_a_lock_on_a_journal_that_was_removed_is_no_lock(dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner ends between another's opening of the journal and locking it."""
    real = fcntl.flock
    calls: list[int] = []

    def flock(descriptor: int, operation: int) -> None:
        if not calls:
            journal_path(dst).unlink()
        calls.append(operation)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with Journal.start(dst, FINGERPRINT):
        assert len(calls) == 2
        assert journal_path(dst).exists()


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSYS) -> None:
    """As on a file system without locks. A lock file that is held is refused at once."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(lock, "PATIENCE", 0.2)


def killed(dst: Path, host: str = "") -> None:
    """A process starts a journal where there are no locks, and dies. `host` is its host's name, where that differs."""
    code = (
        "import errno, fcntl, os, signal, socket, sys; from pathlib import Path\n"
        "from histocodec.formats.encode.journal import Journal\n"
        "def flock(*_): raise OSError(errno.ENOLCK, 'no locks')\n"
        "fcntl.flock = flock\n"
        "if sys.argv[2]: socket.gethostname = lambda: sys.argv[2]\n"
        "journal = Journal.start(Path(sys.argv[1]), {}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(dst), host], check=False).returncode < 0


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL])
def test_a_file_system_without_locks_will_do(dst: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    without_locks(monkeypatch, number)
    with Journal.start(dst, FINGERPRINT) as journal:
        made = record(journal, 0, b"shard")
        assert names(dst.parent) == ["a.zarr.journal", "a.zarr.journal.lock", "a.zarr.partial"]
    assert names(dst.parent) == ["a.zarr.journal", "a.zarr.partial"]
    with Journal.start(dst, FINGERPRINT, resume=True) as journal:
        assert list(journal.records.values()) == [made]
        container(journal.partial, "new")
        journal.commit()
    assert names(dst.parent) == ["a.zarr"]
    with Journal.start(dst.with_name("b.zarr"), FINGERPRINT) as journal:
        journal.discard()
    assert names(dst.parent) == ["a.zarr"]


def test_two_encoders_do_not_share_a_target_without_locks_either(dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        without_locks(patch)
        holder = Journal.start(dst, FINGERPRINT)
        with pytest.raises(
            OutputError, match=r"another encode is writing.*a\.zarr\.journal\.lock.*Remove this file if"
        ):
            Journal.start(dst, FINGERPRINT, resume=True)
    with pytest.raises(OutputError, match="another encode is writing"):  # nor does one that could lock
        Journal.start(dst, FINGERPRINT, resume=True)
    holder.close()
    Journal.start(dst, FINGERPRINT, resume=True).close()


def test_a_lock_file_of_a_killed_encode_is_taken_over(dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(dst)
    assert names(dst.parent) == ["a.zarr.journal", "a.zarr.journal.lock", "a.zarr.partial"]
    without_locks(monkeypatch)
    Journal.start(dst, {}, resume=True).close()
    assert names(dst.parent) == ["a.zarr.journal", "a.zarr.partial"]


def test_a_lock_file_of_another_host_holds_until_it_is_removed(dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(dst, "elsewhere")
    without_locks(monkeypatch)
    with pytest.raises(
        OutputError, match=r"a\.zarr\.journal\.lock.* on elsewhere.*Remove this file if that process has"
    ):
        Journal.start(dst, {}, resume=True)
    lock.lock_file_path(journal_path(dst)).unlink()
    Journal.start(dst, {}, resume=True).close()


def test_where_an_open_file_cannot_be_removed_it_is_closed_first(dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    real = Path.unlink
    journal = Journal.start(dst, FINGERPRINT)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path == journal_path(dst) and not journal._file.file.closed:
            raise PermissionError(errno.EACCES, "in use")
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    journal.discard()
    assert names(dst.parent) == []


def test_committing_puts_the_container_in_place(dst: Path) -> None:
    with Journal.start(dst, FINGERPRINT) as journal:
        container(journal.partial, "new")
        journal.commit()
    assert names(dst.parent) == ["a.zarr"]
    assert content(dst) == "new"


def test_an_existing_container_is_replaced_only_when_asked(dst: Path) -> None:
    container(dst, "old")
    with pytest.raises(OutputError, match="exists; --overwrite replaces it"):
        Journal.start(dst, FINGERPRINT)
    assert names(dst.parent) == ["a.zarr"]
    with Journal.start(dst, FINGERPRINT, overwrite=True) as journal:
        container(journal.partial, "new")
        assert content(dst) == "old"
        journal.commit(overwrite=True)
    assert names(dst.parent) == ["a.zarr"]
    assert content(dst) == "new"


def test_what_appears_meanwhile_is_not_overwritten(dst: Path) -> None:
    with Journal.start(dst, FINGERPRINT) as journal:
        container(journal.partial, "new")
        container(dst, "other")
        with pytest.raises(OutputError, match="exists"):
            journal.commit()
    assert content(dst) == "other"
    assert content(partial_path(dst)) == "new"


def test_what_is_no_container_is_never_overwritten(dst: Path) -> None:
    dst.mkdir()
    (dst / "thesis.txt").write_text("x")
    with pytest.raises(OutputError, match="is no histocodec container, so --overwrite leaves it alone"):
        Journal.start(dst, FINGERPRINT, overwrite=True)
    assert names(dst.parent) == ["a.zarr"]
    assert names(dst) == ["thesis.txt"]


def test_a_neighbour_called_old_is_never_touched(dst: Path) -> None:
    container(old_path(dst), "a neighbour")
    with Journal.start(dst, FINGERPRINT) as journal:
        container(journal.partial, "new")
        journal.commit()
    assert content(old_path(dst)) == "a neighbour"
    with pytest.raises(OutputError, match=r"a\.zarr\.old: is in the way"):
        Journal.start(dst, FINGERPRINT, overwrite=True)
    assert content(old_path(dst)) == "a neighbour"


@pytest.mark.parametrize("step", range(5))
def test_an_interrupted_commit_leaves_the_old_or_the_new_whole(
    dst: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The process dies before the n-th change of the disk within commit."""
    container(dst, "old")
    journal = Journal.start(dst, FINGERPRINT, overwrite=True)
    container(journal.partial, "new")
    left = [step]

    def dying(real: object) -> object:
        def act(*args: object, **kwargs: object) -> object:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return real(*args, **kwargs)  # type: ignore[operator]  # whichever function it stands for

        return act

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying(Path.rename))
        patch.setattr(module, "_remove", dying(module._remove))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        try:
            journal.commit(overwrite=True)
        except KeyboardInterrupt:
            journal.close()
    whole = [path for path in (dst, partial_path(dst), old_path(dst)) if is_container(path)]
    assert {content(path) for path in whole} >= {"new"}
    with pytest.raises(OutputError, match="exists"):  # the next encode first puts things right
        Journal.start(dst, FINGERPRINT)
    assert is_container(dst)
    assert not old_path(dst).exists()
    assert content(dst) == ("old" if step == 0 else "new")


def test_discarding_leaves_nothing(dst: Path) -> None:
    with Journal.start(dst, FINGERPRINT) as journal:
        record(journal, 0, b"shard")
        journal.discard()
    assert names(dst.parent) == []


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        Journal.start(tmp_path / "file" / "a.zarr", FINGERPRINT)
    with pytest.raises(UsageError, match="is no name"):
        Journal.start(Path("/"), FINGERPRINT)


def test_a_full_disk_is_a_clear_error(dst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with Journal.start(dst, FINGERPRINT) as journal:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"a\.zarr\.journal: cannot be written: No space left on device"):
            record(journal, 0, b"")


def test_the_source_is_known_by_name_size_and_time(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_bytes(b"12345")
    os.utime(tmp_path / "a.svs", ns=(0, 7))
    assert source_identity(tmp_path / "a.svs") == FINGERPRINT["source"]
