"""One association: its PDUs, its messages and its end (PS3.8 §9, PS3.7 §6).

Fragments of a data set go to their receiver as they arrive, straight from the receive buffer; a PDU is never gathered.
Each response leaves in one send.
"""

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog

from ..domain.ids import DatastoreId
from ..domain.model import Origin
from ..domain.query import SearchAnswer
from ..ports import Buffer, DicomIndex, Staging
from . import pdu
from .contexts import (
    FIND_ROOTS,
    VERIFICATION,
    is_storage,
    negotiate,
    negotiate_extended,
    negotiate_roles,
)
from .find import Find, Options
from .pdu import AssociateRequest, Command, ContextResult, ProtocolError
from .settings import DimseSettings
from .status import (
    CANCELLED,
    CANNOT_UNDERSTAND,
    CLASS_NOT_SUPPORTED,
    OUT_OF_RESOURCES,
    PENDING,
    PENDING_INCOMPLETE,
    SUCCESS,
    UNRECOGNISED_OPERATION,
    Status,
    find_status,
)
from .store import Batch, HandOver, Reception

_QUICK_ACK: Final[int | None] = getattr(socket, "TCP_QUICKACK", None)
_log = structlog.get_logger("gateway.dimse")

_BUFFER_BYTES = 1 << 18
_LARGEST_REQUEST = 1 << 20
_LARGEST_P_DATA = 1 << 20
"""Peers that overstep the announced maximum are borne up to here: a P-DATA-TF is never held in memory."""
_LARGEST_COMMAND = 1 << 16
_LARGEST_IDENTIFIER = 1 << 20
_LINGER_S = 2.0
_FIND_PAGE = 1000
_SENT_TOGETHER = 1 << 16
_CANCEL_CHECK_S = 0.1

_HEADER = struct.Struct(">BxI")
_PDV_HEADER = struct.Struct(">IBB")


class DimseMetrics(Protocol):
    """What the surface counts. Called from association threads."""

    def association(self, outcome: str) -> None:
        """An association ended: `released`, `aborted`, `lost`, `timeout`, `refused`, `protocol`, `drained`, `error`."""
        ...

    def message(self, service: str, status: int, seconds: float, size_bytes: int) -> None:
        """A message was answered: service `echo`, `store`, `find` or `other`, its final status, and its data set."""
        ...



@dataclass(frozen=True)
class House:
    """What all associations share."""

    settings: DimseSettings
    staging: Staging
    index: DicomIndex
    default_datastore: DatastoreId
    metrics: DimseMetrics
    intake: HandOver
    ask: Callable[[Coroutine[Any, Any, SearchAnswer]], "Future[SearchAnswer]"]
    """Runs a coroutine on the event loop."""
    draining: threading.Event
    places: threading.Semaphore
    """One for each association that may be established at a time."""


class _Ended(Exception):
    """The association is over; `outcome` as in DimseMetrics, `answer` is the last PDU to send."""

    def __init__(self, outcome: str, answer: bytes = b"", detail: str = "") -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.answer = answer
        self.detail = detail


class _Receiver(Protocol):
    """Where the data set of the message at hand goes."""

    def write(self, data: Buffer) -> None: ...


class _Discard:
    def write(self, data: Buffer) -> None:
        pass


