"""QIDO-RS and C-FIND over a backend: by its index where it has one, else planned over SearchImageSets."""

import asyncio
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import orjson
from pydicom.datadict import keyword_for_tag

from gateway.domain.errors import Corrupt, InvalidInput, NotFound, TooLarge
from gateway.domain.ids import DatastoreId, ImageSetId
from gateway.domain.metadata import to_dicom_json
from gateway.domain.model import Criterion, ImageSetRef, ImageSetSummary, PageRequest, SearchCriteria
from gateway.domain.plan import Answering, Held, answer, criteria, is_complete, tagged
from gateway.domain.query import SERIES_BESIDE, Attributes, DicomQuery, SearchAnswer
from gateway.ports import DicomIndex, HealthImaging

_PAGE = 50
_AT_ONCE = 8
_KEPT_DOCUMENTS = 256


class Search:
    """Finds patients, studies, series and instances."""

    def __init__(self, index: DicomIndex | None, backend: HealthImaging, scan_budget: int = 20_000) -> None:
        """`scan_budget`: how many image sets a search without an index may look at."""
        self._index = index
        self._backend = backend
        self._scan_budget = scan_budget
        self._documents: OrderedDict[tuple[str, str, int], Mapping[str, Any]] = OrderedDict()

    async def find(self, query: DicomQuery) -> SearchAnswer:
        """The page of rows that a query asks for.

        Raises InvalidInput for keys that cannot be matched, TooLarge where too much would have to be looked at.
        """
        if self._index is not None:
            return await self._index.find(query)
        if query.as_of is not None:
            raise InvalidInput("asOf needs an index; this backend has none")
        ready = Answering.of(query)
        summaries = await self._candidates(query)
        gate = asyncio.Semaphore(_AT_ONCE)

        async def load(summary: ImageSetSummary) -> tuple[Held, Mapping[str, Any]]:
            async with gate:
                document = await self._document(query.datastore, summary)
            return _held(summary, document), document

        loaded = await asyncio.gather(*(load(summary) for summary in summaries))
        documents = {held.ref: document for held, document in loaded}
        return answer(ready, [held for held, _ in loaded], lambda held: _instances(documents[held.ref]))

    async def _candidates(self, query: DicomQuery) -> list[ImageSetSummary]:
        """All primary image sets of the studies that may match; or the one image set that the query names."""
        if query.image_set is not None:
            return [await self._summary(query.datastore, query.image_set)]
        asked = criteria(query)
        found = await self._all(query.datastore, asked)
        if is_complete(asked):
            return found
        whole: list[ImageSetSummary] = []
        for uid in dict.fromkeys(tagged(summary.tags)[0] for summary in found):
            of_study = (Criterion("DICOMStudyInstanceUID", (uid,)), Criterion("isPrimary", (True,)))
            whole += await self._all(query.datastore, replace(asked, filters=of_study))
            self._check_budget(len(whole))
        return whole

    async def _all(self, datastore: DatastoreId, asked: SearchCriteria) -> list[ImageSetSummary]:
        found: dict[str, ImageSetSummary] = {}
        token: str | None = None
        while True:
            page = await self._backend.search(datastore, asked, PageRequest(_PAGE, token))
            found.update((summary.id, summary) for summary in page.items)
            self._check_budget(len(found))
            token = page.next_token
            if token is None:
                return list(found.values())

    def _check_budget(self, looked_at: int) -> None:
        if looked_at > self._scan_budget:
            raise TooLarge(
                f"The search would look at more than {self._scan_budget} image sets; "
                "add a patient, a study, an accession number or a range of dates"
            )

    async def _summary(self, datastore: DatastoreId, image_set: ImageSetId) -> ImageSetSummary:
        found = await self._backend.get_image_set(ImageSetRef(datastore, image_set))
        if found.deleted_at is not None:
            raise NotFound("There is no such image set")
        updated = found.updated_at or found.created_at
        return ImageSetSummary(found.id, found.version, found.is_primary, found.created_at, updated, {})

    async def _document(self, datastore: DatastoreId, summary: ImageSetSummary) -> Mapping[str, Any]:
        """A version's metadata document: it never changes, so the last ones are kept."""
        key = (datastore, summary.id, summary.version)
        document = self._documents.get(key)
        if document is None:
            sent = await self._backend.get_metadata(ImageSetRef(datastore, summary.id, summary.version))
            try:
                document = orjson.loads(zlib.decompress(sent.body, 31) if sent.gzip else sent.body)
            except (zlib.error, orjson.JSONDecodeError):
                raise Corrupt("A metadata document cannot be read") from None
            self._documents[key] = document
            if len(self._documents) > _KEPT_DOCUMENTS:
                self._documents.popitem(last=False)
        else:
            self._documents.move_to_end(key)
        return document


def _held(summary: ImageSetSummary, document: Mapping[str, Any]) -> Held:
    study = document["Study"]
    series_uid, series = next(iter(study["Series"].items()))
    nodes = [node["DICOM"] for node in series["Instances"].values()]
    levels = {**document["Patient"]["DICOM"], **study["DICOM"], **series["DICOM"]}
    for keyword in map(keyword_for_tag, SERIES_BESIDE):
        if beside := next((node[keyword] for node in nodes if node.get(keyword)), None):
            levels[keyword] = beside
    return Held(
        ref=summary.id,
        study_uid=str(study["DICOM"]["StudyInstanceUID"]),
        series_uid=series_uid,
        attributes=to_dicom_json(levels),
        instances=len(nodes),
        updated=(summary.updated_at, summary.id),
        sop_classes=frozenset(str(node["SOPClassUID"]) for node in nodes if node.get("SOPClassUID")),
    )


def _instances(document: Mapping[str, Any]) -> Iterable[Attributes]:
    for series in document["Study"]["Series"].values():
        for sop_uid, node in series["Instances"].items():
            yield to_dicom_json({**node["DICOM"], "SOPInstanceUID": sop_uid}, node.get("DICOMVRs"))
