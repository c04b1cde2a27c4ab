"""Requests that no sound client sends: made of sound ones and of real ids, broken by a seed.

    Stock               what a gateway holds: the ids, metadata and bulk data that requests are made of
    request(...)        request `number` of a seed, over that stock: always the same

Kinds: reading with hostile Accept lists, ranges and conditions; pictures; searches; the four forms of a store; the
operations of the HealthImaging API; removals; other paths and methods; bytes that are not HTTP.
"""

import base64
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from campaigns.mutations import Source, mutant
from gateway.awsjson import model
from gateway.dicomweb.capabilities import keys
from gateway.domain.query import Level

CANARY: Final = "Kanarienvogel"
"""Stands for a patient's name: no refusal, no log and no metric may repeat it."""
BOUNDARY: Final = "hostile-boundary"

Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `raw`: these bytes are all that is sent, and the client then ends its half of the connection."""

    kind: str
    method: str
    target: str
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    raw: bytes | None = None

    def wire(self, host: str) -> bytes:
        """The bytes that go over the connection."""
        if self.raw is not None:
            return self.raw
        lines = [f"{self.method} {self.target} HTTP/1.1", f"Host: {host}", *(f"{k}: {v}" for k, v in self.headers)]
        if self.body or self.method in ("POST", "PUT", "PATCH"):
            lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + self.body


@dataclass(frozen=True, slots=True)
class Held:
    """An instance that the gateway holds."""

    study: str
    series: str
    sop: str
    frames: int
    json: bytes
    """Its metadata as an array of one data set."""
    xml: bytes
    """Its metadata in the Native DICOM Model."""
    pixels: bytes
    """Its first frame in Explicit VR Little Endian; empty where it has none."""
    bulk: Sequence[str]
    """Paths of its BulkDataURIs."""

    @property
    def path(self) -> str:
        return f"/studies/{self.study}/series/{self.series}/instances/{self.sop}"


@dataclass(slots=True)
class Stock:
    """What a gateway holds while it is asked. Nothing of `held` is ever changed by a request; `victims` are."""

    datastore: str
    arn: str
    """Of the data store."""
    held: Sequence[Held]
    image_sets: Sequence[str]
    frame_ids: Mapping[str, str]
    """Image set -> the id of a frame of it."""
    victims: Sequence[tuple[str, str, str]]
    """Study, series and image set of what may be edited, copied and deleted."""
    sources: Sequence[Source]
    """Sound files of other studies than `held`, to be broken and sent."""
    seed: int


def request(stock: Stock, number: int) -> Request:
    """Request `number` over a stock."""
    choice = random.Random(f"{stock.seed} {number}")
    (make,) = choice.choices([kind for kind, _ in _KINDS], [weight for _, weight in _KINDS])
    made = make(choice, stock, number)
    return _bent(choice, made) if made.raw is None and choice.random() < 0.05 else made


# ---------------------------------------------------------------- texts

_CONTROLS: Final = "\0\x01\x07\x1b\x7f\t"
_WORDS: Final = (
    *("", "*", "?", "**", "*?*", "-", "--", "..", "../..", "\\", "\\\\", "'", '"', ";", ",", ",,,", "%", "null", "NaN"),
    *(
        "-1",
        "0",
        "1",
        "00",
        "1.5",
        "1e9",
        "1e999",
        "99999999999999999999",
        "0x10",
        "\u0661٢",
        "²",
        "true",
        "TRUE",
        "\ud7ff",
    ),
    *("20240102", "20240102-", "-20240102", "20240102-20230101", "20249999", "030405.123456", "19000101-20991231"),
    *("Doe^Jane", "doe*", CANARY, f"{CANARY}^*", "Müller", "山田^太郎", "é", "x" * 65, "1.2.840", "1..2", "1.2."),
    *("' OR 1=1 --", "<script>", "${jndi:x}", "{{7*7}}", "%s%n", "a\tb"),
)
_LONG: Final = (100, 1024, 5000, 60_000)


def _word(choice: random.Random) -> str:
    """Some text, hostile more often than not."""
    match choice.randrange(12):
        case 0:
            return choice.choice(("x", "*", "1", "*a", "%", ",", "é", "."))[:1] * choice.choice(_LONG)
        case 1:
            return "".join(choice.choice(_CONTROLS) for _ in range(choice.randint(1, 4)))
        case 2:
            return "".join(chr(choice.randrange(32, 0x250)) for _ in range(choice.randint(1, 30)))
    return choice.choice(_WORDS)


def _encoded(choice: random.Random, text: str) -> str:
    """As it stands in a path or query: encoded well, twice, badly or not at all."""
    well = quote(text.encode("utf-8", "surrogatepass"), safe=choice.choice(("", ",*-:/^")))
    match choice.randrange(20):
        case 0:
            return quote(well)
        case 1:
            return well + choice.choice(("%", "%4", "%ZZ", "%00", "%FF%FE", "%C0%AF", "%ED%A0%80", "%0d%0aX: y"))
        case 2:
            return re.sub(r"[\x00-\x20\x7f#]", "_", text)
    return well


def _uid(choice: random.Random, real: str) -> str:
    """A UID, mostly the real one."""
    if choice.random() < 0.9:
        return real
    return _encoded(
        choice, choice.choice((real + "1", real[:-1], real * 2, "0" * 65, f" {real}", _word(choice))) or "0"
    )


def _query(choice: random.Random, pairs: Sequence[tuple[str, str]]) -> str:
    if not pairs:
        return ""
    fields = [f"{_encoded(choice, name) if choice.random() < 0.02 else name}={value}" for name, value in pairs]
    if choice.random() < 0.02 and sum(map(len, fields)) < 100:
        fields *= choice.choice((2, 30, 1001))
    if choice.random() < 0.03:
        fields.append(choice.choice(("", "&&", "=", "a", "=b", "%", ";", "?", "a=b=c", "%00=%00")))
    return "?" + "&".join(fields)


# ---------------------------------------------------------------- headers

_SYNTAXES: Final = (
    *("*", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.202"),
    *("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80", "1.2.3", ""),
)
_TYPES: Final = (
    *("*/*", "application/dicom", "application/dicom+json", "application/dicom+xml", "application/json", "image/*"),
    *("application/octet-stream", "image/jpeg", "image/png", "image/gif", "image/jphc", "image/jp2", "image/jls"),
    *("application/zip", "text/html", "text/plain", "application/*", "video/mpeg", "multipart/related", "multipart/*"),
    *("application/pdf", "image/dicom-rle", "text/xml", "x", "*/jpeg", "image/", "/", "multipart/mixed"),
)


_WEIGHTS: Final = ("1", "0.5", "0", "0.000", "1.1", "-1", "", "x", "nan", "inf", "1e400", "\u0661", "0" * 99)


def _range_of_media(choice: random.Random) -> str:
    kind = choice.choice(_TYPES)
    if choice.random() < 0.3:
        kind = f'multipart/related; type="{kind}"' if choice.random() < 0.8 else f"multipart/related; type={kind}"
    if choice.random() < 0.4:
        for _ in range(choice.choice((1, 1, 2, 50))):
            kind += f"; transfer-syntax={choice.choice(_SYNTAXES)}"
    if choice.random() < 0.4:
        kind += f";q={choice.choice(_WEIGHTS)}"
    if choice.random() < 0.1:
        kind += choice.choice(
            ('; a="', '; a="b\\', ";" * 50, '; a="x,y;z"', "; type=", '; type="multipart/related"', "; boundary=x", '"')
        )
    if choice.random() < 0.03:
        kind = f"{kind}; {_header_text(choice)}"
    return kind


def _accept(choice: random.Random) -> str:
    count = choice.choices((1, 2, 5, 400), (60, 25, 12, 3))[0]
    text = choice.choice((",", ", ", " ,, ")).join(_range_of_media(choice) for _ in range(count))
    return text if choice.random() < 0.97 else _header_text(choice)


def _header_text(choice: random.Random) -> str:
    """What fits into the line of a header."""
    return re.sub(r"[\r\n\0]", " ", _word(choice))[:20_000]


def _conditions(choice: random.Random) -> Headers:
    headers: Headers = []
    if choice.random() < 0.3:
        headers.append(("Range", _range(choice)))
    for name in ("If-None-Match", "If-Range", "If-Match"):
        if choice.random() < 0.1:
            headers.append(
                (name, choice.choice(("*", '"x"', 'W/"x"', '"', '"a", ' * 300 + '"b"', _header_text(choice))))
            )
    if choice.random() < 0.2:
        codings = ("gzip", "identity", "gzip;q=0", "*;q=0", "br, gzip;q=x", "gzip" * 500, "*")
        headers.append(("Accept-Encoding", choice.choice(codings)))
    if choice.random() < 0.05:
        names = (
            "Origin",
            "X-Forwarded-For",
            "Forwarded",
            "Authorization",
            "Cookie",
            "TE",
            "Upgrade",
            "Content-Encoding",
        )
        headers.append((choice.choice(names), _header_text(choice)))
    return headers


def _range(choice: random.Random) -> str:
    numbers = ("", "0", "1", "100", "-5", "9" * 18, "9" * 30, "x", " 3")
    ranges = [f"{choice.choice(numbers)}-{choice.choice(numbers)}" for _ in range(choice.choice((1, 1, 1, 3, 500)))]
    return choice.choice(("bytes=", "bytes=", "bytes=", "bytes", "BYTES=", "items=", "")) + ",".join(ranges)


# ---------------------------------------------------------------- DICOMweb: out


def _base(choice: random.Random, stock: Stock) -> str:
    if choice.random() < 0.85:
        return "/dicomweb"
    return f"/datastore/{choice.choice((stock.datastore, stock.datastore, '0' * 32, _uid(choice, stock.datastore)))}"


def _place(choice: random.Random, stock: Stock) -> Sequence[tuple[str, str]]:
    """Parameters of time and place."""
    pairs = []
    if choice.random() < 0.1:
        pairs.append(("imageSetId", choice.choice((*stock.image_sets[:3], _encoded(choice, _word(choice))))))
    if choice.random() < 0.1:
        times = (
            "2026-11-05T14:30:00Z",
            "2999-01-01T00:00:00%2B23:59",
            "0001-01-01T00:00:00-23:59",
            "2024-02-30T00:00:00Z",
        )
        pairs.append(("asOf", choice.choice((*times, "9999-12-31T23:59:59-23:59", _encoded(choice, _word(choice))))))
    if choice.random() < 0.1:
        pairs.append(
            ("version", choice.choice(("1", "2", "0", "999999999", "9999999999", _encoded(choice, _word(choice)))))
        )
    if choice.random() < 0.1:
        pairs.append(("accept", quote(_accept(choice)[:3000])))
    return pairs


def _resource(choice: random.Random, held: Held) -> str:
    """The path of the instance, of its series or of its study."""
    path = f"/studies/{_uid(choice, held.study)}"
    if choice.random() < 0.8:
        path += f"/series/{_uid(choice, held.series)}"
        if choice.random() < 0.8:
            path += f"/instances/{_uid(choice, held.sop)}"
    return path


def _frame_list(choice: random.Random, held: Held) -> str:
    last = max(1, held.frames)
    lists = ("1", str(last), f"1,{last}", str(last + 1), "0", "-1", "1,1", "1,", ",", "1-2", "999999999", "9999999999")
    made = choice.choice((*lists, "1%2C2", "%31", ",".join(map(str, range(1, 3000)))))
    return made if choice.random() < 0.9 else _encoded(choice, _word(choice)) or "1"


def _reads(choice: random.Random, stock: Stock, number: int) -> Request:
    held = choice.choice(stock.held)
    match choice.randrange(5):
        case 0:
            path = _resource(choice, held)
        case 1:
            path = _resource(choice, held) + "/metadata"
        case 2 | 3:
            path = f"{held.path}/frames/{_frame_list(choice, held)}"
        case _:
            path = f"{held.path}/bulkdata/{_bulk_path(choice, held)}"
    headers = [*([("Accept", _accept(choice))] if choice.random() < 0.8 else []), *_conditions(choice)]
    return Request("read", "GET", _base(choice, stock) + path + _query(choice, _place(choice, stock)), headers)


def _bulk_path(choice: random.Random, held: Held) -> str:
    paths = (*held.bulk, "7FE00010", "00420011", "00100010", "7fe00010", "7FE00010.1.7FE00010", "00081199.0.00081155")
    made = choice.choice(
        (*paths, "FFFFFFFF", "00081140.999999.00081155", ".".join(["00081199", "1"] * 400) + ".00081155")
    )
    return made if choice.random() < 0.9 else _encoded(choice, _word(choice)) or "0"


def _pictures(choice: random.Random, stock: Stock, number: int) -> Request:
    held = choice.choice(stock.held)
    path = _resource(choice, held) if choice.random() < 0.6 else f"{held.path}/frames/{_frame_list(choice, held)}"
    pairs = list(_place(choice, stock))
    numbers = ("0", "1", "-1", "64", "100", "5000", "99999", "1e5", "-1e9", ".5", "1e99", "", "x", "0.0000001")
    if choice.random() < 0.5:
        pairs.append(("viewport", ",".join(choice.choice(numbers) for _ in range(choice.choice((2, 6, 6, 1, 7, 300))))))
    if choice.random() < 0.5:
        curve = choice.choice(("linear", "linear-exact", "sigmoid", "SIGMOID", "x", ""))
        pairs.append(("window", f"{choice.choice(numbers)},{choice.choice(numbers)},{curve}"))
    for name, values in (
        ("quality", ("1", "50", "100", "0", "101", "x", "")),
        ("annotation", ("patient", "technique", "patient,technique", "x", "", CANARY)),
        ("iccprofile", ("no", "yes", "srgb", "x", "")),
    ):
        if choice.random() < 0.25:
            value = choice.choice((*values, *values, _encoded(choice, _word(choice))))
            pairs.append((name, value))
    headers = [("Accept", _accept(choice))] if choice.random() < 0.6 else []
    word = choice.choice(("rendered", "rendered", "thumbnail"))
    target = f"{_base(choice, stock)}{path}/{word}{_query(choice, pairs)}"
    return Request("picture", "GET", target, [*headers, *_conditions(choice)])


def _uri(choice: random.Random, stock: Stock, number: int) -> Request:
    held = choice.choice(stock.held)
    pairs = [
        ("requestType", "WADO"),
        *zip(("studyUID", "seriesUID", "objectUID"), (held.study, held.series, held.sop), strict=True),
    ]
    pairs = [(name, _uid(choice, value)) for name, value in pairs if choice.random() < 0.97]
    for name, values in {
        "contentType": ("application/dicom", "image/jpeg", "image/png,image/gif", "text/html", "*/*", "video/mpeg"),
        "transferSyntax": _SYNTAXES,
        "frameNumber": ("1", "2", "0", "999999999"),
        "rows": ("64", "1", "99999"),
        "columns": ("64", "1", "0"),
        "region": ("0,0,1,1", "0.2,0.2,0.3,0.3", "1,1,0,0", "0,0,1e-9,1e-9", "0,0,1"),
        "windowCenter": ("40", "-1e9", "x"),
        "windowWidth": ("400", "0", "1e99"),
        "imageQuality": ("1", "100", "0"),
        "annotation": ("patient", "x"),
        "anonymize": ("yes", "no"),
        "charset": ("utf-8", "x"),
    }.items():
        if choice.random() < 0.2:
            pairs.append((name, quote(choice.choice(values), safe=",/*")))
        elif choice.random() < 0.03:
            pairs.append((name, _encoded(choice, _word(choice))))
    return Request(
        "uri", "GET", _base(choice, stock) + choice.choice(("", "/")) + _query(choice, pairs), _conditions(choice)
    )


_LEVELS: Final = {Level.STUDY: "/studies", Level.SERIES: "/series", Level.INSTANCE: "/instances"}
_KEYS: Final = {level: [key.name for key in keys(level)] for level in _LEVELS}
_VALUE: Final = re.compile(rb'"(?:0010|0008|0020)[0-9A-F]{4}":\{"vr":"..","Value":\["([^"\\]{1,40})"')


def _searches(choice: random.Random, stock: Stock, number: int) -> Request:
    held = choice.choice(stock.held)
    level = choice.choice(list(_LEVELS))
    path = _LEVELS[level]
    if level is not Level.STUDY and choice.random() < 0.5:
        path = f"/studies/{_uid(choice, held.study)}{path}"
        if level is Level.INSTANCE and choice.random() < 0.5:
            path = f"/studies/{held.study}/series/{_uid(choice, held.series)}/instances"
    real = [value.decode() for value in _VALUE.findall(held.json)]
    pairs = list(_place(choice, stock)) if choice.random() < 0.3 else []
    for _ in range(choice.choice((0, 1, 1, 2, 4))):
        name = choice.choice(_KEYS[level])
        if choice.random() < 0.15:
            tags = (
                "00100010",
                "0010,0010",
                "00081199.00081155",
                "7FE00010",
                "00020010",
                "FFFFFFFF",
                "00091010",
                "PixelData",
            )
            name = choice.choice((*tags, "Patientname", "StudyDate.StudyDate", "x" * 3000, *_KEYS[Level.INSTANCE]))
        value = choice.choice(real) if real and choice.random() < 0.5 else _word(choice)
        if choice.random() < 0.2:
            value = f"*{value[1:-1]}*" if choice.random() < 0.5 else f"{value}-{value}"
        pairs.append((name, _encoded(choice, value)))
    for name, values in (
        ("limit", ("0", "1", "10", "100", "999999999999")),
        ("offset", ("0", "1", "5", "999999999999")),
        ("fuzzymatching", ("true", "false", "True")),
        ("includefield", ("all", "PatientName", "00081030,SeriesDescription", "x", "all,all", "00081199.00081155")),
    ):
        if choice.random() < 0.25:
            pairs.append((name, choice.choice(values) if choice.random() < 0.8 else _encoded(choice, _word(choice))))
    if level is Level.STUDY and choice.random() < 0.8:
        pairs.append(("limit", "20"))
    headers = [("Accept", _accept(choice))] if choice.random() < 0.4 else []
    return Request(
        "search", "GET", _base(choice, stock) + path + _query(choice, pairs), [*headers, *_conditions(choice)]
    )


# ---------------------------------------------------------------- DICOMweb: in


def _stores(choice: random.Random, stock: Stock, number: int) -> Request:
    """The four forms of a store: one file, files, JSON and XML with bulk data apart."""
    held = choice.choice(stock.held)
    apart = [("application/octet-stream", f"{held.path}/bulkdata/{path}", held.pixels) for path in held.bulk]
    form = choice.randrange(4)
    if form < 2:
        broken = mutant(stock.sources, stock.seed, number).part10
        if form == 0:
            parts, kind = [("", "", broken)], "application/dicom"
        else:
            sound = choice.choice(stock.sources).part10
            parts, kind = [("application/dicom", "", one) for one in (broken, sound)[: choice.randint(1, 2)]], ""
    elif form == 2:
        kind = "application/dicom+json"
        parts = [(kind, "", _json(choice, _renamed(number, held, held.json))), *apart]
    else:
        kind = "application/dicom+xml"
        parts = [(kind, "", _xml(choice, _renamed(number, held, held.xml))), *apart]
    headers = [("Accept", choice.choice(("application/dicom+json", "application/dicom+xml", _accept(choice))))]
    if form == 0:
        body, declared = parts[0][2], kind
    else:
        body, declared = _multipart(choice, kind or "application/dicom", parts)
    if choice.random() < 0.05:
        declared = choice.choice(
            ("", "text/plain", "application/dicom; x", "multipart/form-data; boundary=x", _header_text(choice))
        )
    if declared:
        headers.append(("Content-Type", declared))
    if choice.random() < 0.05:
        headers.append(("Content-Encoding", choice.choice(("gzip", "aws-chunked", "br", "gzip, gzip", "identity"))))
    if choice.random() < 0.02:
        headers.append(("Expect", "100-continue"))
    path = "/studies" if choice.random() < 0.9 else f"/studies/{_uid(choice, held.study)}"
    return Request(f"store {form}", "POST", _base(choice, stock) + path, headers, body)


def _renamed(number: int, held: Held, document: bytes) -> bytes:
    """In a study of its own, and under a name that is not to be seen elsewhere."""
    for place, uid in enumerate((held.study, held.series, held.sop)):
        document = document.replace(uid.encode(), f"1.2.826.0.1.3680043.10.511.77.{number}.{place}".encode())
    return document


def _multipart(choice: random.Random, kind: str, parts: Sequence[tuple[str, str, bytes]]) -> tuple[bytes, str]:
    """A body and its Content-Type, broken now and then."""
    boundary = BOUNDARY
    quoted = boundary if choice.random() < 0.5 else f'"{boundary}"'
    declared = f'multipart/related; type="{kind}"; boundary={quoted}'
    body = bytearray()
    for media_type, location, payload in parts:
        body += f"--{boundary}\r\nContent-Type: {media_type}\r\n".encode()
        if location:
            body += f"Content-Location: /dicomweb{location}\r\n".encode()
        if choice.random() < 0.03:
            body += b"Content-Length: " + choice.choice((b"0", b"-1", b"9" * 30, b"x")) + b"\r\n"
        if choice.random() < 0.02:
            body += b"X-Long: " + b"x" * choice.choice((1000, 17_000, 200_000)) + b"\r\n"
        if choice.random() < 0.02:
            body += choice.choice((b"no colon\r\n", b": empty\r\n", b"Content-Type\xff: \xfe\r\n", b"a:b\r\n" * 2000))
        body += b"\r\n" + payload + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    if choice.random() < 0.3:
        match choice.randrange(8):
            case 0:
                del body[choice.randrange(len(body)) :]
            case 1:
                body = bytearray(body.replace(boundary.encode(), b"another"))
            case 2:
                body = bytearray(body.replace(b"\r\n", b"\n"))
            case 3:
                declared = declared.replace(quoted, choice.choice(("", '"', "x" * 3000, '"a b"', "\xe9", "--", "=")))
            case 4:
                inner, _ = bytes(body), None
                body = bytearray(f"--{boundary}\r\nContent-Type: {declared}\r\n\r\n".encode() + inner)
            case 5:
                body = bytearray(b"preamble" * 5000 + body + b"epilogue" * 5000)
            case 6:
                body = bytearray(f"--{boundary}\r\n".encode() * choice.choice((3, 3000)) + body)
            case _:
                at = choice.randrange(len(body))
                body[at : at + 4] = choice.randbytes(4)
    return bytes(body), declared


_NUMBERS: Final = ("NaN", "-Infinity", "1e999", "-0", "9" * 400, "1E-400", "0.1e", "01", "18446744073709551616")
_VRS: Final = (
    "SQ",
    "UN",
    "OB",
    "OW",
    "US",
    "SS",
    "DS",
    "IS",
    "PN",
    "UI",
    "AT",
    "FD",
    "FL",
    "UV",
    "SV",
    "LT",
    "ZZ",
    "",
    "sq",
    "LO\0",
)


def _json(choice: random.Random, document: bytes) -> bytes:
    """DICOM JSON, broken in its elements and in its text."""
    read = json.loads(document)
    for _ in range(choice.choice((0, 1, 1, 3))):
        data_set = choice.choice(read)
        tag = choice.choice(list(data_set)) if data_set else "00100010"
        if not isinstance(data_set.get(tag, {}), dict):  # broken already
            continue
        element = data_set.setdefault(tag, {})
        match choice.randrange(12):
            case 0:
                element["vr"] = choice.choice(_VRS)
            case 1:
                element["Value"] = [_hostile(choice) for _ in range(choice.choice((1, 1, 3, 300)))]
            case 2:
                element["Value"] = _hostile(choice)
            case 3:
                data_set[tag] = _hostile(choice)
            case 4:
                element["InlineBinary"] = choice.choice(("AAAA", "A", "====", "\u00e9", _hostile(choice)))
            case 5:
                element["BulkDataURI"] = choice.choice(
                    ("x", "http://[", "//", "file:///etc/passwd", "", _hostile(choice))
                )
            case 6:
                data_set[_tag(choice)] = {"vr": choice.choice(_VRS), "Value": [_hostile(choice)]}
            case 7:
                nested: Any = {"vr": "SQ", "Value": [{"00100010": {"vr": "PN", "Value": [{"Alphabetic": CANARY}]}}]}
                for _ in range(choice.choice((1, 10, 200))):
                    nested = {"vr": "SQ", "Value": [{"0040A730": nested}]}
                data_set["0040A730"] = nested
            case 8:
                data_set.pop(tag)
            case 9:
                data_set["00100010"] = {"vr": "PN", "Value": [{"Alphabetic": CANARY, "Phonetic": _hostile(choice)}]}
            case 10:
                read.append(data_set)
            case _:
                element.pop("vr", None)
    return _text_broken(choice, json.dumps(read, ensure_ascii=choice.random() < 0.5).encode("utf-8", "surrogatepass"))


def _tag(choice: random.Random) -> str:
    return choice.choice(
        (
            "00100010",
            "00020010",
            "7FE00010",
            "FFFEE000",
            "FFFFFFFF",
            "0010001",
            "x",
            "",
            "00091010",
            "00090010",
            "00080005",
        )
    )


def _hostile(choice: random.Random) -> Any:
    """A JSON value of any kind."""
    return choice.choice(
        (
            *(None, True, -1, 0, 1.5, 2**63, -(2**31) - 1, 10**40, "", "x", [], {}, [[]], [None], {"": None}, "\ud800"),
            *(
                "1" * 5000,
                CANARY,
                "\0",
                "a\\b",
                "1e400",
                "\u0661",
                {"Alphabetic": 1},
                {"Alphabetic": CANARY},
                "2024-01-01",
            ),
            *([{}] * 100, {"00100010": {}}, {"vr": "SQ"}, _word(choice)),
        )
    )


def _text_broken(choice: random.Random, text: bytes) -> bytes:
    """JSON as text, broken now and then."""
    if choice.random() < 0.7:
        return text
    at = choice.randrange(len(text) + 1)
    match choice.randrange(9):
        case 0:
            return text[:at]
        case 1:
            return (
                text[:at]
                + choice.choice((b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\0", b"\xf4\x90\x80\x80"))
                + text[at:]
            )
        case 2:
            return re.sub(rb"(?<=[:\[])-?[0-9][0-9.e+-]*", choice.choice(_NUMBERS).encode(), text, count=1)
        case 3:
            depth = choice.choice((100, 990, 5000, 100_000))
            return text[:-1] + b"," + b"[" * depth + b"]" * choice.choice((0, depth))
        case 4:
            return b"\xef\xbb\xbf" + text
        case 5:
            return text.decode("utf-8", "replace").encode(choice.choice(("utf-16", "utf-32")))
        case 6:
            return b'{"a":' * choice.choice((100, 5000)) + b"1"
        case 7:
            return choice.choice((b"", b"null", b"[]", b"{}", b"[{}]", b"1", b'"x"', b"[null]", b"[[]]", b"   "))
    return text[:at] + bytes([choice.randrange(256)]) + text[at + 1 :]


def _xml(choice: random.Random, document: bytes) -> bytes:
    """The Native DICOM Model, broken in its elements, or with what XML has in store."""
    text = document.decode()
    head, begins, rest = text.partition("<NativeDicomModel")
    for _ in range(choice.choice((0, 1, 1, 2))):
        match choice.randrange(12):
            case 0:
                lol = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
                head = f'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY l0 "lol">{lol}]>'
                rest = rest.replace("</Value>", "&l9;</Value>", 1)
            case 1:
                head = '<!DOCTYPE x [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
                rest = rest.replace("</Value>", "&x;</Value>", 1)
            case 2:
                depth = choice.choice((10, 300, 5000))
                opening = '<DicomAttribute tag="0040A730" vr="SQ" keyword="ContentSequence"><Item number="1">'
                closing = "</Item></DicomAttribute>" * choice.choice((0, depth))
                rest = rest.replace("</NativeDicomModel>", opening * depth + closing + "</NativeDicomModel>")
            case 3:
                rest = re.sub(r'vr="[^"]*"', f'vr="{choice.choice(_VRS[:-1])}"', rest, count=choice.choice((1, 5)))
            case 4:
                rest = re.sub(r'tag="[^"]*"', f'tag="{_tag(choice)}"', rest, count=1)
            case 5:
                rest = re.sub(
                    r'number="[^"]*"', f'number="{choice.choice(("0", "-1", "2", "x", "9" * 30))}"', rest, count=2
                )
            case 6:
                value = re.sub(r"[<&\0]", "", _word(choice))
                made = f'<Value number="1">{value}</Value>'
                rest = re.sub(r"<Value[^<]*</Value>", made.replace("\\", r"\\"), rest, count=1)
            case 7:
                rest = rest.replace("</Value>", f"<![CDATA[{CANARY}]]></Value>", 1)
            case 8:
                rest = rest.replace(
                    "<DicomAttribute", choice.choice(("<Other", "<x:y", "<!-- ", "<?p ?><DicomAttribute")), 1
                )
            case 9:
                rest = rest.replace("<DicomAttribute", f"<DicomAttribute {'a' * choice.choice((1, 90_000))}=''", 1)
            case 10:
                at = choice.randrange(len(rest) + 1)
                rest = rest[:at]
            case _:
                head = f'<?xml version="1.0" encoding="{choice.choice(("utf-16", "latin-1", "x", "utf-7", "UTF-8"))}"?>'
    made = (head + begins + rest).encode("utf-8", "surrogatepass")
    if choice.random() < 0.05:
        at = choice.randrange(len(made) + 1)
        made = made[:at] + choice.randbytes(2) + made[at:]
    return made


def _removals(choice: random.Random, stock: Stock, number: int) -> Request:
    """Deletes and their undoing, of victims; of all else under a condition that does not hold."""
    if choice.random() < 0.5:
        study, series, _ = choice.choice(stock.victims)
        path = f"/studies/{study}" + (f"/series/{series}" if choice.random() < 0.5 else "")
        headers = [("If-Match", _header_text(choice))] if choice.random() < 0.2 else []
    else:
        path = _resource(choice, choice.choice(stock.held))
        headers = [("If-Match", choice.choice(('"x"', '"a", "b"', 'W/"x"', "'", "x" * 5000)))]
    target = _base(choice, stock) + path
    if choice.random() < 0.4:
        return Request("removal", "POST", target + "/undelete", headers)
    return Request("removal", "DELETE", target + _query(choice, _place(choice, stock)), headers)


# ---------------------------------------------------------------- HealthImaging


def _api(choice: random.Random, stock: Stock, number: int) -> Request:
    """One of the operations, valid but for what is then broken in its path, its query or its body."""
    operation = choice.choice(_OPERATIONS)
    image_set = choice.choice(stock.image_sets)
    victim = choice.choice(stock.victims)[2]
    is_change = operation.name in (
        "UpdateImageSetMetadata",
        "CopyImageSet",
        "DeleteImageSet",
        "TagResource",
        "UntagResource",
    )
    target_set = victim if is_change else image_set
    store = stock.datastore
    if operation.name == "DeleteDatastore" or choice.random() < 0.03:
        store = choice.choice((store, "0" * 32))
    labels = {
        "datastoreId": store,
        "imageSetId": target_set,
        "sourceImageSetId": target_set,
        "jobId": choice.choice(("0" * 32, image_set)),
        "resourceArn": f"{stock.arn}/imageset/{target_set}",
    }
    path = ""
    for part in operation.path:
        if isinstance(part, str):
            path += f"/{part}"
        else:
            value = labels[part.wire_name]
            path += f"/{quote(value, safe='') if choice.random() < 0.95 else _encoded(choice, _word(choice))}"
    pairs = []
    for member in operation.input.members.values():
        if member.location != "querystring" or (choice.random() < 0.5 and member.name not in operation.input.required):
            continue
        sound = _QUERY.get(member.wire_name, "1")
        pairs.append((member.wire_name, sound if choice.random() < 0.8 else _encoded(choice, _word(choice))))
    if operation.name == "UpdateImageSetMetadata" and choice.random() < 0.5:
        pairs.append(("dryRun", choice.choice(("true", "false", "x"))))
    document = _body(choice, operation.name, stock, target_set, number)
    body = b""
    if document is not None:
        for _ in range(choice.choice((0, 0, 1, 1, 3))):
            _break(choice, document)
        body = _text_broken(choice, json.dumps(document).encode())
    headers = [("Content-Type", choice.choice(("application/json", "application/json", "text/plain", "x")))]
    return Request(
        f"api {operation.name}", operation.method, path + _query(choice, pairs), [*headers, *_conditions(choice)], body
    )


_OPERATIONS: Final = [model.load().operations[name] for name in sorted(model.load().operations)]
_QUERY: Final = {
    "force": "true",
    "promoteToPrimary": "false",
    "latestVersion": "1",
    "version": "1",
    "includeStudyImageSets": "false",
    "maxResults": "5",
    "nextToken": "abc",
    "jobStatus": "COMPLETED",
    "datastoreStatus": "ACTIVE",
    "tagKeys": "project",
}


def _body(choice: random.Random, name: str, stock: Stock, image_set: str, number: int) -> Any:
    """A sound body of an operation, as a document; None where it takes none."""
    match name:
        case "CreateDatastore":
            # Few names and tokens: a data store that is there already is the same one again.
            return {"datastoreName": f"store{number % 5}", "clientToken": f"token{number % 5}", "tags": {"a": "b"}}
        case "StartDICOMImportJob":
            return {
                "jobName": "hostile",
                "dataAccessRoleArn": "arn:aws:iam::123456789012:role/r",
                "clientToken": f"token{number}",
                "inputS3Uri": "s3://bucket/in/",
                "outputS3Uri": "s3://bucket/out/",
            }
        case "SearchImageSets":
            return {
                "filters": [_filter(choice, stock)],
                "sort": {"sortOrder": "ASC", "sortField": "DICOMStudyDateAndTime"},
            }
        case "GetImageFrame":
            return {"imageFrameId": stock.frame_ids.get(image_set, "0" * 32)}
        case "CopyImageSet":
            return {"sourceImageSet": {"latestVersionId": "1", "DICOMCopies": {"copiableAttributes": "{}"}}}
        case "UpdateImageSetMetadata":
            if choice.random() < 0.2:
                return {"revertToVersionId": "1"}
            edit = {"SchemaVersion": 1.1, "Study": {"DICOM": {"StudyDescription": f"edit {number}"}}}
            if choice.random() < 0.6:
                _break(choice, edit)
            text = json.dumps(edit).encode()
            wanted = base64.b64encode(_text_broken(choice, text)).decode() if choice.random() < 0.8 else edit
            return {"DICOMUpdates": {choice.choice(("updatableAttributes", "removableAttributes")): wanted}}
        case "TagResource":
            return {"tags": {"project": "x", **({f"k{n}": "v" for n in range(60)} if choice.random() < 0.1 else {})}}
        case "GetImageSetMetadata" | "GetImageSet" | "ListImageSetVersions" | "DeleteImageSet":
            return {} if choice.random() < 0.3 else None
    return None


def _filter(choice: random.Random, stock: Stock) -> dict[str, Any]:
    held = choice.choice(stock.held)
    moment = {"DICOMStudyDate": "19990101", "DICOMStudyTime": "000000"}
    later = {"DICOMStudyDate": "20990101", "DICOMStudyTime": "000000"}
    return choice.choice(
        (
            {"values": [{"DICOMStudyInstanceUID": held.study}], "operator": "EQUAL"},
            {"values": [{"DICOMSeriesInstanceUID": held.series}], "operator": "EQUAL"},
            {"values": [{"DICOMPatientId": _word(choice)}], "operator": "EQUAL"},
            {"values": [{"createdAt": 0}, {"createdAt": 4e9}], "operator": "BETWEEN"},
            {"values": [{"updatedAt": "2020-01-01T00:00:00Z"}, {"updatedAt": 1e99}], "operator": "BETWEEN"},
            {"values": [{"DICOMStudyDateAndTime": moment}, {"DICOMStudyDateAndTime": later}], "operator": "BETWEEN"},
            {"values": [{"isPrimary": True}], "operator": "EQUAL"},
        )
    )


def _break(choice: random.Random, document: Any) -> None:
    """Somewhere in a document, something else."""
    node = document
    while isinstance(node, dict | list) and node:
        place = choice.choice(list(node) if isinstance(node, dict) else list(range(len(node))))
        inner = node[place]
        if isinstance(inner, dict | list) and inner and choice.random() < 0.7:
            node = inner
            continue
        match choice.randrange(4):
            case 0 if isinstance(node, dict):
                node[str(choice.choice(("x", "", "\0", place + "x")))] = _hostile(choice)
            case 1 if isinstance(node, dict):
                del node[place]
            case 2 if isinstance(node, list):
                node.extend([inner] * choice.choice((1, 200)))
            case _:
                node[place] = _hostile(choice)
        return


# ---------------------------------------------------------------- all else


def _count(choice: random.Random) -> str:
    """What may be a limit, a version or a number."""
    numbers = (
        "0",
        "1",
        "100",
        "1000",
        "-1",
        "x",
        "",
        "9" * 16,
        "0" * 5000 + "1",
        "1" + "0" * 5000,
        "000001" + "0" * 5000,
    )
    return choice.choice((*numbers, _encoded(choice, _word(choice))))


def _others(choice: random.Random, stock: Stock, number: int) -> Request:
    """Paths of operations, of history and of nobody; methods that few know."""
    image_set = choice.choice(stock.image_sets)
    path = choice.choice(
        (
            *(
                "/livez",
                "/readyz",
                "/queue",
                "/openapi.json",
                "/dicomweb",
                "/dicomweb/",
                "/",
                "//",
                "/favicon.ico",
                "*",
            ),
            f"/changes?after={_count(choice)}&limit={_count(choice)}",
            f"/datastore/{stock.datastore}/changes?limit={_count(choice)}",
            f"/datastore/{stock.datastore}/imageSet/{image_set}/diff?from={_count(choice)}&to={_count(choice)}",
            f"/quarantine?limit={_count(choice)}&after={_count(choice)}",
            f"/quarantine/{_encoded(choice, _word(choice))}",
            f"/quarantine/0000000000000-{'0' * 32}-00000",
            f"/dicomweb/conflicts?maxResults={_count(choice)}&nextToken={_count(choice)}",
            f"/dicomweb/{_encoded(choice, _word(choice))}",
            f"/{_encoded(choice, _word(choice))}",
            f"/datastore/{_encoded(choice, _word(choice))}/studies",
            f"/dicomweb/studies/{_encoded(choice, _word(choice))}/{_encoded(choice, _word(choice))}",
            f"http://other/dicomweb/studies?limit={_count(choice)}",
        )
    )
    method = choice.choice(
        ("GET", "GET", "GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND")
    )
    headers = [("Accept", _accept(choice)), *_conditions(choice)]
    if method == "OPTIONS" and choice.random() < 0.5:
        headers += [
            ("Origin", "http://x"),
            ("Access-Control-Request-Method", "GET"),
            ("Access-Control-Request-Headers", _header_text(choice)),
        ]
    return Request("other", method, path, headers)


def _garbage(choice: random.Random, stock: Stock, number: int) -> Request:
    """What is not HTTP, or not all of it."""
    sound = _stores(choice, stock, number) if choice.random() < 0.5 else _reads(choice, stock, number)
    wire = sound.wire("127.0.0.1")
    head = wire.partition(b"\r\n\r\n")[0]
    chunked = b"POST /dicomweb/studies HTTP/1.1\r\nHost: x\r\nContent-Type: application/dicom\r\n"
    chunked += b"Transfer-Encoding: chunked\r\n\r\n"
    raw = choice.choice(
        (
            lambda: wire[: choice.randrange(len(wire))],
            lambda: choice.randbytes(choice.choice((1, 20, 3000))),
            lambda: b"GET  / HTTP/1.1\r\n\r\n",
            lambda: b"GET /livez HTTP/9.9\r\nHost: x\r\n\r\n",
            lambda: b"GET /livez\r\n\r\n",
            lambda: b"get /livez HTTP/1.1\r\nHost: x\r\n\r\n",
            lambda: b"GET /" + b"x" * choice.choice((70_000, 300_000)) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            lambda: head + b"\r\n" + b"X: y\r\n" * choice.choice((10, 5000, 20_000)) + b"\r\n",
            lambda: head + b"\r\nX: " + b"y" * choice.choice((100_000, 1_000_000)) + b"\r\n\r\n",
            lambda: head + b"\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
            lambda: head + b"\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            lambda: head + b"\r\nbad header\r\n\r\n",
            lambda: head + b"\r\n folded: x\r\n\r\n",
            lambda: (
                chunked
                + choice.choice(
                    (b"zz\r\nabc\r\n", b"-5\r\nabc", b"5\r\nab", b"FFFFFFFFFFFFFFFFFF\r\n", b"3\r\nabcdef\r\n0\r\n\r\n")
                )
            ),
            lambda: chunked + b"1\r\na\r\n" * 3000 + b"0\r\n\r\n",
            lambda: b"POST /dicomweb/studies HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
            lambda: b"POST /dicomweb/studies HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
            lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + choice.randbytes(200),
            lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            lambda: b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 200,
            lambda: b"GET /livez HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        )
    )()
    return Request("garbage", "", "", raw=raw)


def _bent(choice: random.Random, made: Request) -> Request:
    """The same with another method, as HEAD goes where GET goes, or with a header more."""
    if choice.random() < 0.5 and made.method == "GET":
        return Request(made.kind, choice.choice(("HEAD", "HEAD", "POST", "PUT")), made.target, made.headers, made.body)
    extra = choice.choice(
        (("Host", "["), ("Content-Encoding", "gzip"), ("X", "y" * 30_000), ("Connection", "close"), ("Cookie", CANARY))
    )
    return Request(made.kind, made.method, made.target, [*made.headers, extra], made.body)


_KINDS: Final[Sequence[tuple[Callable[[random.Random, Stock, int], Request], int]]] = (
    (_reads, 24),
    (_pictures, 14),
    (_uri, 6),
    (_searches, 18),
    (_stores, 12),
    (_removals, 3),
    (_api, 14),
    (_others, 6),
    (_garbage, 3),
)
