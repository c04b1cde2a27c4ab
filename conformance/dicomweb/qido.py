"""Searches: QIDO. The tables count on the studies that `samples._search_set` makes."""

from typing import Any

from ..reading import texts, value
from ..suite import NotApplicable, Trial, case

_STUDY = {
    "00080020", "00080030", "00080050", "00080061", "00080090", "00100010", "00100020", "00100030", "00100040",
    "0020000D", "00200010", "00201206", "00201208",
}  # fmt: skip
_SERIES = {"00080060", "0020000E", "00200011", "00201209", "00081190"}
_INSTANCE = {"00080016", "00080018", "00200013", "00081190"}


def _mine(t: Trial, **keys: str) -> dict[str, str]:
    """Keys, beside one that keeps to the studies A to F."""
    return {"AccessionNumber": t.samples.searched, **keys}


def _studies(t: Trial, keys: dict[str, str], wanted: str, why: str = "") -> None:
    """A search for studies finds these of A to F."""
    found = t.find("/studies", _mine(t, **keys))
    t.expect(found == set(wanted), f"{keys} found {sorted(found)}, expected {sorted(wanted)}{why and f' ({why})'}")


def _all(t: Trial) -> None:
    for name in ("A/1/1", "A/1/2", "A/1/3", "A/2/1", "B/1/1", "C/1/1", "D/1/1", "E/1/1", "F/1/1", "F/2/1"):
        t.sample(name)


@case("QIDO-01")
def levels_of_keys(t: Trial) -> None:
    _all(t)
    a = t.sample("A/1/1")
    family = t.samples.patient_id("A")
    for resource, params, wanted in (
        ("/studies", {"StudyInstanceUID": a.study}, {"A"}),
        (f"{a.study_path}/series", {"Modality": "SR"}, {"A/2"}),
        (f"{a.study_path}/instances", {"Modality": "CT", "InstanceNumber": "2"}, {"A/1/2"}),
        ("/series", {"PatientID": family, "Modality": "CT"}, {"A/1"}),
        (f"{a.series_path}/instances", {"InstanceNumber": "3"}, {"A/1/3"}),
        ("/instances", {"PatientID": family, "Modality": "CT", "SOPInstanceUID": a.sop}, {"A/1/1"}),
    ):
        t.finds(resource, params, wanted, resource)


@case("QIDO-02")
def study_keys(t: Trial) -> None:
    _all(t)
    run, family = t.samples.run, t.samples.family()
    for keys, wanted in (
        ({"StudyDate": "20240115"}, "AB"),
        ({"StudyTime": "233000"}, "B"),
        ({"AccessionNumber": t.samples.searched}, "ABCDEF"),
        ({"AccessionNumber": f"{t.samples.searched}X"}, ""),
        ({"ModalitiesInStudy": "SR"}, "A"),
        ({"ReferringPhysicianName": f"Ref{run}^Rita"}, "A"),
        ({"PatientName": f"{family}^Dora"}, "D"),
        ({"PatientID": t.samples.patient_id("C")}, "C"),
        ({"StudyInstanceUID": t.sample("E/1/1").study}, "E"),
        ({"StudyID": "S2"}, "B"),
        ({"StudyID": "S3"}, ""),
    ):
        _studies(t, keys, wanted)


@case("QIDO-03")
def series_keys(t: Trial) -> None:
    _all(t)
    a, run = t.sample("A/1/1"), t.samples.run
    for params, wanted in (
        ({"Modality": "CT"}, {"A/1"}),
        ({"SeriesInstanceUID": a.series}, {"A/1"}),
        ({"SeriesNumber": "2"}, {"A/2"}),
        ({"PerformedProcedureStepStartDate": "20240115"}, {"A/1"}),
        ({"PerformedProcedureStepStartTime": "101000"}, {"A/1"}),
        ({"RequestAttributesSequence.ScheduledProcedureStepID": f"SP1{run}"}, {"A/1"}),
        ({"RequestAttributesSequence.RequestedProcedureID": f"RP2{run}"}, {"A/1"}),
        ({"Modality": "XX"}, set()),
    ):
        t.finds(f"{a.study_path}/series", params, wanted, str(params))