class _Identifier:
    """Gathers a C-FIND's identifier, up to a limit."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.is_too_long = False

    def write(self, data: Buffer) -> None:
        self.is_too_long = self.is_too_long or len(self.data) + len(data) > _LARGEST_IDENTIFIER
        if not self.is_too_long:
            self.data += data


class _Wire:
    """A socket behind a preallocated buffer: `view[low:high]` holds what has come and is not used yet."""

    def __init__(self, connection: socket.socket, tick_s: float, send_timeout_s: float) -> None:
        self.view = memoryview(bytearray(_BUFFER_BYTES))
        self.low = self.high = 0
        self.is_closed = False
        self._socket = connection
        self._tick_s = tick_s
        self._send_timeout_s = send_timeout_s
        connection.settimeout(tick_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def _acknowledge(self) -> None:
        # A peer that sends a message in several writes under Nagle's algorithm waits for our acknowledgement of the
        # first, which Linux would delay by 40 ms. The kernel forgets this flag, so it is set anew each time.
        if _QUICK_ACK is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)

    def fill(self, deadline: float, tick: Callable[[], None] | None = None) -> None:
        """Waits for more bytes; calls `tick` now and then meanwhile. Raises _Ended at the deadline or at the end."""
        self._make_room()
        while True:
            try:
                count = self._socket.recv_into(self.view[self.high :])
            except TimeoutError:
                count = -1
            except OSError as error:
                raise _Ended("lost", detail=type(error).__name__) from None
            if not count:
                raise _Ended("lost")
            self._acknowledge()
            if count > 0:
                self.high += count
            # Also after some bytes came: a peer that trickles them must not hold a thread for ever.
            if time.monotonic() > deadline:
                raise _Ended("timeout", pdu.encode_abort(pdu.UNSPECIFIED))
            if count > 0:
                return
            if tick is not None:
                tick()

    def need(self, count: int, deadline: float, tick: Callable[[], None] | None = None) -> None:
        """Waits until `count` bytes are there; `count` must fit the buffer."""
        while self.high - self.low < count:
            self.fill(deadline, tick)

    def take(self, count: int, deadline: float) -> bytes:
        """The next `count` bytes, of any number."""
        gathered = bytearray()
        while len(gathered) < count:
            if self.low == self.high:
                self.fill(deadline)
            end = min(self.high, self.low + count - len(gathered))
            gathered += self.view[self.low : end]
            self.low = end
        return bytes(gathered)

    def look(self) -> memoryview:
        """What is there now, without waiting; sets `is_closed` when the peer has closed."""
        self._make_room()
        if self.high < len(self.view):
            self._socket.settimeout(0)
            try:
                count = self._socket.recv_into(self.view[self.high :])
            except BlockingIOError:
                count = -1
            except OSError as error:
                raise _Ended("lost", detail=type(error).__name__) from None
            finally:
                self._socket.settimeout(self._tick_s)
            self.is_closed = not count
            self.high += max(count, 0)
        return self.view[self.low : self.high]

    def _make_room(self) -> None:
        if self.low == self.high:
            self.low = self.high = 0
        elif self.high == len(self.view):
            rest = bytes(self.view[self.low : self.high])
            self.low, self.high = 0, len(rest)
            self.view[: len(rest)] = rest

    def send(self, data: bytes) -> None:
        """Sends all of it. Raises _Ended when the peer does not take it."""
        try:
            self._socket.settimeout(self._send_timeout_s)
            self._socket.sendall(data)
            self._socket.settimeout(self._tick_s)
        except TimeoutError:
            raise _Ended("timeout") from None
        except OSError as error:
            raise _Ended("lost", detail=type(error).__name__) from None

    def close(self) -> None:
        """Closes once the peer has, or after a moment: closing over unread input would reset the connection, and
        the peer might never see the last PDU."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            until = time.monotonic() + _LINGER_S
            count = 1
            while count and time.monotonic() < until:
                with suppress(TimeoutError):
                    count = self._socket.recv_into(self.view)
        self._socket.close()


