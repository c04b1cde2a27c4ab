"""Errors, browsers, and extras: ERR, CORS, HI."""

from ..reading import value
from ..suite import NotApplicable, Trial, case
from .negotiation import FRAMES

_ORIGIN = "https://viewer.example"


@case("ERR-01")
def status_reports(t: Trial) -> None:
    for answer in (
        t.get(f"/studies/{t.samples.nowhere}/metadata"),
        t.get("/studies", "limit=x"),
        t.get(f"{t.sample('ct').path}/metadata", accept="text/unheard-of"),
    ):
        t.expect(answer.body, f"status {answer.status} without a word", answer)
        t.expect("json" in answer.type or answer.type.startswith("text/"), f"Content-Type {answer.type}", answer)
        t.expect(b"Traceback" not in answer.body, "the insides of the server are shown", answer)
    if t.server.auth:
        bare = t.get("/studies", {"limit": "1", "PatientID": t.samples.patient_id("A")}, authorized=False)
        if t.status(bare, (401, 403, 404), "without credentials") and bare.status == 401:
            t.expect("www-authenticate" in bare.headers, "401 without WWW-Authenticate", bare)


@case("ERR-03")
def malformed(t: Trial) -> None:
    path = f"{t.sample('ct').path}/metadata"
    for target in ("/studies/%ZZ/metadata", "/studies?PatientID=%", "/studies/%FF%FE/metadata", "/studies/1%002"):
        answer = t.raw("GET", target, ["Accept: application/dicom+json"])
        t.expect(answer.status < 500, f"status {answer.status} for a malformed escape", answer)
    answer = t.raw("GET", f"/studies?PatientID={'x' * 100_000}")
    t.expect(400 <= answer.status < 500, f"status {answer.status} for a URL of 100 000 characters", answer)
    for line in ("Expect: 200-maybe", "Range: bytes=9-1", "Range: bytes=x", 'If-None-Match: ,,"', 'Accept: ;;,"=,'):
        answer = t.raw("GET", path, [line] if line.startswith("Accept") else [line, "Accept: */*"])
        t.expect(answer.status < 500, f"status {answer.status} with {line}", answer)
    for kind in ('multipart/related; type="application/dicom"', "multipart/related; boundary=", "nonsense", ";;;"):
        answer = t.raw("POST", "/studies", [f"Content-Type: {kind}"], b"--x\r\n\r\nhello\r\n--x--")
        t.expect(400 <= answer.status < 500, f"status {answer.status} with Content-Type {kind}", answer)


def _cors(t: Trial) -> None:
    answer = t.get("/studies", {"PatientID": t.samples.mine}, headers={"Origin": _ORIGIN})
    if "access-control-allow-origin" not in answer.headers:
        raise NotApplicable("no answer to other origins (no Access-Control-Allow-Origin)")


@case("CORS-01")
def allowed_origin(t: Trial) -> None:
    _cors(t)
    sample = t.sample("ct")
    path, origin = f"{sample.path}/metadata", {"Origin": _ORIGIN}
    whole = t.get(path, headers=origin)
    answers = [whole, t.get(f"/studies/{t.samples.nowhere}/metadata", headers=origin)]
    answers += [t.get("/studies", "limit=x", headers=origin), t.get(path, accept="text/unheard-of", headers=origin)]
    if "etag" in whole.headers:
        answers.append(t.get(path, headers={**origin, "If-None-Match": whole.headers["etag"]}))
    for answer in answers:
        allowed = answer.headers.get("access-control-allow-origin")
        t.expect(allowed in ("*", _ORIGIN), f"status {answer.status}: Allow-Origin {allowed!r}", answer)


@case("CORS-02")
def preflights(t: Trial) -> None:
    _cors(t)
    for method, names in (
        ("GET", "accept"),
        ("GET", "authorization, range, if-none-match"),
        ("POST", "content-type, accept"),
        ("DELETE", "authorization"),
    ):
        lines = {
            "Origin": _ORIGIN,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": names,
        }
        answer = t.ask("OPTIONS", "/studies", headers=lines, authorized=False)
        t.status(answer, (200, 204), "a preflight")
        methods = answer.headers.get("access-control-allow-methods", "").upper()
        t.expect(method in methods or methods == "*", f"{method} is not among {methods!r}")
        allowed = answer.headers.get("access-control-allow-headers", "").lower()
        missing = [name for name in names.split(", ") if name not in allowed and allowed != "*"]
        t.expect(not missing, f"{missing} are not among {allowed!r}")


@case("CORS-03")
def exposed_headers(t: Trial) -> None:
    _cors(t)
    answer = t.get(f"{t.sample('ct').path}/frames/1", accept=FRAMES, headers={"Origin": _ORIGIN})
    exposed = {name.strip().lower() for name in answer.headers.get("access-control-expose-headers", "").split(",")}
    wanted = {"content-length", "content-range", "content-location", "location", "etag", "warning", "accept-ranges"}
    t.expect(wanted <= exposed, f"not exposed: {sorted(wanted - exposed)}")


@case("CORS-04")
def resource_policy(t: Trial) -> None:
    _cors(t)
    answer = t.get(f"{t.sample('ct').path}/frames/1", accept=FRAMES, headers={"Origin": _ORIGIN})
    t.equal(answer.headers.get("cross-origin-resource-policy"), "cross-origin", "Cross-Origin-Resource-Policy")


@case("CORS-05")
def requests_without_headers(t: Trial) -> None:
    sample = t.sample("ct")
    t.offered("rendered", f"{sample.path}/rendered", accept="image/jpeg")
    browser = "image/avif,image/webp,image/apng,*/*;q=0.8"
    answer = t.get(f"{sample.path}/rendered", "accept=image/jpeg", accept=browser)
    t.status(answer, 200, "what an <img> sends")
    t.equal(answer.type, "image/jpeg", "Content-Type")


@case("HI-01")
def healthimaging_shape(t: Trial) -> None:
    numbers = [value(row, "00200013") for row in t.rows(f"{t.sample('A/1/1').series_path}/instances")]
    t.equal(numbers, sorted(numbers), "instances by their number")
    numbers = [value(row, "00200011") for row in t.rows(f"{t.sample('A/1/1').study_path}/series")]
    t.equal(numbers, sorted(numbers), "series by their number")
