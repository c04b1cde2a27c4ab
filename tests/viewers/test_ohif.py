"""OHIF, unmodified, in Chromium: the study list, and pictures in the viewport that are those of the store."""

import functools
import http.server
import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.conftest import OHIF, PLAYWRIGHT, tool
from tests.corpus import CORPUS
from tests.running import RunningGateway, command

STUDIES = {
    "ct": "series/ct-head-93",
    "mr": "series/mr-t1-24",
    "us": "pydicom/examples_ybr_color.dcm",
    "colour": "pydicom/examples_rgb_color.dcm",
}
RANGES = {
    # Cornerstone3D's own names: a first range of each frame in low resolution, then the rest of it.
    "stages": [{"id": "first", "retrieveType": "singleFast"}, {"id": "rest", "retrieveType": "singleFinal"}],
    "retrieveOptions": {
        "singleFast": {"rangeIndex": 0, "chunkSize": 8000, "decodeLevel": 2},
        "singleFinal": {"rangeIndex": -1},
    },
}


class _Static(http.server.SimpleHTTPRequestHandler):
    """OHIF's files; any other path is the application's own."""

    def send_head(self) -> Any:
        if not Path(self.translate_path(self.path)).is_file():
            self.path = "/index.html"
        return super().send_head()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@dataclass
class Shown:
    """What came of one visit."""

    gateway: RunningGateway
    studies: dict[str, str]
    text: str
    errors: list[str]
    requests: dict[str, list[dict[str, Any]]]
    pictures: Path


def config(root: str, **more: Any) -> str:
    source = {
        "friendlyName": "Imageset Gateway",
        "name": "gateway",
        **dict.fromkeys(("wadoUriRoot", "qidoRoot", "wadoRoot"), root),
        "qidoSupportsIncludeField": True,
        "imageRendering": "wadors",
        "thumbnailRendering": "thumbnail",
        "thumbnailRequestStrategy": "fetch",
        "enableStudyLazyLoad": True,
        "supportsFuzzyMatching": True,
        "supportsWildcard": True,
        "bulkDataURI": {"enabled": True},
        "omitQuotationForMultipartRequest": True,
        **more,
    }
    module = "@ohif/extension-default.dataSourcesModule.dicomweb"
    return "window.config = " + json.dumps(
        {
            "routerBasename": None,
            "extensions": [],
            "modes": [],
            "customizationService": {},
            "investigationalUseDialog": {"option": "never"},
            "showStudyList": True,
            "maxNumberOfWebWorkers": 2,
            "defaultDataSourceName": "gateway",
            "dataSources": [{"namespace": module, "sourceName": "gateway", "configuration": source}],
        }
    )


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    assert CORPUS is not None
    folder = tmp_path_factory.mktemp("ohif")
    files = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Static, directory=str(OHIF)))
    serving = threading.Thread(target=files.serve_forever)
    serving.start()
    base = f"http://127.0.0.1:{files.server_port}"
    gateway = RunningGateway(folder / "data")
    try:
        studies = {}
        for name, place in STUDIES.items():
            sent = command("import", str(CORPUS / place), "--url", gateway.http)
            assert sent.returncode == 0, sent.stderr
            path = CORPUS / place
            one = path if path.is_file() else next(file for file in path.rglob("*") if file.is_file())
            studies[name] = str(pydicom.dcmread(one, stop_before_pixels=True).StudyInstanceUID)
        root = f"{gateway.http}/dicomweb"
        pages = [(name, config(root)) for name in STUDIES]
        pages.append(("mr", config(root, stackRetrieveOptions={"$set": RANGES})))
        visit = {
            "chromium": tool("chromium", "chromium-browser", "google-chrome"),
            "base": base,
            "list": str(folder / "list.png"),
            "pages": [
                {
                    "path": f"/viewer?StudyInstanceUIDs={studies[name]}",
                    "config": text,
                    "picture": str(folder / f"{number}.png"),
                }
                for number, (name, text) in enumerate(pages)
            ],
        }
        done = subprocess.run(
            [tool("node", "nodejs") or "node", str(Path(__file__).with_name("ohif.mjs")), str(PLAYWRIGHT)],
            input=json.dumps(visit),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        names = [*STUDIES, "ranges"]
        for number, name in enumerate(names):
            (folder / f"{number}.png").rename(folder / f"{name}.png")
        requests = {name: page["requests"] for name, page in zip(names, said["pages"], strict=True)}
        yield Shown(gateway, studies, said["text"], said["errors"], requests, folder)
    finally:
        gateway.stop()
        files.shutdown()
        serving.join()
        files.server_close()


def grey(picture: Image.Image) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(picture.convert("L"), np.float64)


def likeness(shown: Shown, name: str, study: str) -> float:
    """The best correlation of what the viewport shows with a picture of the study, fitted into it as OHIF does."""
    seen = Image.open(shown.pictures / f"{name}.png")
    width, height = seen.size
    # The margin holds what OHIF writes and its scroll bar.
    inside = np.s_[height // 8 : -height // 8, width // 8 : -width // 8]
    rows = shown.gateway.get(f"/dicomweb/studies/{study}/instances?includefield=00080018").json()
    best = -1.0
    for row in rows:
        url = f"/dicomweb/studies/{study}/series/{row['0020000E']['Value'][0]}/instances/{row['00080018']['Value'][0]}"
        answer = shown.gateway.get(f"{url}/frames/1/rendered?viewport=512,512", headers={"accept": "image/png"})
        assert answer.status_code == 200, answer.text
        picture = Image.open(BytesIO(answer.content))
        down, across = shown.gateway.get(f"{url}/metadata").json()[0].get("00280030", {"Value": (1, 1)})["Value"]
        wide, high = picture.width * across, picture.height * down
        scale = min(width / wide, height / high)
        fitted = Image.new("L", seen.size)
        size = (round(wide * scale), round(high * scale))
        fitted.paste(picture.convert("L").resize(size), ((width - size[0]) // 2, (height - size[1]) // 2))
        pair = grey(seen)[inside].ravel(), grey(fitted)[inside].ravel()
        best = max(best, float(np.corrcoef(*pair)[0, 1]))
    return best


@pytest.mark.needs("corpus", "chromium", "node", "ohif")
def test_a_visit(shown: Shown) -> None:
    """One test: each worker of a run that is shared among several would pay the visit's price again."""
    for words in ("1-4 of 4", "Jane_Doe", "Austrialian", "CompressedSamples, US1", "PLA"):
        assert words in shown.text
    assert shown.errors == []
    frames = {}
    for name, requests in shown.requests.items():
        assert [asked for asked in requests if asked["status"] not in (200, 206)] == []
        frames[name] = [asked for asked in requests if "/frames/" in asked["url"]]
        assert frames[name]
        assert likeness(shown, name, shown.studies["mr" if name == "ranges" else name]) > 0.97, name

    # HTJ2K straight from the store, without a setting of the viewer's.
    path = frames["ct"][0]["url"][len(shown.gateway.http) :]
    accept = "multipart/related; type=application/octet-stream; transfer-syntax=*"
    stored = shown.gateway.get(path, headers={"accept": accept})
    assert b"transfer-syntax=1.2.840.10008.1.2.4.202" in stored.content[:400]

    # BULK-03: a first range in low resolution, then the rest, of the same representation.
    ranges = {(asked["range"], asked["status"]) for asked in frames["ranges"]}
    assert ("bytes=0-7999", 206) in ranges
    assert any(status == 206 and text and text.endswith("-") for text, status in ranges)
