"""A store as the package zarr sees it, whose chunks are decoded together where they are asked for at the same moment
and need the same pixels.

get("0/c/0/4/6") ─┐
get("0/c/0/4/7") ─┴─▶ one group: one call of `read_together` on a thread ─▶ the slide's workers
get("0/c/0/4/8") ───▶ another group, at the same time
"""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from histocodec.formats.container.abstract_store import Store
from histocodec.formats.container.zarr_view import ZarrView

if TYPE_CHECKING:  # names that move between versions of zarr
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

GroupOf = Callable[[str], Hashable | None]
ReadTogether = Callable[[Sequence[str]], list[bytes | None]]
Waiting = list[tuple[str, "asyncio.Future[bytes | None]"]]


class TogetherView(ZarrView):
    """`store` as a Zarr store. Objects of one group are read by `read_together`, on threads, never on the event loop;
    those without a group are read one by one."""

    def __init__(self, store: Store, group_of: GroupOf, read_together: ReadTogether) -> None:
        super().__init__(store)
        self._group_of, self._read_together = group_of, read_together
        self._waiting: WeakKeyDictionary[asyncio.AbstractEventLoop, Waiting] = WeakKeyDictionary()
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio itself keeps only weak references

    def __reduce__(self) -> tuple[type["TogetherView"], tuple[Store, GroupOf, ReadTogether]]:
        return TogetherView, (self._store, self._group_of, self._read_together)

    async def get(
        self, key: str, prototype: "BufferPrototype", byte_range: "ByteRequest | None" = None
    ) -> "Buffer | None":
        """See `ZarrView`."""
        if byte_range is not None or self._group_of(key) is None:
            return await super().get(key, prototype, byte_range)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes | None] = loop.create_future()
        if loop not in self._waiting:  # the first of this moment; the others come before the loop gets to the task
            self._waiting[loop] = []
            task = loop.create_task(self._decode(loop))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._waiting[loop].append((key, future))
        data = await future
        return None if data is None else prototype.buffer.from_bytes(data)

    async def _decode(self, loop: asyncio.AbstractEventLoop) -> None:
        """Decode what is waited for, all groups at the same time."""
        groups: dict[Hashable, Waiting] = {}
        for key, future in self._waiting.pop(loop):
            if not future.done():
                groups.setdefault(self._group_of(key), []).append((key, future))
        await asyncio.gather(*(self._decode_group(waiting) for waiting in groups.values()))

    async def _decode_group(self, waiting: Waiting) -> None:
        """Decode a group, and hand its objects, or the error, to those who wait."""
        try:
            found = await asyncio.to_thread(self._read_together, [key for key, _ in waiting])
        except Exception as exc:
            for _, future in waiting:
                if not future.done():
                    future.set_exception(exc)
            return
        for (_, future), data in zip(waiting, found, strict=True):
            if not future.done():
                future.set_result(data)
