"""Studies, series and instances away, and back again within the retention (DEL-01)."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

from ..domain.edits import MetadataUpdate
from ..domain.errors import Conflict, InvalidInput, Locked, NotFound, Unavailable, VersionConflict
from ..domain.model import Entry, ImageSet, ImageSetRef, ImageSetState, Selected, Selection, Workflow
from ..ports import HealthImaging, Instances, Tombstones

T = TypeVar("T")

_FIRST_PAUSE_S: Final = 0.002
_LONGEST_PAUSE_S: Final = 0.1


class Removal:
    """Over the operations of image sets: a series goes as a whole, an instance by a new version of its series.

    `timeout_s` is how long an answer may take.
    """

    def __init__(
        self, instances: Instances, backend: HealthImaging, tombstones: Tombstones, *, timeout_s: float = 60.0
    ) -> None:
        self._instances = instances
        self._backend = backend
        self._tombstones = tombstones
        self._timeout_s = timeout_s

    async def remove(self, selection: Selection, selected: Selected, actor: str | None) -> None:
        """What was selected is gone on return.

        Raises InvalidInput for a selection of the past, Locked where an image set is changed for too long, and
        Unavailable where the removal has begun and not ended in time.
        """
        if selection.version is not None or selection.as_of is not None:
            raise InvalidInput("The past stays: leave version and asOf out.")
        deadline = time.monotonic() + self._timeout_s
        if selection.sop is not None:
            (entry,) = selected.entries
            whole = Selection(selection.datastore, entry.study_uid, entry.series_uid, None, entry.image_set)
            if len((await self._instances.select(whole)).entries) > 1:
                await self._remove_instance(ImageSetRef(selection.datastore, entry.image_set), entry, actor, deadline)
                return
        image_sets = dict.fromkeys(entry.image_set for entry in selected.entries)
        refs = [ImageSetRef(selection.datastore, image_set) for image_set in image_sets]
        for ref in refs:
            await _while_locked(partial(self._backend.delete, ref, actor), deadline)
        for ref in refs:
            if await self._settled(ref, deadline) is not None:
                raise Conflict("The removal did not succeed. Try again; if it happens again, see the log.")

    async def _remove_instance(self, ref: ImageSetRef, entry: Entry, actor: str | None, deadline: float) -> None:
        series: dict[str, Any] = {entry.series_uid: {"Instances": {entry.sop_uid: {}}}}
        removable = {"SchemaVersion": 1.1, "Study": {"Series": series}}
        update = MetadataUpdate(removable=removable, force=True, actor=actor)
        found = await self._settled(ref, deadline)
        if found is None:
            raise NotFound("There is no such instance in this data store.")
        try:
            begun = await _while_locked(
                partial(self._backend.update_metadata, ref, found.version, update), deadline
            )
        except VersionConflict:
            raise Locked from None
        done = await self._settled(ref, deadline)
        if done is not None and done.version == begun.version and done.workflow is Workflow.UPDATE_FAILED:
            raise Conflict(done.message or "The removal did not succeed.")

    async def _settled(self, ref: ImageSetRef, deadline: float) -> ImageSet | None:
        """The image set when nothing changes it any more; None when it is gone. Raises Unavailable."""
        pause = _FIRST_PAUSE_S
        while True:
            try:
                found = await self._backend.get_image_set(ref)
            except NotFound:
                return None
            if found.state is not ImageSetState.LOCKED:
                return found
            if time.monotonic() > deadline:
                raise Unavailable("The removal has begun, and did not end in time. It goes on.")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def restore(self, selection: Selection, actor: str | None) -> None:
        """What was deleted is there again on return. Raises NotFound, Conflict, Locked, InvalidInput."""
        if selection.version is not None or selection.as_of is not None:
            raise InvalidInput("Leave version and asOf out.")
        await _while_locked(partial(self._tombstones.restore, selection, actor), time.monotonic() + self._timeout_s)


async def _while_locked(ask: Callable[[], Awaitable[T]], deadline: float) -> T:
    """Asks again while somebody else changes the image set. Raises Locked after the deadline."""
    pause = _FIRST_PAUSE_S
    while True:
        try:
            return await ask()
        except Locked:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)

