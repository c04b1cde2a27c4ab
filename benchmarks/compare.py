"""Our gateway beside Orthanc in one run, cell by cell, against the budgets.

    python -m benchmarks.compare [--quick] [--reps 3] [--only REGEX] [--suites LIST] [--studies N] [--from JSON ...]
    python -m benchmarks.compare --series [--quick] [--reps 3] [--from JSON ...]

Prints the tables of `docs/performance.md`; a run of everything (no `--quick`, no `--only`, all suites, 1,000 studies)
also writes them there, `--write` any. `--series` measures how one series of 500 CT is read and nothing else (metadata,
frames, rendered images, thumbnails, all of it as DICOM, its instances by QIDO-RS), and has tables of its own there.
`--from` takes the JSON of earlier runs instead of measuring. Both start on empty folders and free ports. Exit codes:
0 measured, 1 a cell of ours failed or is below Orthanc's, 2 something is missing.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from demo.gateway import ROOT

from .harness import CACHE, HARNESS, Missing, free_port

OURS: Final = "gateway"
ORTHANC: Final = "orthanc"
STORESCP: Final = "dcmtk-storescp"
PAGE: Final = ROOT / "docs" / "performance.md"
ALL: Final = ("<!-- figures: written by benchmarks.compare -->", "<!-- end of figures -->")
SERIES: Final = ("<!-- a series: written by benchmarks.compare --series -->", "<!-- end of a series -->")
"""What the tables stand between."""
SUITES: Final = "ingest,search,find,wado"
OF_SERIES: Final = r"^(metadata|frame|series|rendered|thumbnail|qido\.instances_of_series500)\."
_RATES: Final = ("inst_per_s", "req_per_s", "mb_per_s")
_HEADLINES: Final = ("inst_per_s", "req_per_s", "wall_s")

Figures = Mapping[str, Any]
Results = Mapping[str, Mapping[str, Figures]]
"""Target -> cell -> figure -> median of the repetitions."""


def targets(scratch: Path) -> dict[str, dict[str, Any]]:
    """The servers as the harness wants them told, on ports that are free now."""
    http, dimse = free_port(), free_port()
    peer = ["{python}", "{here}/peers.py"]
    orthanc_http, orthanc_dimse, storescp = free_port(), free_port(), free_port()
    ours = [sys.executable, "-m", "gateway", "serve", "--data", str(scratch / "gateway")]
    return {
        OURS: {
            "dicomweb": f"http://127.0.0.1:{http}/dicomweb",
            "ae": {"title": "GATEWAY", "host": "127.0.0.1", "port": dimse},
            "start": [*ours, "--http", f"127.0.0.1:{http}", "--dimse", f"127.0.0.1:{dimse}"],
            "env": {"PYTHONPATH": str(ROOT)},
        },
        ORTHANC: {
            "dicomweb": f"http://127.0.0.1:{orthanc_http}/dicom-web",
            "ae": {"title": "ORTHANC", "host": "127.0.0.1", "port": orthanc_dimse},
            "start": [
                *(*peer, "orthanc", "--data", str(scratch / "orthanc")),
                *("--http", str(orthanc_http), "--dicom", str(orthanc_dimse)),
            ],
            "env": {"TCP_NODELAY": "1"},
        },
        STORESCP: {
            "dicomweb": None,
            "ae": {"title": "STORESCP", "host": "127.0.0.1", "port": storescp},
            "start": [*peer, "storescp", "--data", str(scratch / "storescp"), "--dicom", str(storescp), "--fork"],
            "env": {"TCP_NODELAY": "1"},
        },
    }


def require() -> None:
    """Raises Missing, naming all that is missing."""
    path = os.pathsep.join([*os.get_exec_path(), "/usr/sbin"])
    programs = ["Orthanc", "storescu", "storescp", "wrk", "curl"]
    missing = [name for name in programs if shutil.which(name, path=path) is None]
    packages = ["psutil", "numpy", "scipy", "openjpeg", "pydicom", "pynetdicom", "orjson"]
    missing += [f"the Python package {name}" for name in packages if importlib.util.find_spec(name) is None]
    if not (HARNESS / "harness.py").exists():
        missing.append(f"the harness ({HARNESS}; BENCH_HARNESS says where it lies)")
    if missing:
        raise Missing(f"missing: {', '.join(missing)}")


def measure(peer: str, out: Path, arguments: Sequence[str]) -> Path:
    """One interleaved run of ours and a peer; the JSON that it wrote."""
    run_id = f"{peer}-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="imageset-gateway-bench-", dir=os.environ.get("BENCH_SCRATCH")) as folder:
        scratch = Path(folder)
        files = []
        for name, target in targets(scratch).items():
            if name in (OURS, peer):
                files.append(scratch / f"{name}.json")
                files[-1].write_text(json.dumps({"name": name, **target}))
        command = [sys.executable, "-m", "benchmarks.cells", "compare", *map(str, files), "--out", str(out.absolute())]
        command += ["--runid", run_id, "--scratch", str(scratch), *arguments]
        CACHE.mkdir(parents=True, exist_ok=True)
        env = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
        env["PATH"] += f"{os.pathsep}/usr/sbin"
        done = subprocess.run(command, cwd=ROOT, env={**env, "BENCH_CACHE": str(CACHE)}, stdout=sys.stderr)
        written = out / f"compare-{OURS}-{peer}-{run_id}.json"
        if done.returncode or not written.exists():
            for log in sorted(scratch.glob("*.log")):
                sys.stderr.write(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}\n")
            raise SystemExit(f"the harness ended with {done.returncode} and without a result")
    return written


def read(files: Iterable[Path]) -> tuple[dict[str, Any], Results]:
    """The environment of the first run, and the medians of all; where runs overlap, each is with its own peer."""
    environment: dict[str, Any] = {}
    results: dict[str, dict[str, Figures]] = {}
    for file in files:
        document = json.loads(file.read_text())
        environment = environment or document["env"]
        peer = next(name for name in document["results"] if name != OURS)
        for name, cells in document["results"].items():
            # Ours beside another peer than Orthanc is kept apart: ratios are of one run.
            key = name if name != OURS or peer == ORTHANC else f"{OURS} beside {peer}"
            results.setdefault(key, {}).update({cell: _median(runs) for cell, runs in cells.items()})
    return environment, results


def _median(runs: Sequence[Figures]) -> Figures:
    figures: dict[str, Any] = {}
    for name in {name for run in runs for name in run}:
        values = [run[name] for run in runs if isinstance(run.get(name), int | float)]
        if values and name != "ok":
            figures[name] = statistics.median(values)
    return {
        **figures,
        "ok": all(run.get("ok") for run in runs),
        "unsupported": any(run.get("unsupported") for run in runs),
    }


def advantage(figure: str, ours: float, theirs: float) -> float:
    """How many times better ours is."""
    better, worse = (ours, theirs) if figure in _RATES else (theirs, ours)
    return better / worse if worse else float("inf")


def budget_rows(
    budgets: Sequence[Mapping[str, Any]], results: Results, environment: Mapping[str, Any]
) -> Iterator[list[str]]:
    """A row for each budget that was measured: cell, figure, ours, peer, ratio, budget, whether it is met."""
    for budget in budgets:
        peer, figure = budget.get("peer", ORTHANC), budget["figure"]
        mine = results.get(OURS if peer == ORTHANC else f"{OURS} beside {peer}", {})
        if any(budget.get(name, environment[name]) != environment[name] for name in ("studies", "series")):
            continue
        if budget["cell"] != "*" and budget["cell"] not in mine:
            continue
        ours, theirs = (_value(cells, budget["cell"], figure) for cells in (mine, results.get(peer, {})))
        ratio = None if ours is None or theirs is None else advantage(figure, ours, theirs)
        if "ratio" in budget:
            wanted, is_met = f"{budget['ratio']} x {peer}", ratio is not None and ratio >= budget["ratio"]
        elif "at_most" in budget:
            wanted, is_met = f"<= {budget['at_most']:g}", ours is not None and ours <= budget["at_most"]
        else:
            wanted, is_met = f">= {budget['at_least']:g}", ours is not None and ours >= budget["at_least"]
        verdict = "met" if is_met else f"**not met**: {budget.get('cause', 'the cause is not measured yet')}"
        yield [f"`{budget['cell']}`", figure, _text(ours), _text(theirs), _text(ratio), wanted, verdict]


def cell_rows(results: Results) -> Iterator[tuple[bool, list[str]]]:
    """For each cell of ours: whether it is as good as Orthanc's, and its row."""
    for cell, mine in results.get(OURS, {}).items():
        theirs = results.get(ORTHANC, {}).get(cell, {})
        figure = next((name for name in _HEADLINES if name in mine or name in theirs), "")
        ours, other = (figures.get(figure) if figures.get("ok") else None for figures in (mine, theirs))
        ratio = None if ours is None or other is None else advantage(figure, ours, other)
        is_good = ratio is None or ratio >= 1
        if ours is None:  # what neither serves is nobody's loss
            is_good = bool(mine.get("unsupported")) and other is None
        row = [f"`{cell}`", figure, _text(ours, mine), _text(other, theirs), _text(ratio)]
        row += [
            _text(mine.get("p95_ms")),
            _text(mine.get("server_cpu_ms_per_op")),
            _text(mine.get("server_rss_peak_mb")),
        ]
        yield is_good, row


