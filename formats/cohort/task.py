"""What a worker does with one slide: encodes it, verifies its container, or adds vectors for search to that.

A task and what comes of it are values of JSON, so that nothing of ours has to be unpickled. A task never raises: every
error is a result, whose kind says whether trying again may help.
"""

import os
import socket
import time
from calendar import timegm
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from hashlib import file_digest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocodec.errors import (
    BusyError,
    FormatError,
    HistocodecError,
    OutputError,
    StoreError,
    UnsupportedError,
    UsageError,
)
from histocodec.formats.cohort.ledger import Kind
from histocodec.formats.cohort.objects import local_copy, object_sha256
from histocodec.formats.cohort.policy import encode_options
from histocodec.formats.container.abstract_container import Container
from histocodec.formats.container.locations import is_url
from histocodec.formats.container.read import open_container, sizes
from histocodec.version import VERSION

if TYPE_CHECKING:
    from histocodec.formats.encode.options import EncodeOptions

# Errors that the next try will not meet: the slide, or what is asked of it, has to change first.
LASTING = ("UsageError", "UnsupportedError", "MissingModelError")
LOST = "WorkerLost"  # the kind of error where a worker died with the slide, more than once
BUSY = "BusyError"

Json = dict[str, object]


@dataclass(frozen=True)
class Task:
    """One slide to work on. `threads` None: all cores of the worker, shared among the slides it works on at a time."""

    kind: Kind
    number: int
    source: str
    result: str
    options: Mapping[str, object]
    created: int
    parts: tuple[str, ...] = ()
    device: str = "auto"
    threads: int | None = None
    verify: bool = False  # read back what was written
    overwrite: bool = False  # replace a container that is not of this slide, or was encoded in another way
    version: str = VERSION
    detail: Mapping[str, object] = field(default_factory=dict)  # of `embed`: level, overwrite; of `verify`: quick

    def to_json(self) -> Json:
        """The task as Dask sends it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Json) -> "Task":
        """What `to_json` made."""
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})  # type: ignore[arg-type]


def perform(values: Json, threads: int | None = None) -> Json:
    """Works on a slide, on a worker. Returns the columns of the ledger that change, and `number`; `lasting` says that
    trying again would not help. `threads` are those of the worker's own cores that are free for this slide."""
    task, began = Task.from_json(values), time.perf_counter()
    outcome: Json = {"number": task.number, "worker": f"{socket.gethostname()}:{os.getpid()}", "version": VERSION}
    try:
        if task.version != VERSION:
            raise StoreError(
                f"a worker on {socket.gethostname()} has histocodec {VERSION}, and the run {task.version}; install the "
                "same on both"
            )
        outcome |= WORK[task.kind](task, task.threads or threads)
        outcome |= {"state": "done", "error_kind": None, "error": None}
    except HistocodecError as exc:
        outcome |= _failure(type(exc).__name__, str(exc))
        if task.kind != "encode" and isinstance(exc, FormatError):
            outcome["lasting"] = True
    except MemoryError:
        outcome |= _failure("MemoryError", f"{task.source}: not enough memory on {socket.gethostname()}")
    except Exception as exc:
        outcome |= _failure(type(exc).__name__, f"{task.source}: unexpected {type(exc).__name__}: {exc}")
    return outcome | {"seconds": time.perf_counter() - began, "finished": time.time()}


def _failure(kind: str, error: str) -> Json:
    return {"state": "failed", "error_kind": kind, "error": error, "lasting": kind in LASTING}


def _encode(task: Task, threads: int | None) -> Json:
    """Encodes a slide, unless its container is there already, whole and of just this slide and these options."""
    from histocodec.formats.decode.verify import verify
    from histocodec.formats.encode.scope import source_sha256
    from histocodec.sources import open_slide

    options = encode_options(task.options, source_sha256=True, device=task.device, workers=threads)
    _make_folder(task.result)
    adopted = False
    with local_copy(task.source, task.parts) as path:
        replace = False
        if _is_there(task.result):
            with open_slide(path) as slide:
                sha256 = source_sha256(slide, options)
            difference = why_not_ours(task.result, options, sha256)
            adopted, replace = difference is None, difference is not None
            if replace and not task.overwrite and not _is_damaged_but_ours(task.result, options, sha256):
                raise UsageError(
                    f"{task.result}: exists, and {difference}; move it away, or run with --overwrite, which replaces it"
                )
        if not adopted:
            with open_slide(path) as slide:
                _encode_to(task, slide, options, replace=replace)
    container = open_container(task.result)
    if task.verify:
        report = verify(task.result, device=task.device, workers=threads)
        if not report.ok:
            raise FormatError(f"{task.result}: read back, it is not what was written: {report.problems[0]}")
    return {**facts_of(container, task.result), "adopted": adopted, "verified": task.verify}


