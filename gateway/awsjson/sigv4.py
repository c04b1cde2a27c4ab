"""Signature Version 4 seen from the server: who signed a request, in a header or in the query string.

The canonical request and the signature are botocore's; what a request must carry, its age and its scope are checked
here. The error codes are those that the service's own front answers before an operation is reached.
"""

import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from itertools import product
from typing import ClassVar
from urllib.parse import parse_qsl, quote

from botocore.auth import SigV4Auth
from botocore.credentials import Credentials
from botocore.utils import normalize_url_path

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"
MAX_SKEW = timedelta(minutes=5)
"""How far a signature's time may lie from ours, either way."""
MAX_PRESIGNED_S = 604_800

_TIME = "%Y%m%dT%H%M%SZ"
_CHUNK = re.compile(rb"[0-9a-fA-F]{1,16};chunk-signature=[0-9a-f]{64}\r\n")
_HASH = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = "x-amz-signature"


class SignatureError(Exception):
    """A request that is not signed as it should be: `code` and `status` are for the answer's error type."""

    code: ClassVar[str] = "InvalidSignatureException"
    status: ClassVar[int] = 403

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class MissingToken(SignatureError):
    """Nothing in the request says who sent it."""

    code = "MissingAuthenticationTokenException"

    def __init__(self) -> None:
        super().__init__("Missing Authentication Token: sign the request with Signature Version 4.")


class Incomplete(SignatureError):
    """Parts of the signature are missing or malformed."""

    code = "IncompleteSignature"


class Unrecognized(SignatureError):
    """The access key is unknown here."""

    code = "UnrecognizedClientException"

    def __init__(self) -> None:
        super().__init__("The security token included in the request is invalid.")


class Expired(SignatureError):
    """The credentials, not the signature, are past their end."""

    code = "ExpiredTokenException"

    def __init__(self) -> None:
        super().__init__("The security token included in the request is expired")


@dataclass(frozen=True, slots=True)
class Credential:
    """What is known of an access key."""

    secret_key: str
    principal: str
    expires: datetime | None = None

    def __repr__(self) -> str:
        return f"Credential(principal={self.principal!r})"


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request says about its signature, before anything is verified."""

    access_key: str
    date: str
    """YYYYMMDD of the credential scope."""
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str
    time: datetime
    stamp: str
    """The same time as YYYYMMDDTHHMMSSZ."""
    expires_s: int | None
    """Lifetime of a presigned request, None of one signed in a header."""
    payload: str | None
    """What the client declares as its payload hash: 64 hexadecimal digits, UNSIGNED-PAYLOAD or a STREAMING- form.
    None when it declares nothing, and the hash of the body is needed to verify."""


def is_signed(query: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request claims a Signature Version 4, so that `verify` and no other scheme is to judge it."""
    return "x-amz-signature=" in query.lower() or any(
        name.lower() == b"authorization" and value.startswith(b"AWS4-") for name, value in headers
    )


def read_claim(query: str, headers: Iterable[tuple[bytes, bytes]]) -> Claim:
    """The claim of a signed request. Raises MissingToken, Incomplete.

    Ask it for `payload` first where a body is long: with a declared hash the signature is verified before the body is
    read, and the body against the hash as it arrives.
    """
    return _read_claim(query, _fields(headers))


def verify(
    method: str,
    raw_path: str,
    query: str,
    headers: Iterable[tuple[bytes, bytes]],
    body_hash: str | None,
    lookup: Callable[[str], Credential | None],
    *,
    region: str,
    service: str = "medical-imaging",
    now: datetime | None = None,
) -> str:
    """The principal who signed a request.

    `raw_path` and `query` are as they stood in the request line, `headers` as received (ASGI), `body_hash` the
    hexadecimal SHA-256 of the body, or None when it is not known yet: then the claim's `payload` must name it, and
    the caller compares. `lookup` finds an access key. Raises SignatureError and its kinds; the first check that fails
    decides: form, key, scope, age, payload, signature.
    """
    fields = _fields(headers)
    claim = _read_claim(query, fields)
    credential = lookup(claim.access_key)
    if credential is None:
        raise Unrecognized
    now = now or datetime.now(UTC)
    if credential.expires is not None and credential.expires <= now:
        raise Expired
    _check_scope(claim, region, service)
    _check_age(claim, now)
    payload = _payload(claim, body_hash)
    if any(name not in fields for name in claim.signed_headers):
        raise SignatureError("A signed header did not arrive: a proxy in between must not drop or rename it.")
    signer = _Canonical(claim, credential, fields, payload)
    for path, canonical_query in product(_paths(raw_path), _queries(query)):
        request = _Request(method, f"http://host{path}", canonical_query, {"timestamp": claim.stamp})
        expected = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
        if hmac.compare_digest(expected, claim.signature):
            return credential.principal
    raise SignatureError(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret "
        "Access Key and signing method. Consult the service documentation for details."
    )


