"""What tests share: components that a machine may lack, databases of their own, and running gateways."""

import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import psycopg
import pytest

from tests.corpus import CORPUS
from tests.databases import POSTGRES, create_database, drop_database, libpq
from tests.running import DATABASE, RunningGateway

REQUIRE_ALL = os.environ.get("REQUIRE") == "all"

# Programs of the same names (storescu, findscu) come with pynetdicom: those of Python environments are not meant.
_PATH = os.pathsep.join(
    [part for part in os.get_exec_path() if not (Path(part).parent / "pyvenv.cfg").exists()]
    + ["/usr/sbin", "/usr/local/sbin"]
)

OHIF = Path(__file__).parent / "viewers" / "ohif-3.13.2" / "dist"
PLAYWRIGHT = Path(__file__).parent / "javascript" / "node_modules"


def tool(*names: str) -> str | None:
    """Where the first of these programs is, outside Python's environments."""
    return next((found for name in names if (found := shutil.which(name, path=_PATH))), None)


def _dcmtk() -> bool:
    storescu = tool("storescu")
    if storescu is None or tool("findscu") is None or tool("echoscu") is None:
        return False
    said = subprocess.run([storescu, "--version"], capture_output=True, text=True, timeout=20)
    return "dcmtk" in said.stdout.lower()


def _postgres() -> bool:
    try:
        with psycopg.connect(libpq(POSTGRES), connect_timeout=3):
            return True
    except psycopg.OperationalError:
        return False


COMPONENTS: dict[str, tuple[str, Callable[[], bool]]] = {
    "postgres": ("PostgreSQL (GATEWAY_TEST_POSTGRES)", _postgres),
    "pg_dump": ("pg_dump", lambda: tool("pg_dump") is not None),
    "dcmtk": ("DCMTK (storescu, findscu, echoscu)", _dcmtk),
    "dciodvfy": ("dciodvfy (dicom3tools)", lambda: tool("dciodvfy") is not None),
    "orthanc": ("Orthanc", lambda: tool("Orthanc") is not None),
    "curl": ("curl", lambda: tool("curl") is not None),
    "node": ("Node.js", lambda: tool("node", "nodejs") is not None),
    "npm": ("npm, with Node.js", lambda: tool("npm") is not None and tool("node", "nodejs") is not None),
    "chromium": ("Chromium", lambda: tool("chromium", "chromium-browser", "google-chrome") is not None),
    "ohif": (
        "OHIF and playwright-core (npm)",
        lambda: OHIF.is_dir() and (PLAYWRIGHT / "playwright-core").is_dir(),
    ),
    "corpus": ("the corpus of DICOM files (GATEWAY_TEST_DATA)", lambda: CORPUS is not None),
}

@functools.cache
def is_here(component: str) -> bool:
    """Whether this machine has a component."""
    return COMPONENTS[component][1]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for component in mark.args:
            require(component)


def require(component: str) -> None:
    """Skips the running test where a component is missing; fails it under REQUIRE=all."""
    if not is_here(component):
        missing(COMPONENTS[component][0])


def missing(name: str) -> NoReturn:
    """Ends the running test for want of this: skipped, or failed under REQUIRE=all."""
    if REQUIRE_ALL:
        pytest.fail(f"{name} is missing (REQUIRE=all)", pytrace=False)
    pytest.skip(f"{name} is missing")


def pytest_sessionstart() -> None:
    if DATABASE == "postgresql" and not is_here("postgres"):
        pytest.exit("GATEWAY_TEST_DATABASE=postgresql: no PostgreSQL answers at GATEWAY_TEST_POSTGRES", 2)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if REQUIRE_ALL and not all(map(is_here, COMPONENTS)) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    missing = [component for component in COMPONENTS if not is_here(component)]
    if not missing:
        return
    terminalreporter.section("missing components")
    # From the reports, which also come from other processes when tests run side by side.
    reports = [report for kind in ("skipped", "failed") for report in terminalreporter.stats.get(kind, ())]
    for component in missing:
        words = f"{COMPONENTS[component][0]} is missing"
        tests = [report.nodeid for report in reports if words in str(report.longrepr)]
        files = sorted({test.partition("::")[0] for test in tests})
        what = f"{len(tests)} tests of {', '.join(files)}" if tests else "nothing"
        verb = "failed" if REQUIRE_ALL else "skipped"
        terminalreporter.write_line(f"missing: {COMPONENTS[component][0]}; {verb} for it: {what}")


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """The SQLAlchemy URL of a fresh, empty PostgreSQL database, dropped afterwards."""
    require("postgres")
    url = create_database()
    try:
        yield url
    finally:
        drop_database(url)


@pytest.fixture(scope="session")
def npm_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose node_modules has what tests use from npm: that of `make system`, or a new one."""
    from tests import node  # which builds upon this module

    return node.packages(tmp_path_factory.mktemp("npm"))


@pytest.fixture
def start_gateway(tmp_path: Path) -> Iterator[Callable[..., RunningGateway]]:
    """Starts gateways, `start_gateway(*flags, env={...})`, each on free ports and an empty folder; ends them all."""
    running: list[RunningGateway] = []

    def start(*flags: str, **options: Any) -> RunningGateway:
        started = RunningGateway(tmp_path / f"data{len(running) + 1}", *flags, **options)
        running.append(started)
        return started

    yield start
    for one in running:
        one.close()


@pytest.fixture
def gateway(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    """A running gateway with the default settings."""
    return start_gateway()
