"""Transfer syntaxes: TS."""

from typing import Final

from pydicom.uid import UID

from ..reading import Part, texts
from ..samples import BIG_ENDIAN, EXPLICIT, IMPLICIT, JPEG_BASELINE, Sample
from ..suite import NotApplicable, Trial, case
from .negotiation import FRAMES, INSTANCES, OCTETS

_P: Final = "1.2.840.10008.1.2"
_LEGAL: Final = {
    OCTETS: None,  # any: TS-06
    "image/jpeg": {f"{_P}.4.{n}" for n in (50, 51, 57, 70)},
    "image/dicom-rle": {f"{_P}.5"},
    "image/jls": {f"{_P}.4.{n}" for n in (80, 81)},
    "image/jp2": {f"{_P}.4.{n}" for n in (90, 91)},
    "image/jpx": {f"{_P}.4.{n}" for n in (92, 93)},
    "image/jphc": {f"{_P}.4.{n}" for n in (201, 202, 203)},
    "image/jxl": {f"{_P}.4.{n}" for n in (110, 111, 112)},
    "video/mpeg2": {f"{_P}.4.{n}" for n in (100, 101)},
    "video/mp4": {f"{_P}.4.{n}" for n in (102, 103, 104, 105, 106)},
}
"""PS3.18 table 8.7.3-5."""
_EVERY: Final = (
    "ct",
    "implicit",
    "deflated",
    "big endian",
    "rgb",
    "palette",
    "multi-frame",
    "rle",
    "jpeg",
    "jpeg 2000",
)


def _syntax(part: Part) -> str:
    return (part.parameter("transfer-syntax") or "").strip('"')


def _frame(t: Trial, sample: Sample, number: int = 1, accept: str = FRAMES) -> Part | None:
    answer = t.get(f"{sample.path}/frames/{number}", accept=accept)
    if not t.status(answer, 200, f"frame {number} of {sample.name} as {accept}"):
        return None
    return t.parts(answer)[0]


def _stored_frame(t: Trial, sample: Sample) -> Part | None:
    return _frame(t, sample, accept=f"{FRAMES}; transfer-syntax=*")


@case("TS-01")
def explicit_by_default(t: Trial) -> None:
    for name in ("ct", "implicit", "rle"):
        for made in t.instances(t.sample(name).path):
            t.equal(str(made.file_meta.TransferSyntaxUID), EXPLICIT, f"{name} without transfer-syntax")
        if part := _frame(t, t.sample(name)):
            t.equal(part.body, t.sample(name).frames[0], f"frame 1 of {name} without transfer-syntax, uncompressed")


@case("TS-02")
def everything_in_explicit(t: Trial) -> None:
    for name in _EVERY:
        sample = t.sample(name)
        answer = t.get(sample.path, accept=f"{INSTANCES}; transfer-syntax={EXPLICIT}")
        if not t.status(answer, 200, f"{name} in Explicit VR Little Endian"):
            continue
        made = t.instance(t.parts(answer)[0].body)
        t.equal(str(made.file_meta.TransferSyntaxUID), EXPLICIT, name, answer)
        if sample.frames and "PixelData" in made:
            data = b"".join(sample.frames)
            t.expect(made.PixelData[: len(data)] == data, f"{name}: other pixels than were sent", answer)


@case("TS-03")
def never_implicit(t: Trial) -> None:
    for syntax in (IMPLICIT, BIG_ENDIAN):
        answer = t.get(t.sample("ct").path, accept=f"{INSTANCES}; transfer-syntax={syntax}")
        t.status(answer, 406, f"{UID(syntax).name} is not to be had")
    for name in ("implicit", "big endian"):
        for made in t.instances(t.sample(name).path, f"{INSTANCES}; transfer-syntax=*"):
            t.expect(made.file_meta.TransferSyntaxUID not in (IMPLICIT, BIG_ENDIAN), f"{name} leaves as it came")


@case("TS-04")
def one_uid_or_asterisk(t: Trial) -> None:
    for name in ("ct", "rle", "jpeg"):
        path = t.sample(name).path
        t.status(t.get(path, accept=f"{INSTANCES}; transfer-syntax=*"), 200, name)
        t.status(t.get(path, accept=f"{INSTANCES}; transfer-syntax=1.2.3.4.5"), 406, "an unknown syntax")


@case("TS-05")
def asterisk_is_what_is_stored(t: Trial) -> None:
    for name in ("rle", "jpeg", "jpeg 2000", "jpeg-ls"):
        sample = t.sample(name)
        part = _stored_frame(t, sample)
        if part and _syntax(part) == sample.syntax:
            t.expect(_joined(part.body) == _joined(sample.fragments[0]), f"{name}: the codestream changed")
        elif part:
            lossless = _syntax(part).endswith((".2.1", ".4.201", ".4.202", ".4.90", ".4.80"))
            t.expect(sample.syntax != JPEG_BASELINE and lossless, f"{name} is sent in {_syntax(part)}")


def _joined(stream: bytes) -> bytes:
    return stream.rstrip(b"\0")


