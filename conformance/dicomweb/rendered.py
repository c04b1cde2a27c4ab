"""Rendered resources: REND, THUMB."""

from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from ..samples import Sample
from ..server import Answer
from ..suite import DECLINED, NotApplicable, Trial, case

_STARTS = {"image/jpeg": b"\xff\xd8\xff", "image/png": b"\x89PNG", "image/gif": b"GIF8"}


def _offered(t: Trial) -> None:
    t.offered("rendered", f"{t.sample('ct').path}/rendered", accept="image/jpeg")


def _rendered(t: Trial, sample: Sample, params: dict[str, str] | None = None, accept: str = "image/png") -> Answer:
    return t.get(f"{sample.path}/rendered", params or {}, accept=accept)


def _image(t: Trial, answer: Answer) -> NDArray[Any]:
    """Rows, columns and, in colour, channels."""
    decode = {"image/jpeg": imagecodecs.jpeg8_decode, "image/png": imagecodecs.png_decode}
    t.demand(answer.type in decode, f"Content-Type {answer.type}", answer)
    try:
        return np.asarray(decode[answer.type](answer.body))
    except Exception as fault:
        t.demand(False, f"the {answer.type} cannot be decoded ({type(fault).__name__})", answer)
        raise


@case("REND-01")
def media_types(t: Trial) -> None:
    _offered(t)
    for name in ("ct", "rgb"):
        for kind, start in _STARTS.items():
            answer = _rendered(t, t.sample(name), accept=kind)
            if t.status(answer, 200, f"{name} as {kind}"):
                t.equal(answer.type, kind, "Content-Type")
                t.expect(answer.body.startswith(start), f"the body is no {kind}")
        answer = _rendered(t, t.sample(name), accept="*/*")
        t.equal(answer.type, "image/jpeg", "the default type")
    for kind in ("text/html", "text/plain", "text/xml"):
        answer = _rendered(t, t.sample("sr"), accept=kind)
        if t.status(answer, 200, f"a report as {kind}"):
            t.expect(b"Findings" in answer.body, "the report's text is not there")


@case("REND-02")
def pipeline(t: Trial) -> None:
    _offered(t)
    rising = _image(t, t.must_be(_rendered(t, t.sample("palette")), 200))
    t.expect(rising.ndim == 3, "a palette image is rendered without its colours")
    if rising.ndim == 3:
        first, last = rising[0, 0, :3].astype(int), rising[-1, -1, :3].astype(int)
        t.expect(first[0] < 20 and first[1] > 235, f"first pixel {first.tolist()}, expected about 0, 255, 9")
        t.expect(last[0] > 235 and last[1] < 20, f"last pixel {last.tolist()}, expected about 255, 0, 9")
    for name, rises in (("ct", True), ("monochrome1", False)):
        image = _image(t, t.must_be(_rendered(t, t.sample(name)), 200)).astype(int)
        t.expect(image.max() <= 255, f"{name}: more than 8 bits a channel")
        corner = image.reshape(*image.shape[:2], -1)[..., 0]
        t.expect((corner[-1, -1] > corner[0, 0]) == rises, f"{name}: dark and light are exchanged")
    colour = _image(t, t.must_be(_rendered(t, t.sample("jpeg colour")), 200))
    if t.expect(colour.ndim == 3, "a colour JPEG is rendered grey"):
        pixel = colour[0, 0, :3].astype(int)
        t.expect(
            np.abs(pixel - np.array((0, 255, 64))).max() < 30,
            f"first pixel {pixel.tolist()}, expected about 0, 255, 64",
        )
    answer = _rendered(t, t.sample("ct"), accept="image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50")
    t.status(answer, 200, "transfer-syntax means nothing here")


@case("REND-03")
def quality(t: Trial) -> None:
    _offered(t)
    low, high = (_rendered(t, t.sample("rgb"), {"quality": q}, "image/jpeg") for q in ("5", "100"))
    t.status(low, 200)
    t.status(high, 200)
    t.expect(len(low.body) < len(high.body), "quality 5 is not smaller than quality 100")
    for bad in ("0", "101", "x", "-1"):
        t.status(_rendered(t, t.sample("rgb"), {"quality": bad}, "image/jpeg"), 400, f"quality={bad}")


