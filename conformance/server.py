"""The server under judgement, seen through HTTP: each exchange is kept as it went over the wire."""

import base64
import http.client
import io
import socket
import ssl
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from . import reading

DICOM_JSON: Final = "application/dicom+json"
DICOM_XML: Final = "application/dicom+xml"
_TIMEOUT: Final = httpx.Timeout(30.0, connect=10.0)
_SHOWN_BYTES: Final = 2000
_SECRETS: Final = frozenset({"authorization", "cookie", "set-cookie"})

PartToSend = tuple[str | Mapping[str, str], bytes]
"""The Content-Type or the headers of a part, and its payload."""

Params = Mapping[str, str] | Sequence[tuple[str, str]] | str
"""Of a query: encoded here, or a string as it shall go out."""


@dataclass(slots=True)
class Answer:
    """One request and what came back."""

    method: str
    url: str
    sent: list[tuple[str, str]]
    content: bytes
    status: int
    headers: httpx.Headers
    body: bytes
    own: Callable[[str], bool] = field(default=lambda uid: True)
    """Whether a Study Instance UID is one of this run's."""

    @property
    def type(self) -> str:
        """The media type in lower case, without parameters."""
        return str(self.headers.get("content-type", "")).partition(";")[0].strip().lower()

    @property
    def is_ok(self) -> bool:
        return self.status in (200, 202, 204, 206)

    def json(self) -> Any:
        """Raises reading.Unreadable."""
        return reading.json_document(self.body)

    def rows(self) -> list[dict[str, Any]]:
        """The data sets of a DICOM JSON array; none for 204. Raises reading.Unreadable."""
        return [] if self.status == 204 else reading.data_sets(self.body)

    def parts(self) -> list[reading.Part]:
        """The parts of a multipart answer, or the body as the only part. Raises reading.Unreadable."""
        return reading.parts(self.headers.get("content-type", ""), self.headers, self.body)

    def request_text(self) -> str:
        """The request for a report; no credentials."""
        lines = [f"{self.method} {self.url}"]
        lines += [f"{name}: {'***' if name.lower() in _SECRETS else value}" for name, value in self.sent]
        if self.content:
            lines += ["", _shown(self.content)]
        return "\n".join(lines)

    def answer_text(self) -> str:
        """The answer for a report; other people's data that a search may have found is left out."""
        lines = [f"HTTP {self.status}"]
        lines += [f"{name}: {'***' if name in _SECRETS else value}" for name, value in self.headers.items()]
        if self.body:
            lines += ["", self._own_body()]
        return "\n".join(lines)

    @property
    def strangers(self) -> int:
        """How many studies the answer is about that are none of this run's."""
        if "json" not in self.type and "xml" not in self.type:
            return 0
        try:
            uids = reading.study_uids(self.body)
        except reading.Unreadable:
            return 0
        return sum(not self.own(uid) for uid in uids)

    def _own_body(self) -> str:
        if self.strangers:
            return f"[{len(self.body)} bytes about {self.strangers} studies that are not this run's: not shown]"
        return _shown(self.body)


def _shown(data: bytes) -> str:
    text = data[:_SHOWN_BYTES].decode("utf-8", "backslashreplace")
    text = "".join(c if c.isprintable() or c in "\n\t" else "" if c == "\r" else f"\\x{ord(c):02x}" for c in text)
    left = len(data) - _SHOWN_BYTES
    return text + (f"\n[... {left} bytes more]" if left > 0 else "")