@case("QIDO-04")
def instance_keys(t: Trial) -> None:
    a, text = t.sample("A/1/2"), t.sample("A/2/1")
    for params, wanted in (
        ({"SOPClassUID": text.data.SOPClassUID}, {"A/2/1"}),
        ({"SOPInstanceUID": a.sop}, {"A/1/2"}),
        ({"InstanceNumber": "3"}, {"A/1/3"}),
        ({"InstanceNumber": "9"}, set()),
    ):
        t.finds(f"{a.study_path}/instances", params, wanted, str(params))


@case("QIDO-05")
def more_keys(t: Trial) -> None:
    _all(t)
    a, run = t.sample("A/1/1"), t.samples.run
    _studies(t, {"StudyDescription": f"*_{run}"}, "A")
    _studies(t, {"PatientSex": "F"}, "D")
    _studies(t, {"PatientBirthDate": "19600229"}, "ABCDEF")
    for params in (
        {"SeriesDescription": "Axial"},
        {"SeriesDate": "20240115"},
        {"BodyPartExamined": "HEAD"},
        {"ManufacturerModelName": f"Model {run}"},
    ):
        t.finds(f"{a.study_path}/series", params, {"A/1"}, str(params))


@case("QIDO-06")
def names_of_attributes(t: Trial) -> None:
    a, run = t.sample("A/1/1"), t.samples.run
    for name in ("StudyInstanceUID", "0020000D", "0020000d"):
        t.finds("/studies", {name: a.study}, {"A"}, name)
    for name in (
        "RequestAttributesSequence.ScheduledProcedureStepID",
        "00400275.00400009",
        "RequestAttributesSequence.00400009",
        "00400275.ScheduledProcedureStepID",
    ):
        t.finds(f"{a.study_path}/series", {name: f"SP1{run}"}, {"A/1"}, name)
    t.status(t.get("/studies", {"patientid": t.samples.patient_id("A"), "StudyInstanceUID": a.study}), (200, 400))


@case("QIDO-07")
def repeated_keys(t: Trial) -> None:
    for name, other in (("PatientID", "PatientID"), ("PatientID", "00100020"), ("StudyDate", "StudyDate")):
        answer = t.get("/studies", [(name, "20240115"), (other, "20240116")])
        t.status(answer, 400, f"{name} and {other} are the same key twice")


@case("QIDO-08")
def percent_encoding(t: Trial) -> None:
    a, family = t.sample("A/1/1"), t.samples.family()
    t.finds("/studies", f"PatientName={family}%5EJ%C3%B6rg&StudyInstanceUID={a.study}", {"A"}, "UTF-8")
    text = f"Head+100%25+_{t.samples.run}"
    t.finds("/studies", f"StudyDescription={text}&PatientID={t.samples.patient_id('A')}", {"A"}, "+ is a space")
    t.finds("/studies", f"PatientName={family}%5EDor%2A&AccessionNumber={t.samples.searched}", {"D"}, "%2A is *")
    t.status(t.get("/studies", f"PatientName=%FF&PatientID={t.samples.patient_id('A')}"), 400, "no UTF-8")


@case("QIDO-09")
def single_values(t: Trial) -> None:
    _all(t)
    run, family = t.samples.run, t.samples.family()
    _studies(t, {"StudyDescription": f"Head 100% _{run}"}, "A")
    _studies(t, {"StudyDescription": f"head 100% _{run}"}, "", "case matters outside names")
    _studies(t, {"StudyDescription": f"Head 100% _{run} "}, "A", "padding does not count")
    _studies(t, {"PatientName": f"{family.upper()}^DORA"}, "D", "names ignore case")
    a = t.sample("A/1/1")
    t.finds(f"{a.series_path}/instances", {"InstanceNumber": "02"}, {"A/1/2"}, "numbers by their meaning")


