"""Retrieval: WADO, BULK, CACHE, COMP."""

import gzip

import numpy as np

from ..reading import differences, elements, value
from ..samples import EXPLICIT, part10
from ..server import DICOM_JSON, multipart
from ..suite import NotApplicable, Trial, case
from .negotiation import FRAMES, INSTANCES, OCTETS


@case("WADO-01")
def statuses(t: Trial) -> None:
    sample = t.sample("ct")
    t.status(t.get(sample.path, accept=INSTANCES), 200)
    t.status(t.get(f"/studies/{t.samples.nowhere}", accept=INSTANCES), 404)
    t.status(t.get(f"{sample.path}/frames/x", accept=FRAMES), 400)
    t.status(t.get(sample.path, accept="text/unheard-of"), 406)
    t.expect(
        t.get(sample.path, accept=INSTANCES, headers={"Range": "pages=1-2"}).status == 200, "an unknown range unit"
    )


@case("WADO-02")
def whole_instances(t: Trial) -> None:
    sample = t.sample("ct")
    seen: list[list[str]] = []
    for _ in range(2):
        made = t.instances(sample.study_path)
        seen.append([one.SOPInstanceUID for one in made])
    t.equal(seen[0], seen[1], "order of the instances the second time")
    stored = {one.sop: one for one in t.samples if one.study == sample.study and one.is_stored}
    t.equal(set(seen[0]), set(stored), "instances of the study")
    for one in made:
        sent = stored.get(one.SOPInstanceUID)
        t.equal(one.file_meta.get("MediaStorageSOPInstanceUID"), one.SOPInstanceUID, "File Meta's instance")
        t.equal(one.file_meta.get("MediaStorageSOPClassUID"), one.SOPClassUID, "File Meta's class")
        if sent and not sent.fragments:
            t.expect(not (found := list(differences(sent.data, one))), f"{sent.name}: {'; '.join(found[:5])}")
    for path, count in ((t.sample("A/1/1").series_path, 3), (t.sample("A/1/1").study_path, 4)):
        t.equal(len(t.instances(path)), count, f"instances of {path}")


@case("WADO-03")
def single_part_instance(t: Trial) -> None:
    answer = t.get(t.sample("ct").path, accept="application/dicom")
    t.status(answer, 200)
    t.equal(answer.type, "application/dicom", "Content-Type")
    t.expect(answer.body[128:132] == b"DICM", "the body is no DICOM file")


@case("WADO-04")
def syntax_of_metadata(t: Trial) -> None:
    answer = t.get(f"{t.sample('ct').path}/metadata", accept=f"{DICOM_JSON}; transfer-syntax={EXPLICIT}")
    t.status(answer, 200, "transfer-syntax means nothing for metadata")


@case("WADO-05")
def frame_lists(t: Trial) -> None:
    multi, text = t.sample("multi-frame"), t.sample("sr")
    for frames, wanted in (("1", [0]), ("1,3", [0, 2]), ("2%2C4", [1, 3]), ("3,1", [2, 0])):
        answer = t.get(f"{multi.path}/frames/{frames}", accept=FRAMES)
        if t.status(answer, 200, f"frames {frames}"):
            found = [part.body for part in t.parts(answer)]
            t.expect(found == [multi.frames[n] for n in wanted], f"frames {frames}: other frames than asked for")
    for frames in ("0", "-1", "x", "1,1", "1,,2", "1.5"):
        t.status(t.get(f"{multi.path}/frames/{frames}", accept=FRAMES), 400, f"frames {frames}")
    t.status(t.get(f"{multi.path}/frames/6", accept=FRAMES), 404, "beyond the last frame")
    t.status(t.get(f"{multi.path}/frames/1,6", accept=FRAMES), 404, "one of them is beyond the last frame")
    t.status(t.get(f"{text.path}/frames/1", accept=FRAMES), 404, "no pixels")


@case("WADO-06")
def a_part_for_each_frame(t: Trial) -> None:
    multi = t.sample("multi-frame")
    answer = t.must_be(t.get(f"{multi.path}/frames/2,5", accept=FRAMES), 200)
    parts = t.parts(answer)
    t.equal(len(parts), 2, "parts")
    for part, number in zip(parts, (2, 5), strict=False):
        t.expect(part.body == multi.frames[number - 1], f"the part is not frame {number}")
        location = part.headers.get("content-location", "")
        t.expect(location.endswith(f"/frames/{number}"), f"Content-Location {location!r} of frame {number}")