def is_aws_chunked(start: bytes) -> bool:
    """Whether a body begins with a signed aws-chunked frame; its first 128 bytes are enough.

    The header alone does not tell: documented calls announce STREAMING-AWS4-HMAC-SHA256-PAYLOAD and send plain bodies.
    """
    return _CHUNK.match(start) is not None


@dataclass(frozen=True, slots=True)
class _Request:
    """What botocore's signer reads of a request."""

    method: str
    url: str
    """Its path, in the form to be signed; the host is signed as a header, and that of the URL is never read."""
    query: str
    """In the form to be signed."""
    context: Mapping[str, str]
    headers: Mapping[str, str] = field(default_factory=dict)


class _Canonical(SigV4Auth):  # type: ignore[misc]
    """botocore's signer over what the client chose to sign, instead of what botocore would choose."""

    def __init__(self, claim: Claim, credential: Credential, fields: Mapping[str, list[str]], payload: str) -> None:
        super().__init__(Credentials(claim.access_key, credential.secret_key), claim.service, claim.region)
        self._headers = {name: fields[name] for name in claim.signed_headers}
        self._payload = payload

    def headers_to_sign(self, request: _Request) -> Mapping[str, list[str]]:
        return self._headers

    def canonical_headers(self, headers_to_sign: Mapping[str, list[str]]) -> str:
        return "\n".join(
            f"{name}:{','.join(' '.join(value.split()) for value in values)}"
            for name, values in sorted(headers_to_sign.items())
        )

    def _normalize_url_path(self, path: str) -> str:
        return path

    def canonical_query_string(self, request: _Request) -> str:
        return request.query

    def payload(self, request: _Request) -> str:
        return self._payload


def _paths(raw_path: str) -> list[str]:
    """The path in the forms that clients sign: encoded once more, as the standard says, or as older curls leave it.

    The second form is taken only without an escape in it: `%252F` signed as it stands would also be `%2F` encoded.
    """
    path = (raw_path if raw_path.startswith("/") else f"/{raw_path}").replace("#", "%23").replace("?", "%3F")
    encoded = quote(normalize_url_path(path), safe="/~")
    return [encoded] if encoded == path or "%" in path else [encoded, path]


def _queries(query: str) -> list[str]:
    """The query in the forms that clients sign, without the signature: canonical, sorted as it stands, as it stands.

    All say the same to whoever decodes them. The canonical one is the standard's; botocore sorts a given URL's query
    without encoding it, and older curls do neither.
    """
    if not query:
        return [""]
    pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape")
    canonical = sorted((_quote(key), _quote(value)) for key, value in pairs if key.lower() != _SIGNATURE)
    sent = [pair.partition("=")[::2] for pair in query.split("&") if pair.partition("=")[0].lower() != _SIGNATURE]
    forms = ["&".join(f"{key}={value}" for key, value in pairs) for pairs in (canonical, sorted(sent), sent)]
    return list(dict.fromkeys(forms))


def _quote(text: str) -> str:
    return quote(text, safe="-_.~", errors="surrogateescape")