@case("QIDO-10")
def wildcards(t: Trial) -> None:
    _all(t)
    run, family = t.samples.run, t.samples.family()
    for keys, wanted in (
        ({"PatientName": f"{family}^D*"}, "D"),
        ({"PatientName": f"{family}^Dor?"}, "D"),
        ({"PatientName": f"{family}^Do?"}, ""),
        ({"StudyDescription": f"*100% _{run}"}, "A"),
        ({"StudyDescription": f"Head 10%{run}"}, ""),
        ({"StudyDescription": f"Head 100%__{run}"}, ""),
        ({"ModalitiesInStudy": "S?"}, "A"),
        ({"PatientName": "*"}, "ABCDEF"),
        ({"StudyDate": "*"}, "ABCDEF"),
        ({"PatientID": f"CONF{run}-?"}, "ABCDEF"),
    ):
        _studies(t, keys, wanted)
    for keys in ({"StudyDate": "2024*"}, {"StudyInstanceUID": "2.25*"}):
        answer = t.get("/studies", _mine(t, **keys))
        refused = answer.status == 400 or (answer.status in (200, 204) and not answer.rows())
        t.expect(refused, f"{keys}: dates and UIDs have no wildcards, status {answer.status}", answer)


@case("QIDO-11")
def ranges(t: Trial) -> None:
    _all(t)
    for keys, wanted in (
        ({"StudyDate": "20240115-20240116"}, "ABC"),
        ({"StudyDate": "20240116-"}, "CD"),
        ({"StudyDate": "-20231231"}, "F"),
        ({"StudyDate": "20240117-20240117"}, "D"),
        ({"StudyTime": "10-12"}, "ADF"),
        ({"StudyTime": "1200-"}, "BD"),
        ({"StudyTime": "-0100"}, "C"),
    ):
        _studies(t, keys, wanted)
    for key, text in (
        ("StudyDate", "-"),
        ("StudyDate", "20240102-20240101"),
        ("StudyDate", "2024x"),
        ("StudyTime", "99"),
    ):
        t.status(t.get("/studies", _mine(t, **{key: text})), 400, f"{key}={text}")


@case("QIDO-12")
def combined_date_and_time(t: Trial) -> None:
    _all(t)
    _studies(t, {"StudyDate": "20240115-20240116", "StudyTime": "220000-020000"}, "BC", "one interval")
    _studies(t, {"StudyDate": "20240115-20240117", "StudyTime": "233000-110000"}, "BC", "one interval")
    _studies(t, {"StudyDate": "20240115", "StudyTime": "1000-1100"}, "A", "a date that is no range")


@case("QIDO-13")
def ranges_and_offsets(t: Trial) -> None:
    sample = t.sample("every vr")
    for text, wanted in (
        ("20240115101500.123+0100", {"every vr"}),
        ("20240115-20240116", {"every vr"}),
        ("20240115041500.123-0500", {"every vr"}),
        ("20240115040000-0500-20240115050000-0500", {"every vr"}),
        ("-20240115030000-0500", set()),
    ):
        answer = t.get(f"{sample.series_path}/instances", {"AcquisitionDateTime": text})
        if answer.status == 400 and text == "20240115101500.123+0100":
            raise NotApplicable("AcquisitionDateTime cannot be searched (status 400)")
        if t.status(answer, 200, text):
            t.equal({t.samples.name_of(row) for row in answer.rows()}, wanted, text)


@case("QIDO-14")
def time_zone_of_keys(t: Trial) -> None:
    params = {"StudyInstanceUID": t.sample("B/1/1").study, "TimezoneOffsetFromUTC": "+0100"}
    answer = t.get("/studies", params)
    t.status(answer, 200)
    t.equal({t.samples.name_of(row) for row in answer.rows()}, {"B"}, "it says how to read times; it is no key")


@case("QIDO-15")
def uid_lists(t: Trial) -> None:
    a, b = t.sample("A/1/1"), t.sample("B/1/1")
    t.finds("/studies", f"StudyInstanceUID={a.study},{b.study}", {"A", "B"}, "comma")
    t.finds("/studies", f"StudyInstanceUID={a.study}%2C{b.study}", {"A", "B"}, "%2C")
    t.finds("/studies", f"StudyInstanceUID={a.study}%5C{b.study}", {"A", "B"}, "backslash")
    t.finds("/studies", f"StudyInstanceUID={a.study},{t.samples.nowhere}", {"A"}, "one is unknown")