@case("WADO-07")
def frames_as_metadata_says(t: Trial) -> None:
    for name in ("ct", "implicit", "deflated", "big endian", "rle", "one bit"):
        sample = t.sample(name)
        for number, frame in enumerate(sample.frames, start=1):
            answer = t.get(f"{sample.path}/frames/{number}", accept=FRAMES)
            if t.status(answer, 200, f"{name}, frame {number}"):
                body = t.parts(answer)[0].body
                t.expect(body[: len(frame)] == frame and len(body) <= len(frame) + 1, f"{name}, frame {number} differs")


@case("WADO-08")
def float_frames(t: Trial) -> None:
    sample = t.sample("float")
    answer = t.get(f"{sample.path}/frames/1", accept=FRAMES)
    t.status(answer, 200)
    t.expect(t.parts(answer)[0].body == sample.frames[0], "other values than were sent")


@case("WADO-09")
def single_part_frame(t: Trial) -> None:
    sample, multi = t.sample("ct"), t.sample("multi-frame")
    answer = t.get(f"{sample.path}/frames/1", accept=OCTETS)
    if t.status(answer, 200, "one frame as a bare type"):
        t.equal(answer.type, OCTETS, "Content-Type")
        t.expect(answer.body == sample.frames[0], "other pixels than were sent")
    t.status(t.get(f"{multi.path}/frames/1,2", accept=OCTETS), 406, "several frames as a bare type")


@case("WADO-10")
def metadata_describes_frames(t: Trial) -> None:
    for name in ("rgb", "palette", "monochrome1", "jpeg", "jpeg colour", "jpeg 2000"):
        sample = t.sample(name)
        row = t.metadata(sample)
        answer = t.get(f"{sample.path}/frames/1", accept=FRAMES)
        if not t.status(answer, 200, f"{name}, uncompressed"):
            continue
        rows, columns, samples, bits = (
            int(value(row, tag) or 0) for tag in ("00280010", "00280011", "00280002", "00280100")
        )
        per_pixel = 2 if "422" in str(value(row, "00280004")) else samples
        size = rows * columns * per_pixel * bits // 8
        t.equal(len(t.parts(answer)[0].body), size, f"bytes of a frame of {name} as {value(row, '00280004')}", answer)
    row = t.metadata(t.sample("jpeg colour"))
    answer = t.get(f"{t.sample('jpeg colour').path}/frames/1", accept=FRAMES)
    if answer.status == 200 and value(row, "00280004") == "RGB" and value(row, "00280006") in (0, None):
        pixel = np.frombuffer(t.parts(answer)[0].body[:3], np.uint8).astype(int)
        sent = np.frombuffer(bytes((0, 255, 64)), np.uint8).astype(int)
        t.expect(abs(pixel - sent).max() < 25, f"first pixel {pixel.tolist()}, sent as {sent.tolist()} in RGB", answer)


@case("WADO-11")
def small_print(t: Trial) -> None:
    sample = t.sample("ct")
    answer = t.get(sample.path, accept="application/dicom")
    if answer.status == 200:
        t.expect("content-location" in answer.headers, "a single-part answer has no Content-Location")
    t.status(t.get(f"{sample.path}/metadata", {"unheard": "of"}), 200, "an unknown query parameter")


def _bulk(t: Trial, name: str) -> dict[str, str]:
    """The BulkDataURIs of an instance, by where they stand."""
    row = t.metadata(t.sample(name))
    return {where: str(one["BulkDataURI"]) for where, _, one in elements(row) if "BulkDataURI" in one}


@case("BULK-01")
def bulk_data(t: Trial) -> None:
    for name, end, wanted in (
        ("ct", "7FE00010", t.sample("ct").frames[0]),
        ("private", "00991010", bytes(range(256)) * 64),
    ):
        found = [uri for where, uri in _bulk(t, name).items() if where.endswith(end)]
        inline = [one for where, _, one in elements(t.metadata(t.sample(name))) if where.endswith(end)]
        if not found and inline and "InlineBinary" in inline[0]:
            continue
        if t.expect(found, f"{name}: {end} has neither BulkDataURI nor InlineBinary"):
            answer = t.get(found[0], accept=FRAMES)
            if t.status(answer, 200, f"{name}: bulk data of {end}"):
                t.expect(t.parts(answer)[0].body == wanted, f"{name}: other bytes than were sent")
    pdf = t.sample("pdf")
    found = [uri for where, uri in _bulk(t, "pdf").items() if where == "00420011"]
    if found:
        answer = t.get(found[0], accept='multipart/related; type="application/pdf"')
        if t.status(answer, 200, "the document in its own type"):
            part = t.parts(answer)[0]
            t.equal(part.type, "application/pdf", "type of the part")
            t.expect(part.body.rstrip(b"\0") == pdf.data.EncapsulatedDocument.rstrip(b"\0"), "another document")