class Association:
    """Serves one connection from its first byte to its end; `run` is the body of a thread."""

    def __init__(self, connection: socket.socket, address: str, house: House) -> None:
        settings = house.settings
        waits = (1.0, settings.batch_idle_s, settings.network_timeout_s, settings.association_timeout_s)
        self._wire = _Wire(connection, min(waits) / 2, settings.network_timeout_s)
        self._address = address
        self._house = house
        self._settings = settings
        self._contexts: dict[int, ContextResult] = {}
        self._options: dict[str, Options] = {}
        self._request: AssociateRequest | None = None
        self._datastore = house.default_datastore
        self._batch: Batch | None = None
        self._counts: Counter[str] = Counter()
        self._deadline = 0.0
        # The message at hand.
        self._left = 0
        """Bytes of the current P-DATA-TF that are not read yet."""
        self._context_id: int | None = None
        self._command_bytes = bytearray()
        self._command: Command | None = None
        self._receiver: _Receiver | None = None
        self._began = 0.0

    def run(self) -> None:
        """Serves the association. Raises nothing."""
        started = time.monotonic()
        outcome, detail, has_place = "error", "", False
        try:
            has_place = self._establish(started + self._settings.association_timeout_s)
            while True:
                self._next_pdu()
        except _Ended as end:
            outcome, detail = end.outcome, end.detail
            self._send_last(end.answer)
        except ProtocolError as error:
            outcome, detail = "protocol", str(error)
            self._send_last(pdu.encode_abort(error.reason))
        except Exception as error:
            _log.exception("association-failed", fault=type(error).__name__)
            self._send_last(pdu.encode_abort(pdu.UNSPECIFIED))
        finally:
            if isinstance(self._receiver, Reception):
                self._receiver.abort()
            if self._batch is not None:
                self._batch.close()
            if has_place:
                self._house.places.release()
            self._wire.close()
            self._house.metrics.association(outcome)
            self._report(outcome, detail, time.monotonic() - started)

    def _send_last(self, answer: bytes) -> None:
        # The batch goes first: its job may start while the peer reads the answer.
        if self._batch is not None:
            self._batch.close()
        if answer:
            with suppress(_Ended):
                self._wire.send(answer)

    def _report(self, outcome: str, detail: str, seconds: float) -> None:
        request = self._request
        accepted = len(self._contexts)
        _log.info(
            "association",
            outcome=outcome,
            detail=detail,
            address=self._address,
            called=request.called if request else None,
            calling=request.calling if request else None,
            implementation=request.implementation_uid if request else None,
            version=request.implementation_version if request else None,
            contexts_accepted=accepted,
            contexts_refused=len(request.contexts) - accepted if request else 0,
            seconds=round(seconds, 3),
            **self._counts,
        )

    # Establishment

    def _establish(self, deadline: float) -> bool:
        """Reads the request and accepts it; True: a place is taken. Raises _Ended with the rejection otherwise."""
        wire = self._wire
        wire.need(6, deadline, self._between_messages)
        kind, length = _HEADER.unpack_from(wire.view, wire.low)
        if kind != pdu.ASSOCIATE_RQ:
            known = pdu.ASSOCIATE_RQ <= kind <= pdu.ABORT
            raise ProtocolError(
                pdu.UNEXPECTED_PDU if known else pdu.UNRECOGNISED_PDU, "the first PDU is no association request"
            )
        if length > _LARGEST_REQUEST:
            raise ProtocolError(pdu.INVALID_PARAMETER, "the association request is too long")
        wire.low += 6
        request = pdu.decode_associate_request(wire.take(length, deadline))
        self._request = request
        store_only = self._admit(request)
        if not self._house.places.acquire(blocking=False):
            raise _Ended("refused", pdu.encode_associate_reject(2, 3, 2), "local limit exceeded")
        try:
            self._accept(request, store_only)
        except BaseException:
            self._house.places.release()
            raise
        return True

    def _admit(self, request: AssociateRequest) -> bool:
        """True when the caller may do no more than C-ECHO and C-STORE. Raises _Ended (table RJ)."""
        if not request.version & 1:
            raise _Ended("refused", pdu.encode_associate_reject(1, 2, 2), "protocol version")
        if request.application_context != pdu.APPLICATION_CONTEXT:
            raise _Ended("refused", pdu.encode_associate_reject(1, 1, 2), "application context")
        known = any(peer.is_caller(request.calling, self._address) for peer in self._settings.peers)
        if not known and self._settings.unknown_callers == "none":
            raise _Ended("refused", pdu.encode_associate_reject(1, 1, 3), "calling title not recognised")
        if self._house.draining.is_set():
            raise _Ended("refused", pdu.encode_associate_reject(2, 3, 1), "draining")
        return not known and self._settings.unknown_callers == "store"

    def _accept(self, request: AssociateRequest, store_only: bool) -> None:
        results = negotiate(request, store_only=store_only)
        self._contexts = {result.id: result for result in results if result.result == 0}
        accepted = {result.abstract_syntax for result in self._contexts.values()}
        extended = negotiate_extended(request, accepted)
        self._options = {uid: Options.of(granted) for uid, granted in extended.items()}
        self._datastore = self._settings.titles.get(request.called, self._house.default_datastore)
        self._batch = Batch(self._datastore, self._settings, self._house.intake)
        self._wire.send(
            pdu.encode_associate_accept(
                request.reserved, results, self._settings.max_pdu, negotiate_roles(request, accepted), extended
            )
        )

    # PDUs

    def _between_messages(self) -> None:
        """Runs now and then while the peer is silent."""
        if self._command is None and not self._command_bytes and self._house.draining.is_set():
            raise _Ended("drained", pdu.encode_abort(pdu.UNSPECIFIED))
        if self._batch is not None:
            self._batch.close_if_idle()

    def _next_pdu(self) -> None:
        wire = self._wire
        if wire.high - wire.low < 6:
            wire.need(6, time.monotonic() + self._settings.network_timeout_s, self._between_messages)
        kind, length = _HEADER.unpack_from(wire.view, wire.low)
        wire.low += 6
        self._deadline = time.monotonic() + self._settings.network_timeout_s
        if kind == pdu.P_DATA:
            if length > max(self._settings.max_pdu, _LARGEST_P_DATA):
                raise ProtocolError(pdu.INVALID_PARAMETER, "a P-DATA-TF is far longer than announced")
            self._left = length
            self._p_data()
        elif kind == pdu.RELEASE_RQ:
            self._skip(length)
            raise _Ended("released", pdu.encode_release_response())
        elif kind == pdu.ABORT:
            raise _Ended("aborted", detail="by the peer")
        else:
            known = pdu.ASSOCIATE_RQ <= kind <= pdu.ABORT
            raise ProtocolError(pdu.UNEXPECTED_PDU if known else pdu.UNRECOGNISED_PDU, f"PDU type {kind:#04x}")

    def _skip(self, length: int) -> None:
        if length != 4:
            raise ProtocolError(pdu.INVALID_PARAMETER, "a PDU of fixed length has another one")
        self._wire.take(length, self._deadline)

    def _p_data(self) -> None:
        wire = self._wire
        while self._left:
            if self._left < 6:
                raise ProtocolError(pdu.INVALID_PARAMETER, "a P-DATA-TF ends within a fragment's header")
            if wire.high - wire.low < 6:
                wire.need(6, self._deadline)
            length, context_id, control = _PDV_HEADER.unpack_from(wire.view, wire.low)
            wire.low += 6
            if length < 2 or length + 4 > self._left:
                raise ProtocolError(pdu.INVALID_PARAMETER, "a fragment is longer than its P-DATA-TF")
            self._left -= length + 4
            if context_id != self._context_id:
                self._switch_context(context_id)
            if control & 1:
                self._command_fragment(length - 2, control & 2)
            else:
                self._data_fragment(length - 2, control & 2)

    def _switch_context(self, context_id: int) -> None:
        """A message stays in its context, and the context is one that was accepted (PC-09)."""
        if self._command is not None or self._command_bytes:
            raise ProtocolError(pdu.UNEXPECTED_PARAMETER, "a message changes its presentation context")
        if context_id not in self._contexts:
            proposed = self._request.contexts if self._request else ()
            name = next((context.abstract_syntax for context in proposed if context.id == context_id), "unknown")
            raise ProtocolError(pdu.INVALID_PARAMETER, f"a message on a context that was not accepted: {name}")
        self._context_id = context_id

    def _command_fragment(self, length: int, is_last: int) -> None:
        if self._command is not None:
            raise ProtocolError(pdu.UNEXPECTED_PARAMETER, "a command where a data set is due")
        if len(self._command_bytes) + length > _LARGEST_COMMAND:
            raise ProtocolError(pdu.INVALID_PARAMETER, "the command set is too long")
        self._command_bytes += self._wire.take(length, self._deadline)
        if is_last:
            command = pdu.decode_command(self._command_bytes)
            self._command_bytes.clear()
            self._begin(command)

    def _data_fragment(self, length: int, is_last: int) -> None:
        receiver, wire = self._receiver, self._wire
        if receiver is None:
            raise ProtocolError(pdu.UNEXPECTED_PARAMETER, "a data set without a command")
        while length:
            if wire.low == wire.high:
                wire.fill(self._deadline)
            count = min(length, wire.high - wire.low)
            receiver.write(wire.view[wire.low : wire.low + count])
            wire.low += count
            length -= count
        if is_last:
            self._answer()

    # Messages

    def _begin(self, command: Command) -> None:
        if command.field & 0x8000:
            raise ProtocolError(pdu.UNEXPECTED_PARAMETER, "a response that nobody asked for")
        self._command = command
        self._began = time.monotonic()
        if not command.has_data:
            self._answer()
        elif command.field == pdu.C_STORE_RQ and is_storage(self._context.abstract_syntax):
            self._receiver = Reception(self._house.staging, command, self._origin(command))
        elif command.field == pdu.C_FIND_RQ:
            self._receiver = _Identifier()
        else:
            self._receiver = _Discard()

    @property
    def _context(self) -> ContextResult:
        assert self._context_id is not None
        return self._contexts[self._context_id]

    def _origin(self, command: Command) -> Origin:
        assert self._request is not None
        return Origin(
            datastore=self._datastore,
            source="dimse",
            part10=False,
            syntax=self._context.transfer_syntax,
            sop_class=command.sop_class,
            sop_uid=command.sop_uid,
            called_ae=self._request.called,
            calling_ae=self._request.calling,
        )

    def _answer(self) -> None:
        """The whole message is here: does what it asks and responds."""
        command, receiver = self._command, self._receiver
        assert command is not None
        service, size = "other", 0
        if command.field == pdu.C_STORE_RQ:
            service = "store"
            if isinstance(receiver, Reception):
                size = receiver.size_bytes
                status = self._store(receiver)
            elif is_storage(self._context.abstract_syntax):
                status = Status(CANNOT_UNDERSTAND, "the message has no data set")
            else:
                status = Status(CLASS_NOT_SUPPORTED, "this presentation context is not for storage")
        elif command.field == pdu.C_ECHO_RQ:
            service = "echo"
            is_verification = command.sop_class == VERIFICATION
            status = Status(SUCCESS) if is_verification else Status(CLASS_NOT_SUPPORTED, "C-ECHO is Verification's")
        elif command.field == pdu.C_FIND_RQ:
            service = "find"
            identifier = receiver if isinstance(receiver, _Identifier) else _Identifier()
            size = len(identifier.data)
            status = self._find(command, identifier)
        elif command.field == pdu.C_CANCEL_RQ:
            self._forget()  # of a message that has been answered already (CFIND-10)
            return
        else:
            status = Status(UNRECOGNISED_OPERATION, "only C-ECHO, C-STORE and C-FIND are served here")
        self._wire.send(self._response(command, status))
        self._forget()
        self._counts[service] += 1
        if status.code not in (SUCCESS, CANCELLED):
            self._counts["not_successful"] += 1
        self._counts["bytes"] += size
        self._house.metrics.message(service, status.code, time.monotonic() - self._began, size)
        if self._house.draining.is_set():
            raise _Ended("drained", pdu.encode_abort(pdu.UNSPECIFIED))

    def _forget(self) -> None:
        self._command = self._receiver = None

    def _response(self, command: Command, status: Status, identifier: bytes | None = None) -> bytes:
        assert self._request is not None
        context, limit = self._context.id, self._request.max_pdu
        has_data = identifier is not None
        body = pdu.encode_response(command, status.code, status.comment, status.offending, has_data=has_data)
        message = pdu.encode_p_data(context, body, command=True, max_pdu=limit)
        if identifier is None:
            return message
        return message + pdu.encode_p_data(context, identifier, command=False, max_pdu=limit)

    def _store(self, reception: Reception) -> Status:
        status, staged = reception.finish()
        if staged is not None and self._batch is not None:
            self._counts["stored"] += 1
            self._batch.add(staged)
        return status

    def _find(self, command: Command, identifier: _Identifier) -> Status:
        """Sends the matches, some in one send; the final status is returned."""
        root = self._context.abstract_syntax
        if root not in FIND_ROOTS or command.sop_class not in FIND_ROOTS:
            return Status(CLASS_NOT_SUPPORTED, "C-FIND is for Patient Root and Study Root")
        if identifier.is_too_long:
            return Status(OUT_OF_RESOURCES, "the identifier is over 1 MB; ask with fewer keys")
        try:
            return self._matches(command, bytes(identifier.data), root)
        except (_Ended, ProtocolError):
            raise
        except Exception as error:
            status = find_status(error)
            _log.warning("find-failed", status=f"{status.code:04X}", fault=type(error).__name__)
            return status

    def _matches(self, command: Command, identifier: bytes, root: str) -> Status:
        assert self._request is not None
        called = self._request.called
        find = Find(
            identifier,
            root,
            self._context.transfer_syntax,
            datastore=self._datastore,
            retrieve_ae=called if called in self._settings.titles else self._settings.ae_title,
            options=self._options.get(root),
        )
        if find.relational:
            self._counts["relational"] += 1
        sent, remaining = 0, 1
        while remaining:
            if sent >= self._settings.find_limit:
                return Status(OUT_OF_RESOURCES, f"stopped after {sent} matches; narrow the query")
            page = min(_FIND_PAGE, self._settings.find_limit - sent)
            answer = self._await(command, find.query(limit=page, offset=sent))
            if answer is None:
                return Status(CANCELLED)
            waiting = bytearray()
            for row in answer.rows:
                body, is_complete = find.response(row)
                waiting += self._response(command, Status(PENDING if is_complete else PENDING_INCOMPLETE), body)
                if len(waiting) >= _SENT_TOGETHER:
                    self._wire.send(bytes(waiting))
                    waiting.clear()
                    if self._is_cancelled(command):
                        return Status(CANCELLED)
            if waiting:
                self._wire.send(bytes(waiting))
            sent += len(answer.rows)
            self._counts["matches"] += len(answer.rows)
            remaining = answer.remaining if answer.rows else 0
            if remaining and self._is_cancelled(command):
                return Status(CANCELLED)
        return Status(SUCCESS)

    def _await(self, command: Command, query: Any) -> SearchAnswer | None:
        """The index's answer; None when the peer has cancelled meanwhile."""
        future = self._house.ask(self._house.index.find(query))
        try:
            while True:
                try:
                    return future.result(_CANCEL_CHECK_S)
                except TimeoutError:
                    if future.done():
                        raise
                    if self._is_cancelled(command):
                        return None
        finally:
            future.cancel()

    def _is_cancelled(self, command: Command) -> bool:
        """Looks, without waiting, whether the next PDU is the C-CANCEL of `command` (CFIND-10).

        Any other message is left where it is; an abort or a closed connection raises _Ended.
        """
        if self._left:
            return False
        wire = self._wire
        seen = wire.look()
        kind, length = _HEADER.unpack_from(seen) if len(seen) >= 6 else (0, 0)
        if kind == pdu.ABORT:
            raise _Ended("aborted", detail="by the peer")
        if wire.is_closed:
            raise _Ended("lost")
        if kind != pdu.P_DATA or length < 6 or len(seen) < 6 + length:
            return False
        size, context_id, control = _PDV_HEADER.unpack_from(seen, 6)
        if size + 4 != length or control != 3 or context_id != self._context_id:
            return False
        cancel = pdu.decode_command(seen[12 : 6 + length])
        if cancel.field != pdu.C_CANCEL_RQ or cancel.responding_to != command.message_id:
            return False
        wire.low += 6 + length
        return True