@case("REND-04")
def viewport(t: Trial) -> None:
    _offered(t)
    sample = t.sample("ct")  # 64 rows, 48 columns
    for text, wanted in (
        ("24,32", (32, 24)),
        ("100,32", (32, 24)),
        ("96,128", (128, 96)),
        ("10,10,0,0,20,20", (10, 10)),
        ("12,16,,,,", (16, 12)),
    ):
        answer = _rendered(t, sample, {"viewport": text})
        if t.status(answer, 200, f"viewport={text}"):
            t.equal(_image(t, answer).shape[:2], wanted, f"rows and columns for viewport={text}", answer)
    plain = _image(t, t.must_be(_rendered(t, sample, {"viewport": "48,64,0,0,48,64"}), 200))
    answer = _rendered(t, sample, {"viewport": "48,64,0,0,-48,64"})
    if t.status(answer, 200, "a negative width flips"):
        flipped = _image(t, answer)
        t.expect(abs(flipped[:, ::-1].astype(int) - plain.astype(int)).max() < 9, "not flipped", answer)
    for bad in ("x", "10", "0,0", "-5,5", "10,10,0,0,0,0", "1,2,3,4,5,6,7", "10,10,900,900,5,5"):
        t.status(_rendered(t, sample, {"viewport": bad}), 400, f"viewport={bad}")


@case("REND-05")
def window(t: Trial) -> None:
    _offered(t)
    sample = t.sample("ct")
    narrow, wide = (
        _image(t, t.must_be(_rendered(t, sample, {"window": text}), 200)).astype(int)
        for text in ("1000,10,linear", "1000,4000,linear")
    )
    t.expect((narrow % 255 == 0).mean() > (wide % 255 == 0).mean(), "a narrow window is not steeper than a wide one")
    for function in ("linear-exact", "sigmoid"):
        t.status(_rendered(t, sample, {"window": f"1000,500,{function}"}), 200, function)
    for bad in ("1000", "1000,500", "x,y,linear", "1000,500,unheard", "1000,0,linear", "1000,-5,linear"):
        t.status(_rendered(t, sample, {"window": bad}), 400, f"window={bad}")


@case("REND-06")
def annotation(t: Trial) -> None:
    _offered(t)
    sample = t.sample("ct")
    # As large as text needs to be told from the image.
    plain = _rendered(t, sample, {"viewport": "480,640"})
    for words in ("patient", "technique", "patient,technique"):
        answer = _rendered(t, sample, {"viewport": "480,640", "annotation": words})
        if not t.status(answer, 200, words):
            continue
        warned = "299" in answer.headers.get("warning", "")
        if answer.body == plain.body:
            t.expect(warned, f"{words} is not drawn, and no Warning 299 says so", answer)
        elif plain.status == 200 and not warned:
            changed = _image(t, answer).shape[:2] == _image(t, plain).shape[:2]
            t.expect(changed, "an annotation makes the picture another size", answer)
    again = _rendered(t, sample, {"viewport": "480,640"})
    t.expect(again.body == plain.body, "without annotation the picture is not the same as before")
    for bad in ("", "unheard", "patient,unheard"):
        t.status(_rendered(t, sample, {"annotation": bad}), 400, f"annotation={bad}")


@case("REND-07")
def icc_profile(t: Trial) -> None:
    _offered(t)
    for known in ("no", "yes", "srgb"):
        t.status(_rendered(t, t.sample("rgb"), {"iccprofile": known}, "image/jpeg"), (200, 400), known)
    t.status(_rendered(t, t.sample("rgb"), {"iccprofile": "no"}, "image/jpeg"), 200, "no")
    t.status(_rendered(t, t.sample("rgb"), {"iccprofile": "unheard"}, "image/jpeg"), 400, "unheard")