def _encode_to(task: Task, slide: object, options: "EncodeOptions", *, replace: bool) -> None:
    """Encodes, going on with what an earlier worker began, if it began the same."""
    from dataclasses import replace as changed

    from histocodec.formats.encode.encode import encode_slide
    from histocodec.slide import Slide

    assert isinstance(slide, Slide)
    if not replace:
        try:
            encode_slide(slide, task.result, changed(options, resume=True), created=task.created)
            return
        except BusyError:
            raise
        except (UsageError, FormatError, OutputError):  # what is there was begun otherwise: with other options
            if not _was_begun(task.result):
                raise
    encode_slide(slide, task.result, changed(options, overwrite=True), created=task.created)


def why_not_ours(result: str, options: "EncodeOptions", sha256: str | None) -> str | None:
    """Why the container at a path or URL is not the one that encoding the slide with this SHA-256 and these options
    makes; None where it is, and is whole. Raises StoreError and MissingModelError."""
    from histocodec.formats.decode.verify import verify

    try:
        difference = _difference(open_container(result), options, sha256)
        if difference is not None:
            return difference
        report = verify(result, quick=True)
    except StoreError:
        raise
    except (FormatError, UnsupportedError) as exc:
        return f"is no sound container ({exc})"
    return None if report.ok else f"is damaged ({report.problems[0]})"


def _is_damaged_but_ours(result: str, options: "EncodeOptions", sha256: str | None) -> bool:
    try:
        return _difference(open_container(result), options, sha256) is None
    except HistocodecError:
        return False


def _difference(container: Container, options: "EncodeOptions", sha256: str | None) -> str | None:
    """What tells a container from the one that would be made, as far as it says so itself."""
    from dataclasses import replace as changed

    from histocodec.models.weights import find_model

    weights, attributes = find_model(options.model), container.attributes
    told = changed(options, effort=options.effort_with(weights)).settings()
    if sha256 is None or attributes.source.sha256 != sha256:
        return "is not of this slide (the SHA-256 of its source is another, or missing)"
    if attributes.model.sha256 != weights.decoder_sha256:
        return f"was encoded with another model ({attributes.model.id})"
    if attributes.generator != f"histocodec {VERSION}":
        return f"was encoded by {attributes.generator}, and this is histocodec {VERSION}"
    if dict(attributes.provenance.settings) != told:
        return f"was encoded with other options ({_words(attributes.provenance.settings)}, not {_words(told)})"
    if (attributes.model.embedded is not None) != options.embed_model:
        return f"has {'a' if attributes.model.embedded else 'no'} model embedded"
    for name, kept in (("label", options.keep_label), ("macro", options.keep_macro)):
        if (name in attributes.associated) > kept or (kept and name in attributes.dropped):
            return f"was encoded with another choice about the {name} image"
    if options.keep_private and any(name.startswith("property ") for name in attributes.dropped):
        return "was encoded without private properties"
    return None


