"""Pictures of frames, made once and kept while there is room, and reports as text (PS3.18 §8.7.4, §10.4.1.1.3..4).

How a picture comes to be: a request names frames, or a presentation state, which names frames of other instances. Each
is a `Sight`: a frame and its `View`, read from the attributes of its instance, and of the state. A renderer then makes
a file of the frame, the view and what the request asks of a picture (`Rendering`).
"""

import asyncio
import base64
import re
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeVar

import orjson

from ..domain import report, softcopy
from ..domain.display import PALETTE_DATA
from ..domain.encapsulation import TRANSCODING_EXCEPTION, UNSUPPORTED_TRANSFER_SYNTAX
from ..domain.errors import Corrupt, NotAcceptable, NotFound
from ..domain.model import Entry, Frame, Selection
from ..domain.pixels import THUMBNAIL_SIDE
from ..domain.presentation import Presentation, Rendering, View, describe, described_by, is_scalable
from ..domain.syntaxes import EXPLICIT_LE, HTJ2K_LOSSLESS_RPCL, by_uid, decoded
from ..ports import Instances, Renderer
from .retrieve import DecodeForeign

T = TypeVar("T")

CACHE_BYTES: Final = 48 << 20
"""Of pictures and presentations together."""
_REFERENCES_BYTES: Final = 1 << 20
"""Of the lists of what presentation states are about."""
_OVERHEAD_BYTES: Final = 1024
"""Of one thing kept, beside its own bytes: its key and its place."""
_LARGEST_SHARE: Final = 8
"""What is larger than this part of the cache is not kept."""