def _value(cells: Mapping[str, Figures], cell: str, figure: str) -> float | None:
    if cell == "*":
        return max((figures[figure] for figures in cells.values() if figure in figures), default=None)
    figures = cells.get(cell, {})
    return figures.get(figure) if figures.get("ok") else None


def _text(value: float | None, figures: Figures | None = None) -> str:
    if value is not None:
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    if not figures:
        return ""
    return "not served" if figures.get("unsupported") else "failed"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def report(
    environment: Mapping[str, Any], results: Results, budgets: Sequence[Mapping[str, Any]]
) -> tuple[str, list[str]]:
    """The tables as Markdown, and the cells that failed or are below Orthanc's."""
    cells = list(cell_rows(results))
    behind = [row[0] for is_good, row in cells if not is_good]
    # No paths, no load, no ids: what a reader can compare with a machine of his own.
    where = f"{environment['cores']} cores of {environment['cpu'] or 'an unnamed CPU'}, Python {environment['python']}"
    stock = f"a series of {environment['series']}"
    if environment["studies"]:
        stock += f", {environment['studies']} studies"
    lines = [f"{environment['time'][:10]}, {where}; {stock}."]
    rows = list(budget_rows(budgets, results, environment))
    lines += ["", *_table(("cell", "figure", "ours", "peer", "ratio", "budget", ""), rows)]
    lines += ["", f"Failed, or below Orthanc's: {', '.join(behind) if behind else 'none'}.", ""]
    heads = ("cell", "figure", "ours", "Orthanc", "ratio", "p95 ms", "CPU ms", "memory MB")
    lines += _table(heads, [row for _, row in cells])
    return "\n".join(lines), behind


