"""What the service says of itself: OPTIONS of its base, and /openapi.json (CAP-01, CAP-03)."""

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import orjson
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.dicomweb.routes import ROUTES
from gateway.healthimaging.operations import SERVED
from gateway.http.openapi import description
from tests.surfaces.fakes import DATASTORE, made, surface

WADL = "{http://wadl.dev.java.net/2009/02}"
BASES = ("/dicomweb", "/dicomweb/", f"/datastore/{DATASTORE}/")


def paths_of(node: ElementTree.Element, above: str = "") -> Iterator[tuple[str, str]]:
    for resource in node.findall(f"{WADL}resource"):
        path = f"{above}/{resource.get('path')}"
        for method in resource.findall(f"{WADL}method"):
            yield path, str(method.get("name"))
        yield from paths_of(resource, path)


ALL = {(path, method) for path, methods in ROUTES.items() for method in methods}


@pytest.mark.parametrize("base", BASES)
def test_wadl(base: str) -> None:
    answer = surface().ask("OPTIONS", base)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/vnd.sun.wadl+xml"
    assert "OPTIONS" in answer.headers["allow"]
    root = ElementTree.fromstring(answer.content)
    (described,) = root.findall(f"{WADL}resources")
    assert described.get("base") == f"http://pacs.example:8080{base.rstrip('/')}"
    assert set(paths_of(described)) == ALL
    names = [str(method.get("id")) for method in root.iter(f"{WADL}method")]
    assert len(names) == len(set(names))
    for resource in root.iter(f"{WADL}resource"):
        values = [param.get("name") for param in resource.findall(f"{WADL}param")]
        assert values == re.findall(r"^\{(\w+)\}$", str(resource.get("path")))


def test_json() -> None:
    answer = surface().ask("OPTIONS", "/dicomweb/", headers={"Accept": "application/json"})
    assert answer.headers["content-type"] == "application/json"
    tree = answer.json()["application"]

    def listed(node: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
        for resource in node.get("resource", []):
            path = f"{above}/{resource['@path']}"
            yield from ((path, method["@name"]) for method in resource.get("method", []))
            yield from listed(resource, path)

    assert set(listed(tree["resources"])) == ALL
    for word in ("application/dicom+json", "multipart/related", "PatientName", "fuzzymatching", "UTF-8", "quality"):
        assert word in answer.text


def test_refusals() -> None:
    on = surface()
    assert on.ask("OPTIONS", "/dicomweb", headers={"Accept": "text/html"}).status_code == 406
    assert on.ask("POST", "/dicomweb").status_code == 405
    assert on.ask("OPTIONS", "/dicomweb/studies").headers["allow"] == "GET, POST, HEAD, OPTIONS"
    assert on.ask("GET", "/dicomweb").status_code == 404
    assert on.ask("OPTIONS", "/dicomweb//studies").status_code == 404


def test_openapi() -> None:
    """All faces: DICOMweb below two bases, the rest below the root."""
    document = orjson.loads(description(DATASTORE))
    OpenAPIV31SpecValidator(document).validate()
    assert [server["url"] for server in document["servers"]] == ["/dicomweb", "/datastore/{datastoreId}"]
    told: dict[str, set[tuple[str, str]]] = {}
    names = []
    for path, item in document["paths"].items():
        for name in item.keys() - {"parameters", "servers"}:
            told.setdefault(" ".join(one["url"] for one in item.get("servers", ())), set()).add((path, name.upper()))
            names.append(item[name]["operationId"])
            given = [one.get("name") for one in (*item.get("parameters", ()), *item[name].get("parameters", ()))]
            assert set(re.findall(r"{(\w+)}", path)) <= set(given), path
    assert told.pop("") == ALL
    assert told.pop("/ /datastore/{datastoreId}") == {("/changes", "GET")}
    assert told.pop("/") > {("/readyz", "GET"), ("/quarantine/{id}", "POST"), ("/tags/{resourceArn}", "DELETE")}
    assert not told
    assert len(names) == len(set(names))
    assert set(SERVED) < set(names)


def test_what_openapi_tells_is_what_is_answered() -> None:
    """Every GET without values in its path gives a media type that it tells."""
    on = surface([made(1)])
    document = orjson.loads(description(DATASTORE))
    paths = {path: item for path, item in document["paths"].items() if "servers" not in item}
    for path in ("/studies", "/series", "/instances", "/conflicts"):
        told = paths[path]["get"]["responses"]["200"]["content"]
        assert on.get(f"/dicomweb{path}").headers["content-type"] in told
    values = {"study": "1.2.3", "series": "1.2.3.4", "sop": "1.2.3.4.1", "frames": "1", "path": "7FE00010"}
    for path, item in paths.items():
        if "{" in path and "get" in item:
            answer = on.get("/dicomweb" + path.format(**values))
            assert answer.status_code == 200, path
            kind = re.sub(r"; boundary=.*", "", answer.headers["content-type"])
            assert kind in item["get"]["responses"]["200"]["content"], path
