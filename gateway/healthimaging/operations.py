"""The operations of the API: a decoded request, a call of the port, an answer to encode.

Requests and answers are dicts of the service model's members; camelCase lives here and in `awsjson` alone.
"""

import asyncio
import gzip
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ..domain import edits
from ..domain.errors import InvalidInput, NotFound
from ..domain.ids import DatastoreId, FrameId, ImageSetId, JobId
from ..domain.model import (
    Datastore,
    DatastoreStatus,
    ImageSet,
    ImageSetRef,
    ImageSetSummary,
    ImportJob,
    ImportRequest,
    JobStatus,
    Page,
    PageRequest,
)
from ..domain.syntaxes import frame_content_type
from ..ports import HealthImaging
from . import criteria

Request = Mapping[str, Any]
Answer = dict[str, Any]

NOT_YET = frozenset({"CopyImageSet", "TagResource", "UntagResource", "ListTagsForResource"})
"""Operations of the model that the port has no method for: answered as unknown."""

REFUSED: Mapping[str, frozenset[str]] = {
    "CreateDatastore": frozenset({"tags", "kmsKeyArn", "lambdaAuthorizerArn"}),
    "StartDICOMImportJob": frozenset({"importConfiguration"}),
}
"""Members that would be a false promise if they were taken and not acted on: a request with one is a fault."""

IGNORED: Mapping[str, frozenset[str]] = {"StartDICOMImportJob": frozenset({"inputOwnerAccountId"})}
"""Members without a meaning where buckets have no owners."""

# PostgreSQL's integer, and more versions than anything will have.
_MAX_VERSION = 2**31 - 1


