"""What came of a run: HTML for people, JSON and JUnit XML for programs, and one paragraph of text."""

import json
import time
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, Final
from xml.etree import ElementTree

from .running import Report, Result
from .suite import Verdict

_BASES: Final[Mapping[str, str]] = {
    "standard": "what DICOM says",
    "practice": "what deployed clients and devices need",
    "choice": "choices of this project",
}
_SECTIONS: Final = {
    "ROOT": "Resources", "CAP": "Capabilities", "URI": "WADO-URI", "NEG": "Content negotiation",
    "TS": "Transfer syntaxes", "JSON": "DICOM JSON", "XML": "Native DICOM XML", "MP": "Multipart",
    "WADO": "Retrieve", "BULK": "Bulk data", "CACHE": "Caching", "COMP": "Compression", "QIDO": "Search",
    "STOW": "Store", "REND": "Rendered", "THUMB": "Thumbnails", "ERR": "Errors", "CORS": "Browsers",
    "DEL": "Delete and reject", "HI": "HealthImaging's shape", "CL": "Clients", "NET": "Associations",
    "AET": "AE titles", "SEC": "Security", "PC": "Presentation contexts", "CECHO": "C-ECHO", "CSTORE": "C-STORE",
    "CFIND": "C-FIND", "CMOVE": "C-MOVE", "CGET": "C-GET", "SCMT": "Storage Commitment", "WILD": "Devices",
}  # fmt: skip


def section(name: str) -> str:
    """The heading under which a requirement stands."""
    return _SECTIONS.get(name.partition("-")[0], name.partition("-")[0])


def text(report: Report) -> str:
    """The figures, for a terminal."""
    lines = [
        f"{report.target.url}: {len(report.results)} requirements, {report.count(Verdict.PASS)} passed, "
        f"{report.count(Verdict.FAIL)} failed, {report.count(Verdict.NOT_APPLICABLE)} not applicable"
    ]
    for basis, meaning in _BASES.items():
        judged = report.count(Verdict.PASS, basis) + report.count(Verdict.FAIL, basis)
        lines.append(f"  {meaning}: {report.count(Verdict.PASS, basis)} of {judged}")
    if report.refused:
        lines.append(f"  {len(report.refused)} of the instances sent were not stored: {', '.join(report.refused)}")
    if report.left:
        lines.append(
            f"  {len(report.left)} studies could not be removed (no DELETE): Patient IDs begin with {report.run}"
        )
    return "\n".join(lines)


def as_document(report: Report) -> dict[str, Any]:
    """The report as one JSON document."""
    return {
        "url": report.target.url,
        "aet": report.target.aet,
        "began": _stamp(report.began),
        "seconds": round(report.seconds, 2),
        "run": report.run,
        "conformant": report.is_conformant,
        "counts": {
            verdict.value: {"all": report.count(verdict), **{basis: report.count(verdict, basis) for basis in _BASES}}
            for verdict in Verdict
        },
        "notStored": report.refused,
        "notRemoved": report.left,
        "results": [
            {
                "id": result.requirement.id,
                "level": result.requirement.level,
                "basis": result.requirement.basis,
                "requirement": result.requirement.text,
                "source": result.requirement.source,
                "verdict": result.verdict.value,
                "reason": result.reason,
                "checks": result.checks,
                "seconds": round(result.seconds, 3),
                "faults": [
                    {"text": fault.text, "request": fault.request, "answer": fault.answer} for fault in result.faults
                ],
            }
            for result in report.results
        ],
    }


def as_json(report: Report) -> str:
    return json.dumps(as_document(report), ensure_ascii=False, indent=1) + "\n"


def as_junit(report: Report) -> str:
    """JUnit XML: a suite for each section; a failure of what is no duty is a failure too, and says so."""
    root = ElementTree.Element("testsuites", name=f"DICOM conformance of {report.target.url}")
    for name, results in _by_section(report.results).items():
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=name,
            tests=str(len(results)),
            failures=str(sum(result.verdict is Verdict.FAIL for result in results)),
            skipped=str(sum(result.verdict is Verdict.NOT_APPLICABLE for result in results)),
            errors="0",
            time=f"{sum(result.seconds for result in results):.3f}",
        )
        for result in results:
            requirement = result.requirement
            one = ElementTree.SubElement(
                suite, "testcase", classname=name, name=requirement.id, time=f"{result.seconds:.3f}"
            )
            if result.verdict is Verdict.NOT_APPLICABLE:
                ElementTree.SubElement(one, "skipped", message=_clean(result.reason))
            elif result.verdict is Verdict.FAIL:
                message = f"{requirement.level} ({requirement.basis}): {requirement.text}"
                failure = ElementTree.SubElement(one, "failure", message=_clean(message))
                failure.text = _clean(
                    "\n\n".join(_told(fault.text, fault.request, fault.answer) for fault in result.faults)
                )
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _told(*texts: str) -> str:
    return "\n".join(one for one in texts if one)


def _clean(given: str) -> str:
    """Without the characters that XML 1.0 does not have."""
    return "".join(c for c in given if c in "\t\n" or (ord(c) >= 32 and not 0xD800 <= ord(c) <= 0xDFFF))


