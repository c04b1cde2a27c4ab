"""The operations of the API: a decoded request, a call of the port, an answer to encode.

Requests and answers are dicts of the service model's members; camelCase lives here and in `awsjson` alone.
"""

import asyncio
import gzip
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from ..domain import differences, edits
from ..domain.copies import parse_subset
from ..domain.edits import MetadataUpdate
from ..domain.errors import InvalidInput, NotFound
from ..domain.ids import DatastoreId, FrameId, ImageSetId, JobId
from ..domain.model import (
    CopyRequest,
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
    Resource,
)
from ..domain.syntaxes import frame_content_type
from ..ports import HealthImaging, History
from . import criteria

Request = Mapping[str, Any]
Answer = dict[str, Any]

REFUSED: Mapping[str, frozenset[str]] = {
    "CreateDatastore": frozenset({"kmsKeyArn", "lambdaAuthorizerArn"}),
    "StartDICOMImportJob": frozenset({"importConfiguration"}),
}
"""Members that would be a false promise if they were taken and not acted on: a request with one is a fault."""

IGNORED: Mapping[str, frozenset[str]] = {"StartDICOMImportJob": frozenset({"inputOwnerAccountId"})}
"""Members without a meaning where buckets have no owners."""

UNTOLD: Mapping[str, frozenset[str]] = {
    "GetDatastore": frozenset({"datastoreProperties.kmsKeyArn", "datastoreProperties.lambdaAuthorizerArn"}),
    "GetDICOMImportJob": frozenset({"jobProperties.importConfiguration"}),
}
"""Members of answers, by path, that tell of what is refused."""

_RARE: Final = timedelta(days=30)
"""Without an access for so long, an image set is told to be in the archive tier; here nothing moves."""

_ID = re.compile("[0-9a-z]{32}")

# PostgreSQL's integer, and more versions than anything will have.
_MAX_VERSION = 2**31 - 1


