"""Pictures of frames, made once and kept while there is room, and reports as text (PS3.18 §8.7.4, §10.4.1.1.3..4)."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any, Final, Generic, TypeVar

import orjson

from ..domain import report
from ..domain.encapsulation import TRANSCODING_EXCEPTION, UNSUPPORTED_TRANSFER_SYNTAX
from ..domain.errors import Corrupt, NotAcceptable, NotFound
from ..domain.model import Entry, Frame
from ..domain.pixels import THUMBNAIL_SIDE
from ..domain.presentation import Display, Presentation, Rendering, describe, is_scalable
from ..domain.syntaxes import EXPLICIT_LE, HTJ2K_LOSSLESS_RPCL, by_uid, decoded
from ..ports import Instances, Renderer
from .retrieve import DecodeForeign

T = TypeVar("T")

CACHE_BYTES: Final = 48 << 20
"""Of pictures and presentations together."""
_OVERHEAD_BYTES: Final = 1024
"""Of one thing kept, beside its own bytes: its key and its place."""
_LARGEST_SHARE: Final = 8
"""What is larger than this part of the cache is not kept."""


class Render:
    """Pictures through the port; pixels are worked on in the threads of `executor`, foreign ones decoded supervised.

    `decode_foreign` as for `Retrieve`. What was made is kept up to `cache_bytes`, the least used going first; who asks
    for what is being made waits for it.
    """

    def __init__(
        self,
        instances: Instances,
        renderer: Renderer,
        decode_foreign: DecodeForeign,
        executor: Executor,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._instances = instances
        self._renderer = renderer
        self._decode_foreign = decode_foreign
        self._executor = executor
        self._presentations = _Cache[Presentation](cache_bytes // 4)
        self._pictures = _Cache[bytes](cache_bytes - cache_bytes // 4)

    @staticmethod
    def shows(entry: Entry) -> bool:
        """Whether an instance has frames that can be decoded, as far as its import could tell."""
        row = by_uid(entry.stored_syntax) if entry.stored_syntax else None
        return (
            entry.format is not None
            and entry.frames > 0
            and entry.warning not in (TRANSCODING_EXCEPTION, UNSUPPORTED_TRANSFER_SYNTAX)
            and row is not None
            and not row.video
        )

    async def presentation(self, entry: Entry) -> Presentation:
        """How an instance is to be shown, its edits applied. Raises NotFound for one without frames."""
        # A version of an image set never changes.
        key = entry.image_set, entry.version, entry.sop_uid, entry.digest
        found = self._presentations.get(key)
        return found if found is not None else await self._presentations.made(key, partial(self._describe, entry))

    async def picture(self, entry: Entry, index: int, presentation: Presentation, wanted: Rendering) -> bytes:
        """Frame `index`, from 0, as a picture. Raises InvalidInput, NotFound, NotAcceptable, Corrupt."""
        key = entry.digest, entry.format, presentation.fingerprint, index, wanted
        found = self._pictures.get(key)
        if found is not None:
            return found
        return await self._pictures.made(key, partial(self._draw, entry, index, presentation.display(index), wanted))

    async def text(self, entry: Entry, media_type: str) -> bytes:
        """A structured report in one of the types of `report.FORMS`."""
        write = report.FORMS[media_type]
        return await self._of_attributes(entry, lambda attributes: write(report.read(attributes)))

    async def _describe(self, entry: Entry) -> tuple[Presentation, int]:
        format = entry.format
        if format is None or not entry.frames:
            raise NotFound("The instance has no frames that could be shown.")
        presentation = await self._of_attributes(entry, lambda attributes: describe(attributes, format, entry.frames))
        return presentation, presentation.size_bytes

    async def _of_attributes(self, entry: Entry, work: Callable[[Mapping[str, Any]], T]) -> T:
        """What a thread makes of an instance's DICOM JSON."""
        document = await self._instances.metadata([entry], "", gzip=False)
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, lambda: work(orjson.loads(document.body)[0])
        )

    async def _draw(self, entry: Entry, index: int, display: Display, wanted: Rendering) -> tuple[bytes, int]:
        run = asyncio.get_running_loop().run_in_executor
        picture: bytes | None = None
        if _is_small(wanted) and entry.format is not None and is_scalable(entry.format, display, wanted):
            start = await self._instances.frame_start(entry, index)
            if start is not None:
                try:
                    picture = await run(self._executor, self._work, entry, start, display, wanted)
                except Corrupt:
                    picture = None  # the whole frame decides
        if picture is None:
            frame = await self._instances.frame(entry, index)
            picture = await run(self._executor, self._work, entry, frame, display, wanted)
        return picture, len(picture)

    def _work(self, entry: Entry, frame: Frame, display: Display, wanted: Rendering) -> bytes:
        if entry.format is None:
            raise NotAcceptable("The instance does not say how its samples lie.")
        data, syntax, format = frame.data, frame.syntax, entry.format
        if syntax not in (EXPLICIT_LE, HTJ2K_LOSSLESS_RPCL):
            data, syntax, format = self._decode_foreign(data, syntax, format), EXPLICIT_LE, decoded(format, syntax)
        return self._renderer.render(data, syntax, format, display, wanted)


def _is_small(wanted: Rendering) -> bool:
    """Whether the first resolutions of a frame are enough for a picture."""
    return wanted.viewport is not None and max(wanted.viewport.width, wanted.viewport.height) <= THUMBNAIL_SIDE


class _Cache(Generic[T]):
    """What was made, up to a number of bytes, the least used going first. For one event loop at a time."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._bytes = 0
        self._under_way: dict[Hashable, asyncio.Future[tuple[T, int]]] = {}

    def get(self, key: Hashable) -> T | None:
        found = self._held.get(key)
        if found is None:
            return None
        self._held.move_to_end(key)
        return found[0]

    async def made(self, key: Hashable, make: Callable[[], Coroutine[Any, Any, tuple[T, int]]]) -> T:
        """What `make` gives, with its size in bytes; made once for all who ask for it meanwhile."""
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.ensure_future(make())
            task.add_done_callback(partial(self._keep, key))
        value, _ = await asyncio.shield(task)  # who leaves must not end it for the others
        return value

    def _keep(self, key: Hashable, task: "asyncio.Future[tuple[T, int]]") -> None:
        del self._under_way[key]
        if task.cancelled() or task.exception() is not None:
            return
        value, size = task.result()
        size += _OVERHEAD_BYTES
        if size * _LARGEST_SHARE > self._limit_bytes:
            return
        self._held[key] = value, size
        self._bytes += size
        while self._bytes > self._limit_bytes:
            self._bytes -= self._held.popitem(last=False)[1][1]