class Server:
    """A DICOMweb base URL. Every method returns an Answer; httpx.HTTPError when there is none."""

    def __init__(self, base: str, auth: str | None = None) -> None:
        """`auth`: NAME:PASSWORD for Basic, or the whole value of the Authorization header."""
        self.base = base.rstrip("/")
        self.auth: dict[str, str] = {}
        if auth and " " in auth:
            self.auth = {"Authorization": auth}
        elif auth:
            name, _, password = auth.partition(":")
            self.auth = {"Authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}
        self.exchanges: list[Answer] = []
        """Of the running case."""
        self.own: Callable[[str], bool] = lambda uid: True
        self._http = httpx.Client(timeout=_TIMEOUT, follow_redirects=False)
        # Whatever httpx adds by itself would hide what a client sends that adds nothing.
        self._http.headers = httpx.Headers({"user-agent": "dicom-conformance"})

    def close(self) -> None:
        self._http.close()

    def url(self, path: str, params: Params = ()) -> str:
        query = params if isinstance(params, str) else urllib.parse.urlencode(_pairs(params), safe="*,/")
        where = path if path.startswith(("http://", "https://")) else self.base + path
        return f"{where}?{query}" if query else where

    def send(
        self,
        method: str,
        path: str,
        params: Params = (),
        *,
        accept: str | None = DICOM_JSON,
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterable[bytes] = b"",
        authorized: bool = True,
    ) -> Answer:
        """One request; `accept` None sends no Accept header at all."""
        url = self.url(path, params)
        sent = {
            **(self.auth if authorized else {}),
            **({} if accept is None else {"Accept": accept}),
            **(headers or {}),
        }
        request = self._http.build_request(method, url, headers=sent, content=content or None)
        response = self._http.send(request)
        known = content if isinstance(content, bytes) else b"[sent in chunks]"
        answer = Answer(
            method,
            url,
            [(k.decode("latin-1"), v.decode("latin-1")) for k, v in request.headers.raw],
            known,
            response.status_code,
            response.headers,
            response.content,
            self.own,
        )
        self.exchanges.append(answer)
        return answer

    def raw(self, method: str, target: str, lines: Sequence[str] = (), body: bytes = b"") -> Answer:
        """A request written byte for byte on a connection of its own, for what no HTTP library would send.

        `target` stands in the request line as it is, behind the base's path. Raises httpx.ReadError without an answer.
        """
        parts = urllib.parse.urlsplit(self.base)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        head = [f"Host: {parts.netloc.rpartition('@')[2]}", "Connection: close"]
        head += [f"{name}: {value}" for name, value in self.auth.items()]
        head += lines
        if body:
            head.append(f"Content-Length: {len(body)}")
        text = f"{method} {parts.path}{target} HTTP/1.1\r\n" + "\r\n".join(head) + "\r\n\r\n"
        try:
            with _connected(parts.scheme, parts.hostname or "", port) as connection:
                connection.sendall(text.encode("latin-1") + body)
                response = http.client.HTTPResponse(connection, method=method)
                response.begin()
                content = response.read()
        except (OSError, http.client.HTTPException) as fault:
            raise httpx.ReadError(f"no answer: {type(fault).__name__}") from None
        answer = Answer(
            method,
            f"{self.base}{target}",
            [_header(line) for line in head],
            body,
            response.status,
            httpx.Headers(response.getheaders()),
            content,
            self.own,
        )
        self.exchanges.append(answer)
        return answer


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name, value.strip()


def _pairs(params: Params) -> list[tuple[str, str]]:
    if isinstance(params, str):
        raise TypeError("a query that is encoded already")
    return [*params.items()] if isinstance(params, Mapping) else [*params]


def _connected(scheme: str, host: str, port: int) -> socket.socket:
    plain = socket.create_connection((host, port), timeout=20)
    return ssl.create_default_context().wrap_socket(plain, server_hostname=host) if scheme == "https" else plain


def multipart(
    parts: Iterable[PartToSend],
    boundary: str,
    *,
    preamble: bytes = b"",
    epilogue: bytes = b"",
) -> bytes:
    """A multipart/related body: each part is its Content-Type or its headers, and its payload."""
    out = io.BytesIO()
    out.write(preamble)
    for head, payload in parts:
        headers = {"Content-Type": head} if isinstance(head, str) else head
        out.write(f"--{boundary}\r\n".encode())
        for name, value in headers.items():
            out.write(f"{name}: {value}\r\n".encode("latin-1"))
        out.write(b"\r\n" + payload + b"\r\n")
    out.write(f"--{boundary}--".encode() + epilogue)
    return out.getvalue()
