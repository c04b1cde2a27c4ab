"""What the gateway claims, and its DICOM Conformance Statement in the form of PS3.2."""

import textwrap
import tomllib
from collections.abc import Iterable
from importlib import resources
from typing import Any

import pynetdicom  # noqa: F401  it gives names to UIDs that pydicom does not know yet
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import UID

from .report import section
from .suite import Requirement, requirements


def statement() -> dict[str, Any]:
    """statement.toml."""
    return tomllib.loads(resources.files(__package__).joinpath("statement.toml").read_text("utf-8"))


def is_claimed(claim: str | dict[str, str]) -> bool:
    """Whether the entry of a requirement says that it is met."""
    return claim == "yes"


def claimed() -> set[str]:
    """The requirements that the gateway says it meets."""
    return {name for name, claim in statement()["claims"].items() if is_claimed(claim)}


def as_markdown() -> str:
    """The page docs/conformance-statement.md."""
    return "\n".join(_lines(statement())) + "\n"


def not_met() -> list[str]:
    """A table of what is planned or declined."""
    rows = []
    for name, claim in statement()["claims"].items():
        if not is_claimed(claim):
            rows += [(name, kind, why) for kind, why in claim.items()]
    return [*_table(("requirement", "", "why"), rows)][:-1]


def _lines(told: dict[str, Any]) -> Iterable[str]:
    yield "# DICOM Conformance Statement"
    yield ""
    yield "<!-- written by docs/generate.py (make docs) from conformance/statement.toml -->"
    yield ""
    yield f"## 1 Overview: {told['implementation']['name']}"
    yield ""
    yield told["implementation"]["purpose"].strip()
    yield ""
    yield from _table(
        ("network service", "user (SCU)", "provider (SCP)"),
        [(one["name"], "no", "yes" if one["role"] == "SCP" else "no") for one in told["service"]],
    )
    yield from _table(
        ("web service", "user agent", "origin server"),
        [(name, "no", "yes") for name in ("STOW-RS: store", "QIDO-RS: search", "WADO-RS: retrieve")],
    )
    yield "There are no media services. How each claim is judged: [conformance.md](conformance.md)."
    yield ""
    yield "## 2 Introduction"
    yield ""
    yield from _paragraph(
        "For those who connect a modality, a viewer or an archive. What two systems claim says whether they can "
        "understand each other; whether they do is to be tried. References are to the 2025 edition of DICOM."
    )
    yield "## 3 Implementation model"
    yield ""
    yield from _paragraph(
        "One application entity stores and searches; its title is `dimse.aet` of the [settings](settings.md). "
        "Instances that arrive by C-STORE or STOW-RS take the same way into the same image sets, and both kinds of "
        "searches read the same index. Pixels are kept losslessly as HTJ2K or as they came; headers are kept as they "
        "came."
    )
    yield from _dimse(told)
    yield from _web(told)
    yield "## 6 Character sets"
    yield ""
    terms = ", ".join(f"`{term}`" for term in told["character_sets"]["terms"])
    yield from _paragraph(
        f"Read and matched: {terms}. Answers over HTTP are UTF-8; answers over DIMSE are in the character set of the "
        "request where it can hold them, else in UTF-8. Text in an unknown character set is shown with replacement "
        "characters and kept as it came."
    )
    yield "## 7 Security"
    yield ""
    yield from _paragraph(
        "HTTP: bearer tokens, HTTP Basic, Signature Version 4; TLS. DIMSE: calling titles and addresses by a table of "
        "peers; no TLS. Neither logs nor errors hold patients' data. See [operations.md](operations.md)."
    )
    yield "## 8 Every requirement, and what is claimed"
    yield ""
    yield "Identifiers are those of the conformance suite."
    yield ""
    yield from _claims(told)