def facts_of(container: Container, result: str) -> Json:
    """What the ledger says of a container: measured from its maps and its bytes."""
    attributes = container.attributes
    levels, first = attributes.levels, attributes.levels[0]
    worst: tuple[float, int, int, int] | None = None
    block_errors = []
    for level in range(len(levels)):
        psnr = container.psnr(level)
        error = container.block_error(level)
        if error is not None and not np.isnan(error).all():
            block_errors.append(float(np.nanmax(error)))
        if np.isnan(psnr).all():
            continue
        row, column = np.unravel_index(int(np.nanargmin(psnr)), psnr.shape)
        if worst is None or float(psnr[row, column]) < worst[0]:
            worst = float(psnr[row, column]), level, int(row), int(column)
    digest = attributes.provenance.digest
    sha256, size = _stored(container, result, digest)
    return {
        "width": first.width,
        "height": first.height,
        "levels": len(levels),
        "mpp_x": None if attributes.mpp is None else attributes.mpp[0],
        "mpp_y": None if attributes.mpp is None else attributes.mpp[1],
        "source_bytes": attributes.source.bytes,
        "result_bytes": size,
        "pixels": sum(level.width * level.height for level in levels),
        "psnr": first.psnr,
        "worst_psnr": None if worst is None else worst[0],
        "worst_level": None if worst is None else worst[1],
        "worst_row": None if worst is None else worst[2],
        "worst_column": None if worst is None else worst[3],
        "worst_block_error": max(block_errors, default=None),
        "quality": first.quality,
        "model": attributes.model.id,
        "source_sha256": attributes.source.sha256,
        "result_sha256": sha256,
        "digest": digest,
        "created": _created(container),
    }


def _created(container: Container) -> int:
    """The time that a container names as its own, in seconds since 1970: one that was adopted may be older than the
    plan."""
    return timegm(time.strptime(container.attributes.provenance.created, "%Y-%m-%dT%H:%M:%SZ"))


def _stored(container: Container, result: str, digest: str) -> tuple[str, int]:
    """SHA-256 and bytes of a container as they are stored: of one file, its own; of a folder, the digest that names all
    of it, and the bytes of its files."""
    if is_url(result):
        return object_sha256(result) if result.lower().endswith(".hcz") else (digest, sizes(container.store).total)
    path = Path(result)
    if path.is_file():
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest(), path.stat().st_size
    return digest, sizes(container.store).total


def _verify(task: Task, threads: int | None) -> Json:
    from histocodec.formats.decode.verify import verify

    quick = bool(task.detail.get("quick"))
    report = verify(task.result, quick=quick, device=task.device, workers=threads)
    if not report.ok:
        raise FormatError(f"{task.result}: {report.problems[0]}")
    digest, expected = open_container(task.result).attributes.provenance.digest, task.detail.get("digest")
    if expected not in (None, digest):
        raise FormatError(
            f"{task.result}: is sound, but is not the container that the ledger names (its digest is {digest}, not "
            f"{expected}): it was replaced or sealed since"
        )
    return {"detail": {"chunks": report.chunks, "quick": quick}}


def _embed(task: Task, threads: int | None) -> Json:
    from histocodec.formats.container.embeddings import check_absent, write_embeddings
    from histocodec.formats.embed import embed

    if is_url(task.result):
        raise UnsupportedError(f"{task.result}: vectors are added to containers of this machine or a share only")
    path, overwrite, level = Path(task.result), bool(task.detail.get("overwrite")), task.detail.get("level", 0)
    assert isinstance(level, int)
    check_absent(path, overwrite=overwrite)
    embeddings = embed(path, level=level, workers=threads)
    size = write_embeddings(path, embeddings, overwrite=overwrite)
    container = open_container(path)
    sha256, total = _stored(container, task.result, container.attributes.provenance.digest)
    return {
        "detail": {"patches": len(embeddings.vectors), "level": level, "bytes": size},
        "result_sha256": sha256,  # a container that is one file was written anew
        "result_bytes": total,
    }


WORK: Mapping[Kind, Callable[[Task, int | None], Json]] = {"encode": _encode, "verify": _verify, "embed": _embed}


def _is_there(result: str) -> bool:
    if not is_url(result):
        return Path(result).exists()
    from histocodec.formats.cohort.objects import objects_below

    with suppress(UsageError):
        return bool(objects_below(result))
    return False


def _was_begun(result: str) -> bool:
    from histocodec.formats.encode.journal import journal_path, partial_path
    from histocodec.formats.encode.upload import staging_path

    place = staging_path(result) if is_url(result) else Path(result)
    return partial_path(place).exists() or journal_path(place).exists()


def _make_folder(result: str) -> None:
    if is_url(result):
        return
    try:
        Path(result).parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{Path(result).parent}: cannot be made: {exc.strerror or exc}") from exc


def _words(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items()) or "the defaults"
