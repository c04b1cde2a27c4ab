"""Who is asking: bearer tokens, HTTP Basic, Signature Version 4. Any of them set up closes every HTTP face."""

import base64
import binascii
import hashlib
import hmac
import re
from typing import Final

from ..awsjson import sigv4
from ..settings import Settings
from .problems import Asgi, Face, Message, Receive, Refusal, Scope, Send, face_of, refuse

_OPEN = frozenset({"/livez", "/readyz"})
_MAX_HASHED_BYTES: Final = 4 * 1024 * 1024
"""Of a signed body whose hash is not declared, so that it must be there before anything is decided."""
_HASH = re.compile(r"[0-9a-f]{64}")


class Authentication:
    """Lets requests of known callers through, and tells the application who they are: `scope["state"]["principal"]`.

    Refused: 401 with `WWW-Authenticate` on DICOMweb and operations; on the HealthImaging API 403 with the service's
    exceptions. `/livez` and `/readyz` stay open; preflights do not come this far.
    """

    def __init__(self, app: Asgi, settings: Settings) -> None:
        auth = settings.auth
        self._app = app
        self._region = settings.region
        self._secrets = [
            (_digest(b"Bearer " + token.token.get_secret_value().encode()), token.principal) for token in auth.tokens
        ] + [
            (_digest(f"Basic {user.user}:{user.password.get_secret_value()}".encode()), user.user)
            for user in auth.basic
        ]
        self._credentials = {
            pair.access_key_id: sigv4.Credential(pair.secret_access_key.get_secret_value(), pair.principal)
            for pair in auth.credentials
        }
        schemes = [(auth.tokens, b'Bearer realm="gateway"'), (auth.basic, b'Basic realm="gateway", charset="UTF-8"')]
        self._challenge = tuple((b"www-authenticate", value) for users, value in schemes if users) or (
            (b"www-authenticate", b"AWS4-HMAC-SHA256"),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN:
            await self._app(scope, receive, send)
        elif self._credentials and sigv4.is_signed(scope["query_string"].decode("latin-1"), scope["headers"]):
            await self._signed(scope, receive, send)
        else:
            principal = self._known(scope)
            if principal is None:
                await refuse(self._stranger(scope), scope, send)
            else:
                scope.setdefault("state", {})["principal"] = principal
                await self._app(scope, receive, send)

    def _known(self, scope: Scope) -> str | None:
        presented = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(presented) != 1:
            return None
        scheme, _, rest = presented[0].partition(b" ")
        rest = rest.strip()
        if scheme.lower() == b"bearer":
            offered = _digest(b"Bearer " + rest)
        elif scheme.lower() == b"basic":
            try:
                offered = _digest(b"Basic " + base64.b64decode(rest, validate=True))
            except binascii.Error:
                return None
        else:
            return None
        principal = None
        for secret, name in self._secrets:  # all of them: the time does not tell which one came near
            if hmac.compare_digest(secret, offered):
                principal = name
        return principal

    def _stranger(self, scope: Scope) -> Refusal:
        offered = any(name == b"authorization" for name, _ in scope["headers"])
        if face_of(scope["path"]) is not Face.API:
            detail = "The credentials are not known here." if offered else "This gateway asks for credentials."
            return Refusal(401, "unauthenticated", "", detail, self._challenge)
        if offered:
            return Refusal(403, "", "UnrecognizedClientException", "The credentials are not known here.")
        missing = sigv4.MissingToken()
        return Refusal(missing.status, "", missing.code, missing.message)

    async def _signed(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = scope["query_string"].decode("latin-1")
        path = (scope.get("raw_path") or scope["path"].encode()).partition(b"?")[0].decode("latin-1")
        body = _Body(receive)
        try:
            declared = sigv4.read_claim(query, scope["headers"]).payload
            body_hash = await body.hash_of_all() if declared is None else None
            scope.setdefault("state", {})["principal"] = sigv4.verify(
                scope["method"], path, query, scope["headers"], body_hash, self._credentials.get, region=self._region
            )
        except sigv4.SignatureError as error:
            await refuse(_refusal(error), scope, send)
            return
        except _TooLong:
            detail = f"A signed body without x-amz-content-sha256 may have at most {_MAX_HASHED_BYTES} bytes."
            await refuse(Refusal(413, "too-large", "RequestEntityTooLargeException", detail), scope, send)
            return
        if declared is None or not _HASH.fullmatch(declared):
            await self._app(scope, body.receive, send)
            return
        answered = False

        async def watched(message: Message) -> None:
            nonlocal answered
            if not body.is_forged:
                answered = True
                await send(message)

        body.expected = declared
        await self._app(scope, body.receive, watched)
        if body.is_forged and not answered:
            await refuse(_refusal(sigv4.SignatureError("The body does not have the signed hash.")), scope, send)


def _refusal(error: sigv4.SignatureError) -> Refusal:
    return Refusal(error.status, "unauthenticated", error.code, error.message)


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


class _TooLong(Exception):
    pass


class _Body:
    """A request body on its way to the application, checked against the hash that was signed.

    A body with another hash ends in a disconnect, so that whoever reads it drops what has arrived.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept: list[Message] = []
        self._hash = hashlib.sha256()
        self.expected: str | None = None
        self.is_forged = False

    async def hash_of_all(self) -> str:
        """Reads and keeps the whole body. Raises _TooLong."""
        size = 0
        while True:
            message = await self._receive()
            self._kept.append(message)
            size += len(message.get("body", b""))
            if size > _MAX_HASHED_BYTES:
                raise _TooLong
            self._hash.update(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body", False):
                return self._hash.hexdigest()

    async def receive(self) -> Message:
        if self._kept:
            return self._kept.pop(0)
        message = await self._receive()
        if self.expected is not None and message["type"] == "http.request":
            self._hash.update(message.get("body", b""))
            if not message.get("more_body", False) and not hmac.compare_digest(self._hash.hexdigest(), self.expected):
                self.is_forged = True
                return {"type": "http.disconnect"}
        return message