def _fields(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for name, value in headers:
        fields.setdefault(name.decode("latin-1").lower(), []).append(value.decode("utf-8", "replace"))
    return fields


def _read_claim(query: str, fields: Mapping[str, list[str]]) -> Claim:
    parameters = {key.lower(): value for key, value in parse_qsl(query, keep_blank_values=True, errors="replace")}
    presigned = "x-amz-signature" in parameters or "x-amz-credential" in parameters
    authorization = fields.get("authorization", [])
    if presigned:
        if authorization:
            raise Incomplete("Sign in the Authorization header or in the query string, not in both.")
        parts = {
            "Credential": parameters.get("x-amz-credential", ""),
            "SignedHeaders": parameters.get("x-amz-signedheaders", ""),
            "Signature": parameters.get("x-amz-signature", ""),
        }
        algorithm, time = parameters.get("x-amz-algorithm", ""), parameters.get("x-amz-date", "")
    else:
        if not authorization:
            raise MissingToken
        if len(authorization) > 1:
            raise Incomplete("The request carries more than one Authorization header.")
        algorithm, _, rest = authorization[0].partition(" ")
        parts = dict(_part(text) for text in rest.split(",") if text.strip())
        time = _time_header(fields)
    if algorithm != ALGORITHM:
        raise Incomplete(f"The signing algorithm must be {ALGORITHM}.")
    for name in ("Credential", "SignedHeaders", "Signature"):
        if not parts.get(name):
            raise Incomplete(f"Authorization requires '{name}'.")
    # An access key has no slash, but the scope is what is fixed: four parts from the right.
    scope = parts["Credential"].rsplit("/", 4)
    if len(scope) != 5 or scope[4] != "aws4_request" or not all(scope):
        raise Incomplete("Credential must be ACCESS_KEY/YYYYMMDD/region/service/aws4_request.")
    signed = tuple(parts["SignedHeaders"].lower().split(";"))
    if "host" not in signed:
        raise Incomplete("SignedHeaders must name 'host'.")
    try:
        moment = datetime.strptime(time, _TIME).replace(tzinfo=UTC)
    except ValueError:
        raise Incomplete("The request needs its time as YYYYMMDDTHHMMSSZ in X-Amz-Date.") from None
    lifetime = parameters.get("x-amz-expires", "") if presigned else None
    if lifetime is not None and not (re.fullmatch("[0-9]{1,6}", lifetime) and 1 <= int(lifetime) <= MAX_PRESIGNED_S):
        raise Incomplete(f"X-Amz-Expires must be between 1 and {MAX_PRESIGNED_S} seconds.")
    declared = fields.get("x-amz-content-sha256", [parameters.get("x-amz-content-sha256", "")])[0] or None
    if declared and not (_HASH.fullmatch(declared) or declared == UNSIGNED or declared.startswith("STREAMING-")):
        raise Incomplete("x-amz-content-sha256 must be a SHA-256 in hexadecimal, UNSIGNED-PAYLOAD or a STREAMING form.")
    return Claim(
        access_key=scope[0],
        date=scope[1],
        region=scope[2],
        service=scope[3],
        signed_headers=signed,
        signature=parts["Signature"].encode("ascii", "replace").decode(),
        time=moment,
        stamp=moment.strftime(_TIME),
        expires_s=None if lifetime is None else int(lifetime),
        payload=declared,
    )


def _part(text: str) -> tuple[str, str]:
    name, _, value = text.strip().partition("=")
    return name, value


def _time_header(fields: Mapping[str, list[str]]) -> str:
    """X-Amz-Date, else Date in either of its spellings, as YYYYMMDDTHHMMSSZ."""
    if "x-amz-date" in fields:
        return fields["x-amz-date"][0]
    date = fields.get("date", [""])[0]
    try:
        return parsedate_to_datetime(date).astimezone(UTC).strftime(_TIME)
    except (ValueError, OverflowError):
        return date


def _check_scope(claim: Claim, region: str, service: str) -> None:
    if claim.region != region:
        raise SignatureError(f"Credential should be scoped to a valid region: '{region}'.")
    if claim.service != service:
        raise SignatureError(f"Credential should be scoped to correct service: '{service}'.")
    if claim.date != claim.stamp[:8]:
        raise SignatureError("Date in Credential scope does not match the date of X-Amz-Date.")


def _check_age(claim: Claim, now: datetime) -> None:
    if claim.time > now + MAX_SKEW:
        raise SignatureError(f"Signature not yet current: {claim.stamp} is still later than {now.strftime(_TIME)}.")
    lifetime = MAX_SKEW if claim.expires_s is None else timedelta(seconds=claim.expires_s)
    if claim.time + lifetime < now:
        raise SignatureError(f"Signature expired: {claim.stamp} is now earlier than {now.strftime(_TIME)}.")


def _payload(claim: Claim, body_hash: str | None) -> str:
    """What stands for the body in the canonical request."""
    if claim.payload is None:
        if body_hash is None:
            raise Incomplete("The request must declare the hash of its body in x-amz-content-sha256.")
        return body_hash
    if body_hash is not None and _HASH.fullmatch(claim.payload) and not hmac.compare_digest(claim.payload, body_hash):
        raise SignatureError("The body does not have the hash that x-amz-content-sha256 declares.")
    return claim.payload
