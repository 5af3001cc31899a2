"""The encoder's journal: what makes an interrupted encode resumable, and its result complete or absent.

    <dst>.partial/   the container as it grows
    <dst>.journal    JSON, with a checksum at the end of each line: the fingerprint of the request, then a line for
                     every finished shard and, with --min-psnr, one for every round of changes, written before the
                     first change is made; with --on-error background, lines that name what could not be read, written
                     before the shards that lack it
    <dst>.old        the container that is being replaced, for the moment in which both names change
    <dst>.journal.lock  only on file systems without locks: who holds the journal (lock.py)

A shard's line is written after the shard itself is on the disk, so a line is a promise. A line that was cut short or
altered promises nothing, and neither does any line after it.

Where `commit` replaces a container, it notes that in the journal, moves the old container aside, gives the new one its
name, and removes first the old one and then the journal. Whatever stops it in between, the new container is whole at
<dst>.partial or <dst>, and the old one at <dst> or <dst>.old. The next encode to the same place first finishes what the
note began (`_recover`): it moves the new container to <dst> if nothing is there, and removes <dst>.old. To do the same
by hand, run `mv <dst>.partial <dst>`, or `mv <dst>.old <dst>` to go back, and remove what remains.

A container that is one file (NAME.hcz) is packed from <dst>.partial, and takes the place of an old one in one step. If
that is interrupted, the next encode to the same place packs it again.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Self

from histocodec.errors import FormatError, OutputError, UsageError
from histocodec.formats.container.arrays import METADATA
from histocodec.formats.container.digests import file_digest
from histocodec.formats.container.fields import Node, parse_json
from histocodec.formats.container.files import sync_folder, temporary_files
from histocodec.formats.container.layout import shard_key
from histocodec.formats.container.pack import write_zip
from histocodec.formats.container.read import is_container
from histocodec.formats.container.shard import crc32c
from histocodec.formats.container.zipped import SUFFIX
from histocodec.formats.encode.lock import LockedFile
from histocodec.formats.encode.records import Losses, Round, ShardRecord
from histocodec.formats.encode.unreadable import Unreadable
from histocodec.formats.encode.upload import upload
from histocodec.geometry import ShardKey
from histocodec.sources.files import slide_files
from histocodec.strict_json import well_formed

JOURNAL_VERSION = 3
LATEST = 253_402_300_799  # seconds since 1970: the end of the year 9999, the last that `created` can name
CHECKSUM = 8  # hexadecimal digits at a line's end, after two spaces: crc32c of the text before them
FINISHED = "finished"  # the key of the last line; its value says whether an old container is replaced

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


class Journal:
    """The one encode that works on `dst`. Use it as a context manager: leaving the block without `commit` or `discard`
    keeps everything for a later `resume`."""

    def __init__(
        self,
        dst: Path,
        file: LockedFile,
        records: dict[ShardKey, ShardRecord],
        rounds: list[Round],
        unreadable: Unreadable,
        created: str,
        url: str | None,
    ) -> None:
        self._url = url  # where the finished container is sent, in place of `dst`
        self.dst, self._file, self._records, self._rounds = dst, file, records, rounds
        self.created = created  # when the encode began, in UTC; a resumed one keeps it
        self.unreadable = unreadable  # what of the source could not be read; an earlier run's is in it

    @classmethod
    def start(
        cls,
        dst: Path,
        fingerprint: Mapping[str, Json],
        *,
        resume: bool = False,
        overwrite: bool = False,
        url: str | None = None,
        created: int | None = None,
    ) -> "Journal":
        """Claims `dst` for this encode. With `url`, `dst` is only where the container grows, and `commit` sends it.
        `created`, in seconds since 1970, takes the place of the present time.

        With `resume`, an interrupted encode continues if its fingerprint is the same; UsageError names the field that
        differs. Without an interrupted encode, or with `overwrite`, it starts anew. Raises OutputError where `dst` is
        in the way, another encode is writing to it, or an interrupted one would be lost.
        """
        if not dst.name:
            raise UsageError(f"{dst}: is no name for a container; give a path such as slide.hcz")
        fingerprint = json.loads(well_formed(json.dumps(dict(fingerprint), ensure_ascii=False)))  # of any file name
        file = LockedFile(journal_path(dst))
        try:
            lines = _lines(file)
            _recover(dst, lines)
            _check_free(dst, overwrite=overwrite)
            if lines and partial_path(dst).is_dir():
                if resume:
                    return cls._resumed(dst, file, lines, fingerprint, url)
                if not overwrite:
                    raise OutputError(
                        f"{dst}: an interrupted encode is at {partial_path(dst)}; --resume continues it, "
                        "--overwrite starts anew"
                    )
            _remove(partial_path(dst))
            journal = cls(dst, file, {}, [], Unreadable(), _time_text(created), url)
            _truncate(file, 0)
            journal._write({"journal": JOURNAL_VERSION, "created": journal.created, "fingerprint": fingerprint})
            journal._make_partial()
            return journal
        except BaseException:
            if partial_path(dst).is_dir():
                file.close()
            else:  # then nobody can use the journal
                file.remove()
            raise

    @classmethod
    def _resumed(
        cls, dst: Path, file: LockedFile, lines: list[bytes], fingerprint: Mapping[str, Json], url: str | None
    ) -> "Journal":
        name = str(journal_path(dst))
        first = parse_json(lines[0], f"{name}: line 1")
        first.member("journal").integer(JOURNAL_VERSION, JOURNAL_VERSION)
        head = first.fields("journal", "created", "fingerprint")
        created = head["created"].text(20)
        difference = _difference(head["fingerprint"].value, fingerprint)
        if difference:
            raise UsageError(f"{dst}: cannot be resumed: {difference}; --overwrite starts anew")
        nodes = [parse_json(line, f"{name}: line {n}") for n, line in enumerate(lines[1:], 2)]
        nodes = [node for node in nodes if not _is_finished_note(node)]
        rounds = [Round.from_json(node) for node in nodes if _is_round(node)]
        losses = [Losses.from_json(node) for node in nodes if _is_losses(node)]
        nodes = [node for node in nodes if not _is_round(node) and not _is_losses(node)]
        records = [ShardRecord.from_json(node) for node in nodes]
        size = sum(len(line) + 2 + CHECKSUM + 1 for line in lines)
        _truncate(file, size)  # drops a line that was cut short
        for name in temporary_files(partial_path(dst)):
            _remove(partial_path(dst) / name)
        latest = {record.key: record for record in records}
        sound = {key: record for key, record in latest.items() if _is_as_recorded(partial_path(dst), record)}
        unreadable = Unreadable(place for loss in losses for place in loss.places)
        return cls(dst, file, sound, rounds, unreadable, created, url)

    @property
    def partial(self) -> Path:
        """The folder of the growing container."""
        return partial_path(self.dst)

    @property
    def records(self) -> Mapping[ShardKey, ShardRecord]:
        """The finished shards. The files of those from an earlier run match their SHA-256."""
        return self._records

    @property
    def rounds(self) -> Sequence[Round]:
        """The rounds of changes that were begun, in order. Those of an earlier run may be half made."""
        return self._rounds

    def append(self, record: ShardRecord) -> None:
        """Notes a shard that is on the disk, in place of an earlier record of it, and before it what could not be read
        since the last note. Returns once the notes are on the disk, too. Raises OutputError."""
        lost = self.unreadable.take_fresh()
        if lost:
            self._write(Losses(tuple(lost)).to_json())
        self._write(record.to_json())
        self._records[record.key] = record

    def begin(self, changes: Round) -> None:
        """Notes changes before the first of them is made. Returns once the note is on the disk. Raises OutputError."""
        self._write(changes.to_json())
        self._rounds.append(changes)

    def commit(self, *, overwrite: bool = False) -> None:
        """Gives the finished container its name, and ends the journal. The module's docstring says what holds when this
        is interrupted. Raises OutputError where something is in the way."""
        if self._url is not None:
            upload(self.partial, self._url)
            _remove(self.partial)
            self._end()
            return
        _check_free(self.dst, overwrite=overwrite)
        replaces = self.dst.exists()
        self._write({FINISHED: replaces})
        if is_archive(self.dst):
            write_zip(self.partial, self.dst)
            _remove(self.partial)
            self._end()
            return
        try:
            if replaces:
                self.dst.rename(old_path(self.dst))
            self.partial.rename(self.dst)
            sync_folder(self.dst.parent)
        except OSError as exc:
            raise OutputError(f"{self.dst}: cannot be put in place: {exc.strerror or exc}") from exc
        if replaces:
            _remove(old_path(self.dst))
        self._end()

    def discard(self) -> None:
        """Removes the unfinished container and the journal."""
        _remove(self.partial)
        self._end()

    def close(self) -> None:
        """Releases `dst`, and keeps what is there for `resume`."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _end(self) -> None:
        self._file.remove()

    def _make_partial(self) -> None:
        try:
            self.partial.mkdir(parents=True)
        except OSError as exc:
            raise OutputError(f"{self.partial}: cannot be made: {exc.strerror or exc}") from exc

    def _write(self, entry: Mapping[str, object]) -> None:
        try:
            file = self._file.file
            file.seek(0, os.SEEK_END)
            text = json.dumps(entry, separators=(",", ":")).encode()
            file.write(text + b"  " + crc32c(text).hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError as exc:
            raise OutputError(f"{journal_path(self.dst)}: cannot be written: {exc.strerror or exc}") from exc


def creation_time() -> int:
    """Seconds since 1970: of SOURCE_DATE_EPOCH, with which the same encode gives the same bytes on any day, or the
    present. Raises UsageError where the variable is no time."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if epoch and not (epoch.isdecimal() and int(epoch) <= LATEST):
        raise UsageError(f"SOURCE_DATE_EPOCH is {epoch[:40]!r}; a number of seconds from 0 to {LATEST} is allowed")
    return int(epoch) if epoch else int(time.time())


def _time_text(created: int | None) -> str:
    """A time in UTC, by default `creation_time`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(creation_time() if created is None else created))