def _by_section(results: Iterable[Result]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(section(result.requirement.id), []).append(result)
    return found


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


# ---------------------------------------------------------------- HTML

_STYLE: Final = """
:root{color-scheme:light dark;--line:#8884;--ok:#1a7f37;--bad:#cf222e;--na:#6e7781}
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{margin-top:2.5rem;font-size:1.2rem}
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid var(--line);padding:.35rem .6rem;
text-align:left;vertical-align:top}td.n,th.n{text-align:right}
.pass{color:var(--ok)}.fail{color:var(--bad)}.not{color:var(--na)}
details{margin:.4rem 0}summary{cursor:pointer}pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:12.5px;
background:#8881;padding:.6rem;margin:.3rem 0;border-left:3px solid var(--line)}
.fault{margin:.8rem 0}.source{color:var(--na);font-size:.85em}code{font-size:.9em}
"""


def as_html(report: Report) -> str:
    """One self-contained page: the figures, the failures with their exchanges, then every requirement."""
    failed = [result for result in report.results if result.verdict is Verdict.FAIL]
    duties = [result for result in failed if result.requirement.is_binding]
    others = [result for result in failed if not result.requirement.is_binding]
    host = report.target.url
    title = f"Conformance of {host}"
    verdict = (
        "Every binding requirement that applies is met."
        if report.is_conformant
        else f"{len(duties)} binding requirements are not met."
    )
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>",
        f"<p><strong class={'pass' if report.is_conformant else 'fail'}>{verdict}</strong> "
        f"{escape(_stamp(report.began))}, {report.seconds:.0f} s"
        + (f", DIMSE as {escape(report.target.aet)}" if report.target.aet else ", without DIMSE")
        + ". All data were made for this run.</p>",
        _summary(report),
    ]
    if report.refused:
        listed = "; ".join(f"{name} ({why})" for name, why in report.refused.items())
        parts.append(f"<p>Not stored: {escape(listed)}.</p>")
    if report.left:
        parts.append(
            f"<p>{len(report.left)} studies are still there, for the server has no DELETE: their Patient IDs begin "
            f"with <code>{report.run}</code>.</p>"
        )
    if duties:
        parts.append("<h2>Not met: what binds</h2>" + "".join(map(_failure, duties)))
    if others:
        parts.append("<h2>Different: recommendations and choices</h2>" + "".join(map(_failure, others)))
    parts.append("<h2>Every requirement</h2>")
    for name, results in _by_section(report.results).items():
        parts.append(_section(name, results))
    return "\n".join(parts) + "</html>\n"


def _summary(report: Report) -> str:
    rows = [("all requirements", None), *((meaning, basis) for basis, meaning in _BASES.items())]
    cells = [
        f"<tr><td>{escape(name)}<td class='n pass'>{report.count(Verdict.PASS, basis)}"
        f"<td class='n fail'>{report.count(Verdict.FAIL, basis)}"
        f"<td class='n not'>{report.count(Verdict.NOT_APPLICABLE, basis)}"
        for name, basis in rows
    ]
    return "<table><tr><th>of<th class=n>pass<th class=n>fail<th class=n>not applicable" + "".join(cells) + "</table>"


def _failure(result: Result) -> str:
    requirement = result.requirement
    parts = [
        f"<div class=fault id={requirement.id}><strong class=fail>{requirement.id}</strong> "
        f"{escape(requirement.level)}: {_prose(requirement.text)} "
        f"<span class=source>{escape(requirement.source)}</span>"
    ]
    for fault, following in zip(result.faults, [*result.faults[1:], None], strict=True):
        shown = ""
        if fault.request and (
            following is None or (fault.request, fault.answer) != (following.request, following.answer)
        ):
            shown = (
                f"<details><summary>request and answer</summary><pre>{escape(fault.request)}</pre>"
                f"<pre>{escape(fault.answer)}</pre></details>"
            )
        parts.append(f"<div>{escape(fault.text)}{shown}</div>")
    return "".join(parts) + "</div>"


def _prose(given: str) -> str:
    """Text whose code stands between backquotes."""
    pieces = given.split("`")
    return "".join(f"<code>{escape(one)}</code>" if at % 2 else escape(one) for at, one in enumerate(pieces))


def _section(name: str, results: list[Result]) -> str:
    rows = []
    for result in results:
        requirement = result.requirement
        told = {
            Verdict.PASS: f"<span class=pass>pass</span> <span class=source>{result.checks} checks</span>",
            Verdict.FAIL: f"<a class=fail href=#{requirement.id}>fail</a>",
            Verdict.NOT_APPLICABLE: f"<span class=not>not applicable: {escape(result.reason)}</span>",
        }[result.verdict]
        rows.append(
            f"<tr><td>{requirement.id}<td>{requirement.level} {requirement.basis}"
            f"<td>{_prose(requirement.text)} <span class=source>{escape(requirement.source)}</span><td>{told}"
        )
    counts = ", ".join(
        f"{n} {verdict.value}" for verdict in Verdict if (n := sum(result.verdict is verdict for result in results))
    )
    return f"<details><summary>{escape(name)}: {counts}</summary><table>{''.join(rows)}</table></details>"
