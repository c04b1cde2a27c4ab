"""The steps of the Dockerfile, without an engine: a wheel, a clean environment, the entry point, the health check."""

import json
import re
import shlex
import subprocess
import sys
import sysconfig
import urllib.parse
import venv
import zipfile
from pathlib import Path

import pytest

from tests.running import ROOT, environment

DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as the image builds it, from the files that .dockerignore lets through."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            subprocess.run(["cp", "-r", str(ROOT / line[1:]), str(source)], check=True)
    step = re.search(r"^RUN (python -m pip wheel .*)$", DOCKERFILE, re.MULTILINE)
    assert step is not None
    arguments = shlex.split(step[1].replace("/wheels", str(out)))[1:]
    done = subprocess.run([sys.executable, *arguments], cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment with the wheel, and our own installed dependencies beside it."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def test_the_wheel_has_everything_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"gateway", "adapters", "conformance"}
    assert any(re.fullmatch(r"adapters/sql/migrations/versions/\w+\.py", name) for name in names)
    assert "adapters/sql/migrations/env.py" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]


def test_the_installation_serves_and_its_health_check_agrees(clean: Path, tmp_path: Path) -> None:
    entry = re.search(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
    role = re.search(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)
    check = re.search(r"^HEALTHCHECK .* CMD (.*)$", DOCKERFILE, re.MULTILINE)
    assert entry is not None
    assert role is not None
    assert check is not None
    (command,) = json.loads(entry[1])
    env = environment(GATEWAY_DATA=str(tmp_path / "data"))
    del env["PYTHONPATH"]
    where = ["--http", "127.0.0.1:0", "--dimse", "127.0.0.1:0"]
    log = tmp_path / "log"
    (tmp_path / "gateway").mkdir()  # a folder of that name is not taken for the package
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [clean / command, *json.loads(role[1]), *where],
            cwd=tmp_path,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as server,
    ):
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line, log.read_text()
            url = json.loads(line)["http"]
            health = [part.replace("http://127.0.0.1:8080", url) for part in json.loads(check[1])]
            health[0] = str(clean / health[0])
            assert subprocess.run(health, timeout=30).returncode == 0
            ask = [clean / "python", "-c", "import gateway; print(gateway.__file__)"]
            found = subprocess.run(ask, cwd=tmp_path, env=env, capture_output=True, text=True).stdout
            assert Path(found.strip()).is_relative_to(clean.parent)
        finally:
            server.terminate()
            assert server.wait(20) == 0
    dead = subprocess.run(health, capture_output=True, timeout=30)
    assert dead.returncode != 0
    assert urllib.parse.urlsplit(url).hostname == "127.0.0.1"


def test_a_container_without_credentials_says_what_to_add(clean: Path, tmp_path: Path) -> None:
    settings = dict(re.findall(r"(GATEWAY_\w+)=(\S+)", DOCKERFILE))
    env = environment(**settings, HOME=str(tmp_path))
    del env["PYTHONPATH"]
    env["GATEWAY_DATA"] = str(tmp_path / "data")
    done = subprocess.run([clean / "imageset-gateway", "serve"], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, "[auth]" in done.stderr) == (2, True)


def test_locks_have_hashes_and_no_address() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text()
        pins = re.findall(r"^[A-Za-z0-9._-]+(?:\[.*\])?==\S+(?: ;.*)? \\$", text, re.MULTILINE)
        starts = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
        assert len(pins) == len(starts) > 20, name
        assert "://" not in text
        assert "--index-url" not in text