def partial_path(dst: Path) -> Path:
    """Where the container grows that will be at `dst`."""
    return dst.with_name(dst.name + ".partial")


def journal_path(dst: Path) -> Path:
    """Where the journal of the encode to `dst` is."""
    return dst.with_name(dst.name + ".journal")


def old_path(dst: Path) -> Path:
    """Where the container at `dst` is for the moment in which it is replaced."""
    return dst.with_name(dst.name + ".old")


def source_identity(path: Path) -> dict[str, Json]:
    """What tells one source from another, for the fingerprint: name, size of all its files in bytes, and the time of
    the latest in nanoseconds."""
    status = [file.stat() for file in slide_files(path)]
    return {"name": path.name, "size": sum(s.st_size for s in status), "mtime": max(s.st_mtime_ns for s in status)}


def is_archive(dst: Path) -> bool:
    """Whether a container of this name is one file rather than a folder."""
    return dst.suffix.lower() == SUFFIX


def _recover(dst: Path, lines: list[bytes]) -> None:
    """Finishes a `commit` that was interrupted. Touches nothing unless the journal has its note: a <dst>.old may belong
    to anybody."""
    noted = [json.dumps({FINISHED: replaces}, separators=(",", ":")).encode() for replaces in (False, True)]
    if not lines or lines[-1] not in noted:
        return
    old, partial = old_path(dst), partial_path(dst)
    if is_archive(dst):
        if (partial / METADATA).is_file():  # it is complete; the archive at dst is the old one, the new one, or none
            write_zip(partial, dst)
        _remove(partial)
        return
    if lines[-1] == noted[False]:
        return
    if old.is_dir() and not dst.exists() and partial.is_dir():
        partial.rename(dst)
    if old.is_dir() and dst.exists() and not partial.exists():
        _remove(old)