@case("QIDO-16")
def modalities_in_study(t: Trial) -> None:
    _all(t)
    _studies(t, {"ModalitiesInStudy": "CT"}, "ADEF")
    _studies(t, {"ModalitiesInStudy": "SR"}, "A")
    _studies(t, {"ModalitiesInStudy": "M*"}, "BC", "wildcards")
    _studies(t, {"ModalitiesInStudy": "SR,MR"}, "ABC", "a list is any of them")
    row = t.row("/studies", {"StudyInstanceUID": t.sample("A/1/1").study, "ModalitiesInStudy": "SR"})
    t.equal(set(texts(row, "00080061")), {"CT", "SR"}, "all modalities of the study are answered")


@case("QIDO-17")
def any_value_one_item(t: Trial) -> None:
    a, run = t.sample("A/1/1"), t.samples.run
    path = f"{a.study_path}/series"
    step, procedure = "00400275.00400009", "00400275.00401001"
    t.finds(path, {step: f"SP1{run}", procedure: f"RP1{run}"}, {"A/1"}, "both in one item")
    t.finds(path, {step: f"SP1{run}", procedure: f"RP2{run}"}, set(), "each in another item")
    every = t.sample("ct")
    answer = t.get(f"{every.series_path}/instances", {"ImageType": "AXIAL"})
    if answer.status == 200:
        t.equal({t.samples.name_of(row) for row in answer.rows()}, {"ct"}, "any of several values")


@case("QIDO-18")
def component_groups(t: Trial) -> None:
    _all(t)
    family = t.samples.family()
    for text, wanted in (
        ("山田^太郎", "F"),
        ("やまだ^たろう", "F"),
        (f"{family}^山", "F"),
        (f"{family}^山=山田^太郎=やまだ^たろう", "F"),
        (f"{family}^Dora^^", "D"),
        ("山田*", "F"),
    ):
        _studies(t, {"PatientName": text}, wanted)


@case("QIDO-19")
def fuzzy(t: Trial) -> None:
    _all(t)
    family = t.samples.family()
    answer = t.get("/studies", _mine(t, PatientName=f"jorg {family}", fuzzymatching="true"))
    t.status(answer, 200)
    if "299" in answer.headers.get("warning", "") and "fuzzymatching" in answer.headers.get("warning", ""):
        _studies(t, {"PatientName": f"{family}^Dora", "fuzzymatching": "true"}, "D", "literally")
        return
    found = {t.samples.name_of(row) for row in answer.rows()}
    t.expect({"A", "C"} <= found, f"jorg found {found}, expected A (Jörg) and C (JORG) among them; or Warning 299")
    _studies(t, {"PatientName": f"{family}^Dora", "fuzzymatching": "true"}, "D", "literal matches stay")
    for text in ("yes", "TRUE", "1"):
        t.status(t.get("/studies", _mine(t, fuzzymatching=text)), 400, f"fuzzymatching={text}")


@case("QIDO-20")
def included_fields(t: Trial) -> None:
    a = t.sample("A/1/1")
    one = f"StudyInstanceUID={a.study}"
    for params in (
        f"{one}&includefield=StudyDescription",
        f"{one}&includefield=00081030",
        f"{one}&includefield=00081030,00100010",
        f"{one}&includefield=00100010%2C00081030",
        f"{one}&includefield=00100010&includefield=StudyDescription",
        f"{one}&includefield=all",
        f"{one}&includefield=all,00100010",
    ):
        row = t.row("/studies", params)
        t.expect(texts(row, "00081030"), f"{params}: no StudyDescription")
    row = t.row(f"{a.study_path}/series", "Modality=CT&includefield=00400275")
    t.expect("00400009" in (value(row, "00400275") or {}), "a sequence named without a path is answered whole")