def _dimse(told: dict[str, Any]) -> Iterable[str]:
    association, syntaxes = told["association"], told["syntaxes"]
    yield "## 4 DIMSE"
    yield ""
    yield "### 4.1 Associations"
    yield ""
    yield from _table(
        ("property", "value"),
        [
            ("application context", "`1.2.840.10008.3.1.1.1`"),
            ("initiates associations", "no"),
            ("maximum PDU announced", f"{association['maximum_pdu']} bytes"),
            ("associations at a time", f"{association['associations']}, then rejected as transient"),
            ("asynchronous operations", association["asynchronous"]),
            ("time-outs", association["silence"]),
            ("extended negotiation of queries", association["extended"]),
        ],
    )
    yield "### 4.2 Presentation contexts accepted"
    yield ""
    yield from _table(
        ("SOP class", "UID", "transfer syntaxes", "role"),
        [(one["name"], f"`{one['sop_class']}`", f"{one['syntaxes']} (below)", one["role"]) for one in told["service"]],
    )
    for kind in ("message", "storage"):
        yield f"Transfer syntaxes of the kind *{kind}*, the preferred one first:"
        yield ""
        rows = [(UID(uid).name if UID(uid).name != uid else "", f"`{uid}`") for uid in syntaxes[kind]]
        yield from _table(("transfer syntax", "UID"), rows)
    for number, (name, kind) in enumerate((("C-STORE", "store"), ("C-FIND", "find")), start=3):
        yield f"### 4.{number} Statuses of {name}"
        yield ""
        yield from _table(("status", "meaning"), [(f"`{code}`", text) for code, text in told["statuses"][kind]])


def _web(told: dict[str, Any]) -> Iterable[str]:
    yield "## 5 DICOMweb"
    yield ""
    yield "The base is `/dicomweb`, or `/datastore/{id}` for a data store."
    yield ""
    for number, (name, kind, statuses) in enumerate(
        (
            ("Store (STOW-RS)", "store", "stow"),
            ("Search (QIDO-RS)", "search", "qido"),
            ("Retrieve (WADO-RS)", "retrieve", "wado"),
            ("Rendered (WADO-RS)", "rendered", "rendered"),
        ),
        start=1,
    ):
        yield f"### 5.{number} {name}"
        yield ""
        yield from (f"- `{one}`" for one in told["resources"][kind])
        yield ""
        yield from _table(("status", "meaning"), [(code, text) for code, text in told["statuses"][statuses]])
        if kind == "search":
            yield "Matching, also of C-FIND:"
            yield ""
            yield from _table(("kind", "how"), told["matching"].items())
            yield "Keys, by level:"
            yield ""
            yield from _table(
                ("level", "attribute", "tag", "VR"), [row for level in told["keys"] for row in _keys(told, level)]
            )


def _keys(told: dict[str, Any], level: str) -> Iterable[tuple[str, ...]]:
    for keyword in told["keys"][level]:
        tag = tag_for_keyword(keyword)
        assert tag is not None, keyword
        yield level, keyword, f"({tag >> 16:04X},{tag & 0xFFFF:04X})", dictionary_VR(tag)


def _claims(told: dict[str, Any]) -> Iterable[str]:
    known: dict[str, list[Requirement]] = {}
    for requirement in requirements().values():
        known.setdefault(section(requirement.id), []).append(requirement)
    for name, listed in known.items():
        yield f"### {name}"
        yield ""
        rows = []
        for requirement in listed:
            claim = told["claims"][requirement.id]
            met = "yes" if is_claimed(claim) else "; ".join(f"{kind}: {why}" for kind, why in claim.items())
            if requirement.id in told["unseen"]:
                met += " (not judged by the suite)"
            rows.append((requirement.id, requirement.level, requirement.text, met))
        yield from _table(("id", "level", "requirement", "claimed"), rows)


def _paragraph(text: str) -> Iterable[str]:
    yield from textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)
    yield ""


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterable[str]:
    names = [*head]
    yield "| " + " | ".join(names) + " |"
    yield "| " + " | ".join("---" for _ in names) + " |"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""