def write(page: Path, text: str, markers: tuple[str, str]) -> None:
    """Puts the tables between their markers."""
    before, begin, rest = page.read_text().partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not begin or not end:
        raise SystemExit(f"{page.name} has lost its markers: {' and '.join(markers)}")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description="Ours beside Orthanc.")
    parser.add_argument("--quick", action="store_true", help="short cells, a series of 100")
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--only", help="regular expression on cell names")
    parser.add_argument("--suites", default=SUITES)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--series", action="store_true", help="how a series of 500 is read, and nothing else")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out")
    parser.add_argument("--from", dest="files", type=Path, nargs="+", help="results of earlier runs")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md, whatever was measured")
    asked = parser.parse_args()
    if asked.series:
        asked.suites, asked.only, asked.studies = "search,wado", asked.only or OF_SERIES, 0
    files = asked.files
    if files is None:
        try:
            require()
        except Missing as fault:
            print(fault, file=sys.stderr)
            return 2
        flags = ["--reps", str(asked.reps), "--studies", str(asked.studies), *(["--quick"] if asked.quick else [])]
        only = ["--only", asked.only] if asked.only else []
        files = [measure(ORTHANC, asked.out, [*flags, "--suites", asked.suites, *only])]
        if not asked.only and "ingest" in asked.suites:
            files.append(
                measure(STORESCP, asked.out, [*flags, "--suites", "ingest", "--only", r"^cstore\.raw\.assoc1$"])
            )
    budgets = tomllib.loads((ROOT / "benchmarks" / "budgets.toml").read_text())["budget"]
    text, behind = report(*read(files), budgets)
    print(text)
    if asked.series:
        is_whole, markers = not (asked.quick or asked.files) and asked.only == OF_SERIES, SERIES
    else:
        is_whole, markers = not (asked.quick or asked.only or asked.files), ALL
        is_whole = is_whole and asked.suites == SUITES and asked.studies == 1000
    if is_whole or asked.write:
        write(PAGE, text, markers)
    return 1 if behind else 0


if __name__ == "__main__":
    sys.exit(main())