class Operations:
    """One method for each operation that is served, over one backend.

    Each takes the decoded request and the name of who asks, None without authentication, and raises the errors of
    the port. The method of an operation is found through `SERVED`.
    """

    def __init__(self, backend: HealthImaging, region: str, account: str) -> None:
        self._backend = backend
        partition = {"cn": "aws-cn", "us-gov": "aws-us-gov"}.get(region.rpartition("-")[0].rpartition("-")[0], "aws")
        self._arn = f"arn:{partition}:medical-imaging:{region}:{account}:datastore/"

    async def create_datastore(self, request: Request, actor: str | None) -> Answer:
        """API: CreateDatastore."""
        store = await self._backend.create_datastore(
            request.get("datastoreName"), request["clientToken"], request.get("losslessStorageFormat", "HTJ2K")
        )
        return {"datastoreId": store.id, "datastoreStatus": store.status}

    async def get_datastore(self, request: Request, actor: str | None) -> Answer:
        """API: GetDatastore."""
        store = await self._backend.get_datastore(_datastore(request))
        return {"datastoreProperties": self._store(store) | {"losslessStorageFormat": store.storage_format}}

    async def list_datastores(self, request: Request, actor: str | None) -> Answer:
        """API: ListDatastores."""
        status = request.get("datastoreStatus")
        page = await self._backend.list_datastores(DatastoreStatus(status) if status else None, _page(request))
        return {"datastoreSummaries": [self._store(store) for store in page.items], "nextToken": page.next_token}

    async def delete_datastore(self, request: Request, actor: str | None) -> Answer:
        """API: DeleteDatastore."""
        store = await self._backend.delete_datastore(_datastore(request))
        return {"datastoreId": store.id, "datastoreStatus": store.status}

    async def start_import(self, request: Request, actor: str | None) -> Answer:
        """API: StartDICOMImportJob."""
        asked = ImportRequest(
            name=request.get("jobName"),
            role_arn=request["dataAccessRoleArn"],
            input_uri=request["inputS3Uri"],
            output_uri=request["outputS3Uri"],
            client_token=request["clientToken"],
        )
        job = await self._backend.start_import(_datastore(request), asked)
        return {
            "datastoreId": job.datastore,
            "jobId": job.id,
            "jobStatus": job.status,
            "submittedAt": job.submitted_at,
        }

    async def get_import(self, request: Request, actor: str | None) -> Answer:
        """API: GetDICOMImportJob."""
        job = await self._backend.get_import(_datastore(request), JobId(request["jobId"]))
        if not _is_public(job):
            raise NotFound("The data store has no import job with this id that was started through this API.")
        return {"jobProperties": _job(job) | {"inputS3Uri": job.input_uri, "outputS3Uri": job.output_uri}}

    async def list_imports(self, request: Request, actor: str | None) -> Answer:
        """API: ListDICOMImportJobs. A page may be short, or empty with a token, where other jobs were left out."""
        status = request.get("jobStatus")
        page = await self._backend.list_imports(
            _datastore(request), JobStatus(status) if status else None, _page(request)
        )
        return {"jobSummaries": [_job(job) for job in page.items if _is_public(job)], "nextToken": page.next_token}

    async def search(self, request: Request, actor: str | None) -> Answer:
        """API: SearchImageSets."""
        wanted = criteria.read(request.get("searchCriteria", {}))
        page = await self._backend.search(_datastore(request), wanted, _page(request))
        return {
            "imageSetsMetadataSummaries": [_summary(item) for item in page.items],
            "sort": {"sortField": wanted.sort_field, "sortOrder": "ASC" if wanted.ascending else "DESC"},
            "nextToken": page.next_token,
        }

    async def get_image_set(self, request: Request, actor: str | None) -> Answer:
        """API: GetImageSet."""
        found = await self._backend.get_image_set(_ref(request))
        return _version(found) | {
            "datastoreId": found.datastore,
            "imageSetWorkflowStatus": found.workflow,
            "imageSetArn": f"{self._arn}{found.datastore}/imageset/{found.id}",
        }

    async def list_versions(self, request: Request, actor: str | None) -> Answer:
        """API: ListImageSetVersions. Only here the API writes ImageSetWorkflowStatus with a capital."""
        page: Page[ImageSet] = await self._backend.list_versions(_ref(request), _page(request))
        return {
            "imageSetPropertiesList": [
                _version(item) | {"ImageSetWorkflowStatus": item.workflow} for item in page.items
            ],
            "nextToken": page.next_token,
        }

    async def get_metadata(self, request: Request, actor: str | None) -> Answer:
        """API: GetImageSetMetadata. Always gzip: SDKs hand the bytes on as they are, whatever was negotiated."""
        document = await self._backend.get_metadata(_ref(request))
        body = document.body if document.gzip else await asyncio.to_thread(gzip.compress, document.body, 1)
        return {"imageSetMetadataBlob": body, "contentType": "application/json", "contentEncoding": "gzip"}

    async def get_frame(self, request: Request, actor: str | None) -> Answer:
        """API: GetImageFrame. The frame as it is stored, never transcoded."""
        frame = await self._backend.get_frame(_ref(request), FrameId(request["imageFrameInformation"]["imageFrameId"]))
        return {"imageFrameBlob": frame.data, "contentType": frame_content_type(frame.syntax)}

    async def update_metadata(self, request: Request, actor: str | None) -> Answer:
        """API: UpdateImageSetMetadata."""
        asked = request["updateImageSetMetadataUpdates"]
        changes = asked.get("DICOMUpdates", {})
        revert_to = asked.get("revertToVersionId")
        update = edits.parse_update(
            changes.get("updatableAttributes"),
            changes.get("removableAttributes"),
            str(_number(revert_to)) if revert_to else None,
            force=request.get("force", False),
            study=request.get("includeStudyImageSets", False),
            actor=actor,
        )
        accepted = await self._backend.update_metadata(_ref(request), _number(request["latestVersionId"]), update)
        return {
            "datastoreId": accepted.datastore,
            "imageSetId": accepted.id,
            "latestVersionId": str(accepted.version),
            "imageSetState": accepted.state,
            "imageSetWorkflowStatus": accepted.workflow,
            "createdAt": accepted.created_at,
            "updatedAt": accepted.updated_at,
            "message": _message(accepted.message),
        }

    async def delete_image_set(self, request: Request, actor: str | None) -> Answer:
        """API: DeleteImageSet."""
        deleted = await self._backend.delete(_ref(request))
        return {
            "datastoreId": deleted.datastore,
            "imageSetId": deleted.id,
            "imageSetState": deleted.state,
            "imageSetWorkflowStatus": deleted.workflow,
        }

    def _store(self, store: Datastore) -> Answer:
        return {
            "datastoreId": store.id,
            "datastoreName": store.name,
            "datastoreStatus": store.status,
            "datastoreArn": self._arn + store.id,
            "createdAt": store.created_at,
            "updatedAt": store.updated_at,
        }