class Sight(NamedTuple):
    """What a picture is made of: a frame, and how it is to be shown."""

    entry: Entry
    frame: int
    """From 0."""
    view: View
    fingerprint: str
    """Changes whenever the view does."""

    @property
    def validator(self) -> str:
        """Changes whenever its pictures do."""
        return f"{self.entry.digest[:32]}{self.fingerprint}"


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
        self._references = _Cache[tuple[softcopy.Reference, ...]](_REFERENCES_BYTES)
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

    @staticmethod
    def is_state(entry: Entry) -> bool:
        """Whether an instance is a presentation state, which is shown by the images that it is about."""
        return entry.sop_class.startswith(softcopy.STATES)

    async def sight(self, entry: Entry, index: int | None, annotation: Sequence[str] = ()) -> Sight:
        """Frame `index` of an image, from 0, or the frame that stands for it, edits applied.

        `annotation` are kinds of `caption.KINDS`. Raises NotFound for an instance without frames.
        """
        # A version of an image set never changes.
        key = entry.image_set, entry.version, entry.sop_uid, entry.digest, *annotation
        found = self._presentations.get(key)
        if found is None:
            found = await self._presentations.made(key, partial(self._describe, entry, annotation))
        index = found.representative if index is None else index
        return Sight(entry, index, found.view(index), found.fingerprint)

    async def sights(
        self, state: Entry, selection: Selection, annotation: Sequence[str] = (), *, first: bool = False
    ) -> list[Sight]:
        """The images that a presentation state is about, as it shows them; or only the first of them (REND-10).

        Of an image with several frames, the first that the state names. `selection` is how the state was selected: its
        images are those that whoever asked could select, in the same study, of the same time. Raises NotFound for an
        image that is not there, and NotAcceptable for what is not shown.
        """
        softcopy.check_class(state.sop_class)
        key = state.image_set, state.version, state.sop_uid
        references = self._references.get(key)
        if references is None:
            references = await self._references.made(key, partial(self._refer, state))
        if not references:
            raise NotFound("The presentation state is about no image.")
        return [await self._referenced(state, selection, one, annotation) for one in references[: 1 if first else None]]

    async def picture(self, sight: Sight, wanted: Rendering) -> bytes:
        """The picture of a frame. Raises InvalidInput, NotFound, NotAcceptable, Corrupt."""
        key = sight.entry.digest, sight.entry.format, sight.fingerprint, sight.frame, wanted
        found = self._pictures.get(key)
        return found if found is not None else await self._pictures.made(key, partial(self._draw, sight, wanted))

    async def text(self, entry: Entry, media_type: str) -> bytes:
        """A structured report in one of the types of `report.FORMS`."""
        write = report.FORMS[media_type]
        return await self._of_attributes(entry, lambda attributes: write(report.read(attributes)))

    async def _describe(self, entry: Entry, annotation: Sequence[str]) -> tuple[Presentation, int]:
        format = entry.format
        if format is None or not entry.frames:
            raise NotFound("The instance has no frames that could be shown.")
        (attributes,) = await self._of_document([entry], orjson.loads)
        if format.photometric == "PALETTE COLOR":
            await self._fill(entry, attributes, PALETTE_DATA)
        presentation = await asyncio.get_running_loop().run_in_executor(
            self._executor, describe, attributes, format, entry.frames, annotation
        )
        return presentation, presentation.size_bytes

    async def _refer(self, state: Entry) -> tuple[tuple[softcopy.Reference, ...], int]:
        references = await self._of_attributes(state, softcopy.references)
        return references, 256 * len(references)

    async def _referenced(
        self, state: Entry, selection: Selection, reference: softcopy.Reference, annotation: Sequence[str]
    ) -> Sight:
        place = Selection(selection.datastore, state.study_uid, reference.series, reference.sop, as_of=selection.as_of)
        try:
            (entry,) = (await self._instances.select(place)).entries
        except NotFound:
            raise NotFound(
                f"The presentation state is about the image {_uid(reference.sop)}, which is not in this study here."
            ) from None
        index = reference.frames[0] - 1 if reference.frames else 0
        if not self.shows(entry) or index >= entry.frames:
            raise NotFound(
                f"The presentation state is about frame {index + 1} of {_uid(reference.sop)}, which cannot be shown."
            )
        key = (state.image_set, state.version, state.sop_uid), (entry.image_set, entry.version, entry.digest), reference
        found = self._presentations.get((*key, *annotation))
        if found is None:
            make = partial(self._describe_by, state, entry, index, annotation)
            found = await self._presentations.made((*key, *annotation), make)
        return Sight(entry, index, found.view(index), found.fingerprint)

    async def _describe_by(
        self, state: Entry, entry: Entry, index: int, annotation: Sequence[str]
    ) -> tuple[Presentation, int]:
        format = entry.format
        assert format is not None
        of_state, of_image = await self._of_document([state, entry], orjson.loads)
        for owner, attributes in ((state, of_state), (entry, of_image)):
            await self._fill(owner, attributes, (*softcopy.overlays_of(of_state), *PALETTE_DATA))
        presentation = await asyncio.get_running_loop().run_in_executor(
            self._executor,
            partial(described_by, of_state, state.sop_class, of_image, entry.sop_uid),
            *(format, entry.frames, index, annotation),
        )
        return presentation, presentation.size_bytes

    async def _fill(self, entry: Entry, attributes: dict[str, Any], tags: Iterable[str]) -> None:
        """Puts tables and planes that are bulk data where they belong."""
        for tag in tags:
            if "BulkDataURI" in (attributes.get(tag) or {}):
                _, value = await self._instances.bulk(entry, tag)
                attributes[tag] = {"vr": "OW", "InlineBinary": base64.b64encode(value)}

    async def _of_attributes(self, entry: Entry, work: Callable[[Mapping[str, Any]], T]) -> T:
        """What a thread makes of an instance's DICOM JSON."""
        return await self._of_document([entry], lambda document: work(orjson.loads(document)[0]))

    async def _of_document(self, entries: Sequence[Entry], work: Callable[[bytes], T]) -> T:
        """What a thread makes of the DICOM JSON of instances, an array."""
        document = await self._instances.metadata(entries, "", gzip=False)
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, document.body)

    async def _draw(self, sight: Sight, wanted: Rendering) -> tuple[bytes, int]:
        run = asyncio.get_running_loop().run_in_executor
        entry, index = sight.entry, sight.frame
        picture: bytes | None = None
        if _is_small(wanted) and entry.format is not None and is_scalable(entry.format, sight.view, wanted):
            start = await self._instances.frame_start(entry, index)
            if start is not None:
                try:
                    picture = await run(self._executor, self._work, entry, start, sight.view, wanted)
                except Corrupt:
                    picture = None  # the whole frame decides
        if picture is None:
            frame = await self._instances.frame(entry, index)
            picture = await run(self._executor, self._work, entry, frame, sight.view, wanted)
        return picture, len(picture)

    def _work(self, entry: Entry, frame: Frame, view: View, wanted: Rendering) -> bytes:
        if entry.format is None:
            raise NotAcceptable("The instance does not say how its samples lie.")
        data, syntax, format = frame.data, frame.syntax, entry.format
        if syntax not in (EXPLICIT_LE, HTJ2K_LOSSLESS_RPCL):
            data, syntax, format = self._decode_foreign(data, syntax, format), EXPLICIT_LE, decoded(format, syntax)
        return self._renderer.render(data, syntax, format, view, wanted)


def _is_small(wanted: Rendering) -> bool:
    """Whether the first resolutions of a frame are enough for a picture."""
    return wanted.viewport is not None and max(wanted.viewport.width, wanted.viewport.height) <= THUMBNAIL_SIDE


def _uid(uid: str) -> str:
    """What was received as a UID and is none may be anything."""
    return uid if re.fullmatch(r"[0-9.]{1,64}", uid) else "of an invalid UID"


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