@case("BULK-02")
def byte_ranges(t: Trial) -> None:
    uri = _bulk(t, "ct").get("7FE00010", "")
    t.demand(uri, "Pixel Data has no BulkDataURI")
    whole = t.get(uri, accept=OCTETS)
    if whole.status != 200:
        raise NotApplicable(f"bulk data is not to be had as a single part (status {whole.status})")
    answer = t.get(uri, accept=OCTETS, headers={"Range": "bytes=5-20"})
    if t.status(answer, 206, "a range of bytes"):
        t.expect(answer.body == whole.body[5:21], "other bytes than asked for")
        t.equal(answer.headers.get("content-range"), f"bytes 5-20/{len(whole.body)}", "Content-Range")
    t.status(t.get(uri, accept=OCTETS, headers={"Range": f"bytes={len(whole.body)}-"}), 416, "behind the end")
    t.expect(whole.headers.get("accept-ranges") == "bytes", "no Accept-Ranges", whole)


@case("BULK-03")
def ranges_of_multiparts(t: Trial) -> None:
    path = f"{t.sample('ct').path}/frames/1"
    whole = t.must_be(t.get(path, accept=FRAMES), 200)
    first = t.get(path, accept=FRAMES, headers={"Range": "bytes=0-999"})
    if t.status(first, (200, 206)) and first.status == 206:
        rest = t.get(path, accept=FRAMES, headers={"Range": "bytes=1000-"})
        t.expect(first.body + rest.body == whole.body, "the ranges do not make up the whole", rest)


@case("CACHE-01")
def entity_tags(t: Trial) -> None:
    sample = t.sample("ct")
    tags = set()
    for path, accept in (
        (f"{sample.path}/metadata", DICOM_JSON),
        (f"{sample.path}/frames/1", FRAMES),
        (f"{sample.path}/frames/1", OCTETS),
        (sample.path, INSTANCES),
    ):
        answer = t.get(path, accept=accept)
        tag = answer.headers.get("etag", "")
        if t.expect(tag.startswith('"'), f"{path}: ETag {tag!r} is no strong one"):
            t.expect(tag not in tags, f"{path} as {accept} has the ETag of another representation")
            tags.add(tag)
            t.status(t.get(path, accept=accept, headers={"If-None-Match": tag}), 304, "the same ETag")
            t.status(t.get(path, accept=accept, headers={"If-None-Match": '"another"'}), 200, "another ETag")


@case("CACHE-02")
def cache_headers(t: Trial) -> None:
    sample = t.sample("ct")
    for path in (f"{sample.path}/metadata", f"{sample.path}/frames/1"):
        answer = t.get(path, accept="*/*")
        vary = {name.strip().lower() for name in answer.headers.get("vary", "").split(",")}
        t.expect({"accept", "accept-encoding", "origin"} <= vary, f"Vary: {answer.headers.get('vary')}")
        t.expect("private" in answer.headers.get("cache-control", ""), "not private")
    for answer in (t.get("/studies", {"PatientID": t.samples.mine}), t.get(f"/studies/{t.samples.nowhere}/metadata")):
        t.expect("no-store" in answer.headers.get("cache-control", ""), "searches and errors are no-store", answer)


@case("COMP-01")
def compressed_answers(t: Trial) -> None:
    sample = t.sample("ct")
    path = f"{sample.study_path}/metadata"
    answer = t.get(path, headers={"Accept-Encoding": "gzip"})
    t.equal(answer.headers.get("content-encoding"), "gzip", "Content-Encoding of metadata")
    plain = t.get(path, headers={"Accept-Encoding": "identity"})
    t.expect(plain.headers.get("content-encoding") in (None, "identity"), "compressed though not asked for")
    t.equal(answer.json(), plain.json(), "the same metadata", answer)
    jpeg = t.get(
        f"{t.sample('jpeg').path}/frames/1",
        accept=f"{FRAMES}; transfer-syntax=*",
        headers={"Accept-Encoding": "gzip"},
    )
    t.expect(jpeg.headers.get("content-encoding") != "gzip", "a compressed frame is compressed again")


@case("COMP-02")
def compressed_requests(t: Trial) -> None:
    body = multipart([("application/dicom", part10(t.samples.loose()))], "b")
    kind = 'multipart/related; type="application/dicom"; boundary=b'
    headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
    t.status(t.ask("POST", "/studies", headers=headers, content=gzip.compress(body)), (200, 415), "gzip")
    t.status(t.ask("POST", "/studies", headers=headers, content=body), (400, 415), "gzip that is none")
    headers["Content-Encoding"] = "unheard-of"
    t.status(t.ask("POST", "/studies", headers=headers, content=body), 415, "an unknown Content-Encoding")