@case("TS-06")
def compressed_as_octets(t: Trial) -> None:
    accept = "multipart/related; type=application/octet-stream; transfer-syntax=*"
    for name in ("jpeg", "jpeg 2000"):
        sample = t.sample(name)
        part = _frame(t, sample, accept=accept)
        if part is None:
            continue
        t.expect(_syntax(part), f"{name}: the part does not say its transfer syntax")
        if _syntax(part) == sample.syntax:
            t.expect(_joined(part.body) == _joined(sample.fragments[0]), f"{name}: not the codestream that was sent")


@case("TS-07")
def parts_name_their_syntax(t: Trial) -> None:
    for name in ("ct", "rle", "jpeg"):
        for accept in (FRAMES, f"{FRAMES}; transfer-syntax=*"):
            part = _frame(t, t.sample(name), accept=accept)
            if part:
                written = part.parameter("transfer-syntax")
                t.expect(written, f"{name}: the part's Content-Type has no transfer-syntax")
                t.expect(not written or '"' not in written, f"{name}: transfer-syntax={written} is quoted")


@case("TS-08")
def legal_pairs(t: Trial) -> None:
    served = 0
    for name in ("ct", "rle", "jpeg", "jpeg 2000", "jpeg-ls"):
        answer = t.get(f"{t.sample(name).path}/frames/1", accept="multipart/related; type=image/*; transfer-syntax=*")
        parts = t.parts(answer) if answer.status == 200 else []
        parts += [part for part in [_stored_frame(t, t.sample(name))] if part]
        served += len(parts)
        for part in parts:
            t.expect(part.type in _LEGAL, f"{name}: {part.type} is no type of bulk data")
            allowed = _LEGAL.get(part.type)
            if allowed is not None and _syntax(part):
                t.expect(_syntax(part) in allowed, f"{name}: {part.type} with {_syntax(part)}")
    t.demand(served, "no frame was served")


@case("TS-09")
def bare_codestreams(t: Trial) -> None:
    for name in ("jpeg", "jpeg 2000", "jpeg-ls", "rle"):
        sample = t.sample(name)
        part = _stored_frame(t, sample)
        if part is None:
            continue
        starts = {".50": b"\xff\xd8\xff", ".80": b"\xff\xd8\xff", ".90": b"\xff\x4f\xff\x51"}
        starts |= {f".{n}": b"\xff\x4f\xff\x51" for n in (91, 201, 202, 203)}
        start = starts.get(_syntax(part)[-4:] if ".4.20" in _syntax(part) else _syntax(part)[-3:])
        if start:
            t.expect(part.body.startswith(start), f"{name}: begins with {part.body[:8].hex()}, no bare codestream")
    multi = t.sample("multi-frame")
    answer = t.must_be(t.get(f"{multi.path}/frames/1,2,3", accept=FRAMES), 200)
    t.equal(len(t.parts(answer)), 3, "parts for three frames")


@case("TS-10")
def honest_htj2k(t: Trial) -> None:
    seen = 0
    for name in ("ct", "rgb", "multi-frame", "rle"):
        sample = t.sample(name)
        part = _stored_frame(t, sample)
        if part is None or not _syntax(part).startswith(f"{_P}.4.20"):
            continue
        seen += 1
        t.expect(b"\xff\x50" in part.body[:200], f"{name}: no CAP marker, so no HTJ2K")
        style = part.body.find(b"\xff\x52")
        if _syntax(part).endswith(".202"):
            t.equal(part.body[style + 5], 2, f"{name}: progression order in COD (2 is RPCL)")
            t.expect(b"\xff\x55" in part.body[:2000], f"{name}: no TLM marker")
        if _syntax(part).endswith((".201", ".202")):
            t.equal(part.body[style + 13], 1, f"{name}: wavelet in COD (1 is the reversible one)")
    if not seen:
        raise NotApplicable("the server does not send HTJ2K")


@case("TS-11")
def transcoding_tells_itself(t: Trial) -> None:
    sample = t.sample("jpeg colour")
    made = t.instances(sample.path, f"{INSTANCES}; transfer-syntax={EXPLICIT}")[0]
    t.equal(made.get("LossyImageCompression"), "01", "LossyImageCompression after decoding a lossy original")
    size = made.Rows * made.Columns * made.get("NumberOfFrames", 1)
    samples = {"YBR_FULL_422": 2}.get(made.PhotometricInterpretation, 3)
    t.expect(
        len(made.PixelData) == size * samples,
        f"{made.PhotometricInterpretation} with {len(made.PixelData)} bytes for {size} pixels",
    )
    t.equal(made.SOPInstanceUID, sample.sop, "SOP Instance UID")
    for other in t.instances(t.sample("rle").path):
        t.equal(other.SOPInstanceUID, t.sample("rle").sop, "SOP Instance UID after a lossless change of syntax")


@case("TS-12")
def long_values(t: Trial) -> None:
    sample = t.sample("ct")
    for made in t.instances(sample.path):
        t.expect(made.PixelData == sample.data.PixelData, "Pixel Data changed")


@case("TS-13")
def available_syntax(t: Trial) -> None:
    found = texts(t.metadata(t.sample("ct")), "00083002")
    if not found:
        raise NotApplicable("metadata has no Available Transfer Syntax UID")
    t.expect(all(UID(uid).is_valid for uid in found), f"Available Transfer Syntax UID {found}")