@case("QIDO-21")
def fields_of_other_levels(t: Trial) -> None:
    a = t.sample("A/1/1")
    row = t.row("/studies", {"StudyInstanceUID": a.study, "includefield": "00080060,0020000E,Unheard,0020013"})
    t.expect(not {"00080060", "0020000E"} & row.keys(), "attributes of lower levels are answered")
    for row in t.rows(f"{a.study_path}/series", {"includefield": "PatientName,StudyDescription"}):
        t.expect({"00100010", "00081030"} <= row.keys(), "attributes of higher levels are missing")
    _absent(t, row)


def _absent(t: Trial, row: dict[str, Any]) -> None:
    t.expect("00080018" not in row, "a series has a SOP Instance UID")


@case("QIDO-22")
def private_keys(t: Trial) -> None:
    sample, run = t.sample("F/2/1"), t.samples.run
    path = f"{sample.series_path}/instances"
    alone = t.get(path, {"00991001": f"PRIV{run}"})
    t.status(alone, 400, "a private key without its creator")
    answer = t.get(path, {"00990010": "CONFORMANCE TEST", "00991001": f"PRIV{run}"})
    if answer.status == 400:
        raise NotApplicable("private attributes cannot be searched (status 400)")
    if t.status(answer, 200, "a private key with its creator"):
        t.equal({t.samples.name_of(row) for row in answer.rows()}, {"F/2/1"}, "found")
        t.expect(all("00990010" in row for row in answer.rows()), "the creator is not answered")
    other = t.get(path, {"00990010": "CONFORMANCE TEST", "00991001": "other"})
    t.expect(other.status != 200 or not other.rows(), "another value is found")


@case("QIDO-23")
def unknown_parameters(t: Trial) -> None:
    a = t.sample("A/1/1")
    for name in ("PatientNam", "0010ffff", "UnheardOf", "Modality.PatientID"):
        t.status(t.get("/studies", {"StudyInstanceUID": a.study, name: "x"}), 400, f"{name} is no attribute")
    t.finds("/studies", {"StudyInstanceUID": a.study, "unheard": "of"}, {"A"}, "another lower-case parameter")
    t.finds("/studies", {"StudyInstanceUID": a.study, "fuzzyMatching": "false", "includeField": "all"}, {"A"})


@case("QIDO-24")
def empty_keys(t: Trial) -> None:
    _all(t)
    _studies(t, {"StudyDescription": "", "StudyDate": ""}, "ABCDEF", "universal")
    row = t.row("/studies", {"StudyInstanceUID": t.sample("A/1/1").study, "StudyDescription": ""})
    t.expect(texts(row, "00081030"), "an empty key is not answered")


@case("QIDO-25")
def limits(t: Trial) -> None:
    _all(t)
    for name in ("limit", "offset"):
        for text in ("-1", "x", "1.5", ""):
            t.status(t.get("/studies", _mine(t, **{name: text})), 400, f"{name}={text}")
    t.finds_nothing("/studies", _mine(t, limit="0"), "limit=0")
    t.equal(len(t.rows("/studies", _mine(t, limit="2"))), 2, "limit=2")
    t.expect(len(t.rows("/studies", _mine(t, limit="1000000"))) >= 6, "a limit beyond the server's")
    t.finds_nothing("/studies", _mine(t, offset="100000"), "an offset behind the end")


@case("QIDO-26")
def pages(t: Trial) -> None:
    _all(t)
    whole = [value(row, "0020000D") for row in t.rows("/studies", _mine(t))]
    paged: list[Any] = []
    for offset in range(0, len(whole), 4):
        paged += [value(row, "0020000D") for row in t.rows("/studies", _mine(t, limit="4", offset=str(offset)))]
    t.equal(paged, whole, "pages of four, one after the other")
    t.equal(len(set(whole)), len(whole), "each study once")


@case("QIDO-27")
def more_is_left(t: Trial) -> None:
    _all(t)
    count = len(t.rows("/studies", _mine(t)))
    answer = t.get("/studies", _mine(t, limit="2"))
    warning = answer.headers.get("warning", "")
    wanted = f"There are {count - 2} additional results that can be requested"
    t.expect(warning.startswith("299 ") and wanted in warning, f"Warning {warning!r}, expected 299 … {wanted!r}")
    last = t.get("/studies", _mine(t, limit="2", offset=str(count - 2)))
    t.expect("additional results" not in last.headers.get("warning", ""), "the last page has the warning", last)