SERVED: Mapping[str, Callable[[Operations, Request, str | None], Awaitable[Answer]]] = {
    "CreateDatastore": Operations.create_datastore,
    "GetDatastore": Operations.get_datastore,
    "ListDatastores": Operations.list_datastores,
    "DeleteDatastore": Operations.delete_datastore,
    "StartDICOMImportJob": Operations.start_import,
    "GetDICOMImportJob": Operations.get_import,
    "ListDICOMImportJobs": Operations.list_imports,
    "SearchImageSets": Operations.search,
    "GetImageSet": Operations.get_image_set,
    "ListImageSetVersions": Operations.list_versions,
    "GetImageSetMetadata": Operations.get_metadata,
    "GetImageFrame": Operations.get_frame,
    "UpdateImageSetMetadata": Operations.update_metadata,
    "DeleteImageSet": Operations.delete_image_set,
}
"""Operation name -> the method that serves it."""


def refuse(operation: str, request: Request) -> None:
    """Raises InvalidInput when a request asks for what nobody here would act on."""
    asked = sorted(name for name in REFUSED.get(operation, ()) if request.get(name))
    if asked:
        raise InvalidInput(f"{operation} does not support {', '.join(asked)} here: leave it out.")


def _datastore(request: Request) -> DatastoreId:
    return DatastoreId(request["datastoreId"])


def _ref(request: Request) -> ImageSetRef:
    version = request.get("versionId")
    return ImageSetRef(
        _datastore(request), ImageSetId(request["imageSetId"]), None if version is None else _number(version)
    )


def _number(version: str) -> int:
    """The number of a version id, which the model lets have any count of digits. Raises NotFound beyond all numbers."""
    digits = version.lstrip("0")
    if len(digits) > len(str(_MAX_VERSION)) or int(digits or "0") > _MAX_VERSION:
        raise NotFound("The image set has no such version.")
    return int(digits or "0")


def _page(request: Request) -> PageRequest:
    return PageRequest(request.get("maxResults", 50), request.get("nextToken"))


def _version(item: ImageSet) -> Answer:
    """What GetImageSet and ListImageSetVersions both tell of a version."""
    return {
        "imageSetId": item.id,
        "versionId": str(item.version),
        "imageSetState": item.state,
        "createdAt": item.created_at,
        "updatedAt": item.updated_at,
        "deletedAt": item.deleted_at,
        "message": _message(item.message),
        "overrides": {"forced": True} if item.forced else None,
        "isPrimary": item.is_primary,
    }


def _summary(item: ImageSetSummary) -> Answer:
    return {
        "imageSetId": item.id,
        "version": item.version,
        "createdAt": item.created_at,
        "updatedAt": item.updated_at,
        "isPrimary": item.is_primary,
        "DICOMTags": dict(item.tags),
    }


def _is_public(job: ImportJob) -> bool:
    """Whether a job came through this API: those of STOW and C-STORE have no URIs and no role to tell."""
    return None not in (job.input_uri, job.output_uri, job.role_arn)


def _job(job: ImportJob) -> Answer:
    return {
        "jobId": job.id,
        "jobName": job.name or job.id,
        "jobStatus": job.status,
        "datastoreId": job.datastore,
        "dataAccessRoleArn": job.role_arn,
        "submittedAt": job.submitted_at,
        "endedAt": job.ended_at,
        "message": _message(job.message),
    }


def _message(text: str | None) -> str | None:
    """A message in the alphabet and length that the model gives it, with a blank for any other character."""
    return re.sub(r"[^\w -:`]", " ", text, flags=re.ASCII)[:2048] or None if text else None