class Operations:
    """One method for each operation that is served, over one backend.

    Each takes the decoded request and the name of who asks, None without authentication, and raises the errors of
    the port. The method of an operation is found through `SERVED`.
    """

    def __init__(self, backend: HealthImaging, region: str, account: str, history: History | None = None) -> None:
        """Previews need a `history`; without one they are refused."""
        self._backend = backend
        self._history = history
        self._arn = datastore_arn(region, account)

    async def create_datastore(self, request: Request, actor: str | None) -> Answer:
        """API: CreateDatastore."""
        store = await self._backend.create_datastore(
            request.get("datastoreName"),
            request["clientToken"],
            request.get("losslessStorageFormat", "HTJ2K"),
            request.get("tags"),
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
            actor=actor,
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
        return (
            _version(found)
            | _access(found.accessed_at)
            | {
                "datastoreId": found.datastore,
                "imageSetWorkflowStatus": found.workflow,
                "imageSetArn": self._set_arn(found),
            }
        )

    async def list_versions(self, request: Request, actor: str | None) -> Answer:
        """API: ListImageSetVersions. Only here the API writes ImageSetWorkflowStatus with a capital."""
        page: Page[ImageSet] = await self._backend.list_versions(_ref(request), _page(request))
        return {
            "imageSetPropertiesList": [
                _version(item)
                | {"ImageSetWorkflowStatus": item.workflow}
                # As the service lists it: what was only made, or copied from, has not been updated.
                | ({"updatedAt": None} if item.version == 1 else {})
                for item in page.items
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
        ref = _ref(request)
        try:
            update = _update(request, actor)
        except InvalidInput:
            await self._backend.get_image_set(ref)  # that it is not there is what is wrong first
            raise
        accepted = await self._backend.update_metadata(ref, _number(request["latestVersionId"]), update)
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

    async def preview_update(self, request: Request, actor: str | None) -> Answer:
        """What UpdateImageSetMetadata would change, without doing it: a list of differences (`domain.differences`)."""
        if self._history is None:
            raise InvalidInput("dryRun is not possible here.")
        version = _number(request["latestVersionId"])
        before, after = await self._history.preview(_ref(request), version, _update(request, actor))
        return {"dryRun": True, "from": version, "to": version + 1, "differences": differences.between(before, after)}

    async def copy(self, request: Request, actor: str | None) -> Answer:
        """API: CopyImageSet."""
        asked = request["copyImageSetInformation"]
        store, source, target = _datastore(request), asked["sourceImageSet"], asked.get("destinationImageSet")
        subset = source.get("DICOMCopies")
        done = await self._backend.copy(
            CopyRequest(
                source=ImageSetRef(store, ImageSetId(request["sourceImageSetId"]), _number(source["latestVersionId"])),
                destination=target
                and ImageSetRef(store, ImageSetId(target["imageSetId"]), _number(target["latestVersionId"])),
                instances=subset and parse_subset(subset["copiableAttributes"]),
                force=request.get("force", False),
                promote=request.get("promoteToPrimary", False),
                actor=actor,
            )
        )
        return {
            "datastoreId": store,
            "sourceImageSetProperties": self._copied(done.source),
            "destinationImageSetProperties": self._copied(done.destination),
        }

    def _copied(self, item: ImageSet) -> Answer:
        return {
            "imageSetId": item.id,
            "latestVersionId": str(item.version),
            "imageSetState": item.state,
            "imageSetWorkflowStatus": item.workflow,
            "createdAt": item.created_at,
            "updatedAt": item.updated_at,
            "imageSetArn": self._set_arn(item),
        }

    async def tag(self, request: Request, actor: str | None) -> Answer:
        """API: TagResource."""
        await self._backend.tag(self._resource(request), request["tags"])
        return {}

    async def untag(self, request: Request, actor: str | None) -> Answer:
        """API: UntagResource."""
        await self._backend.untag(self._resource(request), request["tagKeys"])
        return {}

    async def list_tags(self, request: Request, actor: str | None) -> Answer:
        """API: ListTagsForResource."""
        return {"tags": dict(await self._backend.tags(self._resource(request)))}

    def _resource(self, request: Request) -> Resource:
        """What an ARN names, of our region and account. Raises NotFound."""
        arn = request["resourceArn"]
        store, is_set, image_set = arn.removeprefix(self._arn).partition("/imageset/")
        if not arn.startswith(self._arn) or not _ID.fullmatch(store) or (is_set and not _ID.fullmatch(image_set)):
            raise NotFound("There is no resource with this ARN.")
        return Resource(DatastoreId(store), ImageSetId(image_set) if is_set else None)

    async def delete_image_set(self, request: Request, actor: str | None) -> Answer:
        """API: DeleteImageSet."""
        deleted = await self._backend.delete(_ref(request), actor)
        return {
            "datastoreId": deleted.datastore,
            "imageSetId": deleted.id,
            "imageSetState": deleted.state,
            "imageSetWorkflowStatus": deleted.workflow,
        }

    def _set_arn(self, item: ImageSet) -> str:
        return f"{self._arn}{item.datastore}/imageset/{item.id}"

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
    "CopyImageSet": Operations.copy,
    "DeleteImageSet": Operations.delete_image_set,
    "TagResource": Operations.tag,
    "UntagResource": Operations.untag,
    "ListTagsForResource": Operations.list_tags,
}
"""Operation name -> the method that serves it."""

PREVIEWED: Mapping[str, Callable[[Operations, Request, str | None], Awaitable[Answer]]] = {
    "UpdateImageSetMetadata": Operations.preview_update,
}
"""Operation name -> the method that serves it with `?dryRun=true`, which is ours."""


def datastore_arn(region: str, account: str) -> str:
    """The ARN of a data store without its id."""
    partition = {"cn": "aws-cn", "us-gov": "aws-us-gov"}.get(region.rpartition("-")[0].rpartition("-")[0], "aws")
    return f"arn:{partition}:medical-imaging:{region}:{account}:datastore/"


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


def _update(request: Request, actor: str | None) -> MetadataUpdate:
    asked = request["updateImageSetMetadataUpdates"]
    changes = asked.get("DICOMUpdates", {})
    revert_to = asked.get("revertToVersionId")
    return edits.parse_update(
        changes.get("updatableAttributes"),
        changes.get("removableAttributes"),
        str(_number(revert_to)) if revert_to else None,
        force=request.get("force", False),
        study=request.get("includeStudyImageSets", False),
        actor=actor,
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


def _access(at: datetime | None) -> Answer:
    """lastAccessedAt and storageTier."""
    if at is None:
        return {}
    tier = "FREQUENT_ACCESS" if datetime.now(UTC) - at < _RARE else "ARCHIVE_INSTANT_ACCESS"
    return {"lastAccessedAt": at, "storageTier": tier}


def _summary(item: ImageSetSummary) -> Answer:
    return _access(item.accessed_at) | {
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