@case("QIDO-28")
def nothing_found(t: Trial) -> None:
    for path, params in (
        ("/studies", {"PatientID": t.samples.patient_id("nobody")}),
        (f"/studies/{t.samples.nowhere}/series", {}),
        (f"{t.sample('A/1/1').series_path}/instances", {"InstanceNumber": "99"}),
    ):
        answer = t.get(path, params)
        if path.endswith("/series") and answer.status == 404:
            continue
        if t.status(answer, (200, 204), "no matches"):
            empty = not answer.body if answer.status == 204 else answer.json() == []
            t.expect(empty, f"status {answer.status} with a body that is not that of nothing found")


@case("QIDO-29")
def bad_requests(t: Trial) -> None:
    for params in ("StudyDate=tomorrow", "limit=many", "fuzzymatching=perhaps"):
        t.status(t.get("/studies", params), 400, params)


@case("QIDO-30")
def counts_and_urls(t: Trial) -> None:
    a = t.sample("A/1/1")
    study = t.row("/studies", {"StudyInstanceUID": a.study})
    series = t.row(f"{a.study_path}/series", {"SeriesInstanceUID": a.series})
    instance = t.row(f"{a.series_path}/instances", {"SOPInstanceUID": a.sop})
    t.equal([value(study, "00201206"), value(study, "00201208")], [2, 4], "series and instances of the study")
    t.equal(value(series, "00201209"), 3, "instances of the series")
    for row, path in ((study, a.study_path), (series, a.series_path), (instance, a.path)):
        url = str(value(row, "00081190"))
        t.expect(url.startswith("http") and url.endswith(path), f"RetrieveURL {url} is not that of {path}")
        t.equal(row.get("00081190", {}).get("vr"), "UR", "VR of RetrieveURL")
        availability = value(row, "00080056")
        t.expect(availability in (None, "ONLINE", "NEARLINE", "OFFLINE", "UNAVAILABLE"), f"availability {availability}")


@case("QIDO-31")
def uids_of_the_levels_above(t: Trial) -> None:
    a = t.sample("A/1/1")
    for resource, tags in (
        (f"{a.study_path}/series", {"0020000D", "0020000E"}),
        (f"{a.series_path}/instances", {"0020000D", "0020000E", "00080018"}),
    ):
        for row in t.rows(resource):
            t.expect(tags <= row.keys(), f"{resource}: {sorted(tags - row.keys())} are missing")


@case("QIDO-32")
def empty_value_matching(t: Trial) -> None:
    _all(t)
    answer = t.get("/studies", _mine(t, emptyvaluematching="true", StudyDate='""'))
    if answer.status == 400:
        raise NotApplicable("emptyvaluematching is not known here (status 400)")
    found = {t.samples.name_of(row) for row in answer.rows()}
    if found in ({*"ABCDEF"}, set()):
        raise NotApplicable("emptyvaluematching has no effect here")
    t.equal(found, {"E"}, "studies without a date")


@case("QIDO-33")
def what_is_always_answered(t: Trial) -> None:
    a = t.sample("A/1/1")
    for resource, params, wanted in (
        ("/studies", {"StudyInstanceUID": a.study}, _STUDY),
        (f"{a.study_path}/series", {"SeriesInstanceUID": a.series}, _SERIES),
        (f"{a.series_path}/instances", {"SOPInstanceUID": a.sop}, _INSTANCE),
        ("/series", {"SeriesInstanceUID": a.series}, _SERIES | _STUDY),
        ("/instances", {"SOPInstanceUID": a.sop}, _INSTANCE | _SERIES | _STUDY),
    ):
        row = t.row(resource, params)
        t.expect(wanted <= row.keys(), f"{resource}: {sorted(wanted - row.keys())} are missing")
    empty = t.row("/studies", {"StudyInstanceUID": t.sample("E/1/1").study})
    t.expect({"00100010", "00080020"} <= empty.keys(), "attributes without a value are missing")
