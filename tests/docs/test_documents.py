"""What the documents say is so: commands run as they are written, and lists are complete."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from pydicom.data import get_testdata_file

from gateway.awsjson import model
from gateway.settings import load
from tests.conftest import tool
from tests.node import program as node
from tests.running import ROOT, RunningGateway, environment

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date(generator: ModuleType) -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == generator.settings_page(), "run make docs"
    statement = (ROOT / "docs" / "conformance-statement.md").read_text()
    assert statement == generator.statement.as_markdown(), "run make docs"
    conformance = (ROOT / "docs" / "conformance.md").read_text()
    assert conformance == generator.conformance_page(conformance), "run make docs"
    operations = (ROOT / "docs" / "operations.md").read_text()
    assert operations == generator.operations_page(operations), "run make docs"
    assert "gateway_http_requests_total" in operations


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_has_the_targets_that_are_named() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"`make ([a-z]+)", page.read_text())) | set(
            re.findall(r"^make ([a-z]+)$", "\n".join(blocks(page, "sh")), re.MULTILINE)
        )
        assert named <= targets, page.name


def test_toml_examples_are_settings(tmp_path: Path) -> None:
    found = 0
    for page in PAGES:
        for number, example in enumerate(blocks(page, "toml")):
            assert tomllib.loads(example)
            config = tmp_path / f"{page.stem}{number}.toml"
            config.write_text(example)
            load(config, environ={})
            found += 1
    assert found


def test_a_test_stands_behind_every_row_of_the_fidelity_table() -> None:
    rows = re.findall(r"^\| (.+?) \| (\w+) \| .* \| `(\S+?)::(\w+)` \|$", page_text("fidelity.md"), re.MULTILINE)
    lines = [line for line in page_text("fidelity.md").splitlines() if line.startswith("| ")]
    assert len(rows) == len(lines) - 2, "a row without a test"
    for what, verdict, file, test in rows:
        assert verdict in ("same", "different", "refused"), what
        assert f"def {test}(" in (ROOT / file).read_text(), what
    told = {name for what, *_ in rows for name in re.findall(r"[A-Z]\w+", what)}
    assert model.load().operations.keys() <= told, "an operation without a row"


def page_text(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


@pytest.mark.needs("dcmtk")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run_as_they_are_written(
    page: Path, request: pytest.FixtureRequest, tmp_path: Path, generator: ModuleType
) -> None:
    """All shell blocks of a page in one shell, each command of which has to succeed, then its Python and JavaScript."""
    script = "\n".join(block for block in blocks(page, "sh") if not block.startswith("make "))
    if not script:
        return
    work = tmp_path / "work"
    gateway: RunningGateway = request.getfixturevalue("start_gateway")("--s3-root", str(work / "buckets"))
    bin_folder = tmp_path / "bin"
    work.mkdir()
    bin_folder.mkdir()
    for name in ("storescu", "findscu", "echoscu"):  # not pynetdicom's, which have the same names
        os.symlink(str(tool(name)), bin_folder / name)
    os.symlink(Path(sys.executable).with_name("aws"), bin_folder / "aws")
    ours = bin_folder / "imageset-gateway"
    ours.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gateway "$@"\n')
    ours.chmod(0o755)
    for name, source in (("ct.dcm", "CT_small.dcm"), ("mr.dcm", "MR_small.dcm")):
        shutil.copy(str(get_testdata_file(source)), work / name)
    port = str(gateway.dimse[1])

    def here(text: str) -> str:
        return re.sub(r"\b11112\b", port, text.replace("http://127.0.0.1:8080", gateway.http))

    env = environment(
        PATH=f"{bin_folder}:{os.environ['PATH']}",
        GATEWAY_CLIENT_URL=gateway.http,
        GATEWAY_HTTP__LISTEN="127.0.0.1:0",
        GATEWAY_DIMSE__LISTEN="127.0.0.1:0",
    )
    shell = ["bash", "-euo", "pipefail", "-c", here(script).replace("curl -s", "curl -sf")]
    done = subprocess.run(shell, cwd=work, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{gateway.log.read_text()[-2000:]}"
    if page.name == "tutorial.md":
        assert "version 2" in done.stdout
        assert "version 3" in done.stdout
        assert "Roe^Jane" in done.stdout
    for example in blocks(page, "python"):
        ran = subprocess.run(
            [sys.executable, "-c", here(example)], cwd=work, env=env, capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == 0, ran.stderr
    for number, example in enumerate(blocks(page, "js")):
        packages: Path = request.getfixturevalue("npm_packages")
        if not number:  # a module finds packages from where it lies
            os.symlink(packages / "node_modules", work / "node_modules")
        module = work / f"example{number}.mjs"
        module.write_text(here(example))
        ran = subprocess.run([node(), str(module)], cwd=work, env=env, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        if page.name == "healthimaging.md":
            assert "UPDATED CT CHEST" in ran.stdout
            assert "ResourceNotFoundException Requested version(s) of ImageSet(s) is not the latest." in ran.stdout
            assert (work / "frame.jph").read_bytes().startswith(b"\xff\x4f")