@case("REND-08")
def several(t: Trial) -> None:
    _offered(t)
    multi = t.sample("multi-frame")
    answer = _rendered(t, multi, accept="image/jpeg")
    if t.status(answer, 200, "a multi-frame instance as image/jpeg"):
        t.equal(answer.type, "image/jpeg", "Content-Type")
    for path in (t.sample("B/1/1").study_path, multi.series_path):
        answer = t.get(f"{path}/rendered", accept="image/jpeg")
        t.status(answer, 200, "one image stands for the whole")
    first, second = (t.get(f"{multi.path}/frames/{n}/rendered", accept="image/png") for n in (1, 3))
    t.status(first, 200)
    t.status(second, 200)
    t.expect(first.body != second.body, "frames 1 and 3 look the same")
    answer = t.get(f"{multi.path}/frames/1,3/rendered", accept='multipart/related; type="image/jpeg"')
    if t.status(answer, 200, "a list of frames as multipart"):
        t.equal([part.type for part in t.parts(answer)], ["image/jpeg"] * 2, "parts")


@case("REND-09")
def documents(t: Trial) -> None:
    _offered(t)
    answer = _rendered(t, t.sample("pdf"), accept="application/pdf")
    if t.status(answer, 200, "an encapsulated PDF"):
        t.equal(answer.type, "application/pdf", "Content-Type")
        t.expect(answer.body.startswith(b"%PDF"), "no PDF")
    t.status(_rendered(t, t.sample("every vr"), accept="image/jpeg"), (404, 406), "nothing to render")


@case("REND-10")
def presentation_states_and_moving_pictures(t: Trial) -> None:
    _offered(t)
    declined = []
    state, image = t.sample("presentation state"), t.sample("ct")
    answer = _rendered(t, state)
    if answer.status in DECLINED:
        declined.append(f"presentation states are not rendered (status {answer.status})")
    elif t.status(answer, 200, "a presentation state with its image"):
        values = np.frombuffer(image.frames[0], "<u2").reshape(image.data.Rows, image.data.Columns)
        expected = np.rot90(np.where(values >= 1024, 255, 0), -1)
        shown = _image(t, answer)
        shades = shown.reshape(*shown.shape[:2], -1)[..., 0].astype(int)
        if t.equal(shades.shape, expected.shape, "rows and columns of the image a quarter turned", answer):
            line = np.zeros(expected.shape, bool)
            line[4:21, -5] = True
            around = np.zeros(expected.shape, bool)
            around[2:23, -8:-2] = True
            same = np.abs(shades - expected)[~around] < 64
            t.expect(same.mean() > 0.98, "not the values that the state's window shows, turned as it says", answer)
            near = np.max([np.roll(shades, move, axis=1) for move in (-1, 0, 1)], axis=0)
            t.expect((near[line] > 128).mean() > 0.9, "the state's line is not drawn where it says", answer)
        for refused in ({"window": "0,1,linear"}, {"viewport": "10,10,0,0,5,5"}):
            t.status(_rendered(t, state, refused), 400, f"{refused} of a presentation state")
    answer = _rendered(t, t.sample("multi-frame"), accept="image/gif")
    if answer.status == 406:
        declined.append("multi-frame instances are not rendered as animated GIF (status 406)")
    elif t.status(answer, 200):
        t.expect(answer.body.startswith(b"GIF8"), "no GIF")
    if len(declined) == 2:
        raise NotApplicable("; ".join(declined))


@case("THUMB-01")
def thumbnails(t: Trial) -> None:
    sample = t.sample("ct")
    t.offered("thumbnail", f"{sample.path}/thumbnail", accept="image/jpeg")
    for path in (sample.study_path, sample.series_path, sample.path, f"{sample.path}/frames/1"):
        answer = t.get(f"{path}/thumbnail", {"viewport": "16,16"}, accept="image/jpeg")
        if t.status(answer, (200, 302), path) and answer.status == 200:
            rows, columns = _image(t, answer).shape[:2]
            t.expect(rows <= 16 and columns <= 16, f"{columns} by {rows} pixels in a viewport of 16 by 16", answer)
    answer = t.get(f"{sample.path}/thumbnail", {"viewport": "16,16,0,0,5,5"}, accept="image/jpeg")
    t.status(answer, 400, "a thumbnail has no crop")
