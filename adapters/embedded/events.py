"""Events as EventBridge would carry them: written beside what they tell, delivered to a webhook (healthimaging.md 10).

An event is a row of the transaction that it tells of, and goes once the webhook has taken it: in order, at least once,
whatever dies in between. Without a webhook there are none.
"""

import fcntl
import os
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
import structlog

from adapters.sql import tables as t
from adapters.sql.database import Database, Statement
from gateway.domain.errors import GatewayError
from gateway.domain.model import DatastoreStatus, ImageSetState, JobStatus, Workflow

log = structlog.get_logger("gateway.events")

_BATCH = 100
_IDLE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_INSERT = Statement(sa.insert(t.event))

_DATASTORE = {
    DatastoreStatus.CREATING: "Creating",
    DatastoreStatus.CREATE_FAILED: "Creation Failed",
    DatastoreStatus.ACTIVE: "Created",
    DatastoreStatus.DELETING: "Deleting",
    DatastoreStatus.DELETED: "Deleted",
}
_IMAGE_SET = {
    # The service has no word for a merge or for a sibling of an edited image set; both are updates of it.
    Workflow.IMPORTED: "Updated",
    Workflow.UPDATING_FOR_STUDY_CONSISTENCY: "Updating",
}


class Events:
    """Writes events into the transactions of others; `arn` is that of a data store without its id, None for none."""

    def __init__(self, arn: str | None = None) -> None:
        self._arn = arn

    def datastore(self, connection: sa.Connection, row: "sa.Row[Any]", *statuses: DatastoreStatus) -> None:
        for status in statuses:
            detail = {"datastoreId": row.id, "datastoreName": row.name, "datastoreStatus": status}
            self._write(connection, f"Data Store {_DATASTORE[status]}", row.id, detail)

    def job(self, connection: sa.Connection, row: "sa.Row[Any]", datastore: str, status: JobStatus) -> None:
        """Of jobs that came through the API; `row` is the job's."""
        detail = {
            "datastoreId": datastore,
            "jobId": row.id,
            "jobName": row.name,
            "jobStatus": status,
            "inputS3Uri": row.input_uri,
            "outputS3Uri": row.output_uri,
        }
        self._write(connection, f"Import Job {status.replace('_', ' ').title()}", datastore, detail)

    def image_set(
        self,
        connection: sa.Connection,
        datastore: str,
        image_set: str,
        version: int,
        workflow: Workflow,
        *,
        is_primary: bool,
        state: ImageSetState,
        copied_from: str | None = None,
    ) -> None:
        """`copied_from` is the image set that a copy takes from."""
        if self._arn is None:
            return
        detail = {
            "isPrimary": is_primary,
            "imageSetVersion": str(version),
            "datastoreId": datastore,
            "imagesetId": image_set,
            "imageSetState": state,
            "imageSetWorkflowStatus": workflow,
        }
        if copied_from is not None:
            detail["sourceImageSetArn"] = f"{self._arn}{datastore}/imageset/{copied_from}"
        told = _IMAGE_SET.get(workflow) or workflow.replace("_", " ").title()
        self._write(connection, f"Image Set {told}", f"{datastore}/imageset/{image_set}", detail)

    def _write(self, connection: sa.Connection, kind: str, resource: str, detail: dict[str, Any]) -> None:
        if self._arn is None:
            return
        _, _, _, region, account, _ = self._arn.split(":", 5)
        event = {
            "version": "0",
            "id": str(uuid.uuid4()),
            "detail-type": kind,
            "source": "aws.medical-imaging",
            "account": account,
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "region": region,
            "resources": [self._arn + resource],
            "detail": {"imagingVersion": "1.0", **detail},
        }
        _INSERT.run(connection, {"body": orjson.dumps(event).decode()})


class Courier:
    """Delivers events, one after the other; of all processes over a data folder one at a time does."""

    def __init__(self, database: Database, post: Callable[[bytes], None], lock_path: Path) -> None:
        """`post` takes one event, and raises a GatewayError where it was not delivered."""
        self._database = database
        self._post = post
        self._lock_path = lock_path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the event in hand is delivered or given up; the rest waits for the next start."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        pause = _IDLE_S
        try:
            while not self._stop.is_set():
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    while not self._stop.is_set() and self.deliver():
                        pass
                    pause = _IDLE_S / 4
                except BlockingIOError:
                    pause = _IDLE_S  # another worker delivers
                except GatewayError as fault:
                    log.warning("webhook.failed", code=fault.code, detail=fault.detail)
                    pause = min(_LONGEST_PAUSE_S, pause * 2)
                except Exception:
                    log.exception("webhook.failed")
                    pause = _LONGEST_PAUSE_S
                self._stop.wait(pause)
        finally:
            with suppress(OSError):
                os.close(descriptor)

    def deliver(self) -> bool:
        """Delivers what waits, oldest first; whether there was any. Raises what `post` raises."""
        e = t.event
        with self._database.read() as connection:
            rows = connection.execute(sa.select(e.c.pk, e.c.body).order_by(e.c.pk).limit(_BATCH)).all()
        done: list[int] = []
        try:
            for pk, body in rows:
                if self._stop.is_set():
                    break
                self._post(body.encode())
                done.append(pk)
        finally:
            if done:
                # Told again after a loss of power rather than synced: at least once is the promise.
                with self._database.write(durable=False) as connection:
                    connection.execute(sa.delete(e).where(e.c.pk.in_(done)))
        return bool(rows)