def _is_finished_note(node: Node) -> bool:
    return isinstance(node.value, dict) and list(node.value) == [FINISHED]


def _is_losses(node: Node) -> bool:
    return isinstance(node.value, dict) and "unreadable" in node.value


def _is_round(node: Node) -> bool:
    return isinstance(node.value, dict) and "changes" in node.value


def _check_free(dst: Path, *, overwrite: bool) -> None:
    """Raises OutputError unless `dst` can be written. `--overwrite` replaces containers only, and never removes a
    folder of anything else."""
    if not dst.exists() and not dst.is_symlink():
        return
    if not overwrite:
        raise OutputError(f"{dst}: exists; --overwrite replaces it")
    if not is_container(dst):
        raise OutputError(f"{dst}: is no histocodec container, so --overwrite leaves it alone; remove it yourself")
    if old_path(dst).exists():
        raise OutputError(f"{old_path(dst)}: is in the way of replacing {dst}; move it elsewhere")


def _lines(file: LockedFile) -> list[bytes]:
    """The sound lines of a journal, without their checksums. A last line without its end promises nothing."""
    try:
        file.file.seek(0)
        lines = file.file.read().split(b"\n")[:-1]
    except OSError as exc:
        raise OutputError(f"{file.path}: cannot be read: {exc.strerror or exc}") from exc
    split = ((line[: -CHECKSUM - 2], line[-CHECKSUM:]) for line in lines)
    return [text for text, _ in takewhile(lambda pair: crc32c(pair[0]).hex().encode() == pair[1], split)]


def _truncate(file: LockedFile, size: int) -> None:
    try:
        file.file.truncate(size)
        file.file.flush()
    except OSError as exc:
        raise OutputError(f"{file.path}: cannot be written: {exc.strerror or exc}") from exc


def _difference(before: object, now: object, name: str = "") -> str:
    """The first field in which two fingerprints differ, in words; empty where they agree."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            if key not in before or key not in now or before[key] != now[key]:
                return _difference(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        return ""
    return "" if before == now else f"{name} was {before!r} and now is {now!r}"


def _is_as_recorded(partial: Path, record: ShardRecord) -> bool:
    """Whether the shard is on the disk as it was written. If not, it is encoded again."""
    path = partial / shard_key(record.key)
    if not record.sha256:
        return not path.exists()
    try:
        return path.stat().st_size == record.file_bytes and file_digest(path).hex() == record.sha256
    except (OSError, FormatError):
        return False


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as exc:
        raise OutputError(f"{path}: cannot be removed: {exc.strerror or exc}") from exc
