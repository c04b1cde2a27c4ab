"""The command `imageset-gateway`.

Exit codes: 0 done, 1 failed, 2 not understood (wrong usage or settings). Results go to standard output, as text or with
`--json` as one JSON document; everything else goes to standard error.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import orjson
import typer

from . import __version__, supervisor
from .domain.errors import GatewayError, InvalidInput, Unavailable
from .settings import Settings, load, unknown_names

app = typer.Typer(
    name="imageset-gateway",
    help="DICOMweb and DIMSE in front of versioned image sets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
database = typer.Typer(help="The database and its schema.", no_args_is_help=True)
app.add_typer(database, name="db")
quarantine = typer.Typer(help="What was acknowledged and could not be imported.", no_args_is_help=True)
app.add_typer(quarantine, name="quarantine")

_OF_SERVING = "Serving"
_MOST_SHOWN = 50

Config = Annotated[Path | None, typer.Option(help="Settings in a TOML file.", rich_help_panel=_OF_SERVING)]
Data = Annotated[Path | None, typer.Option(help="The data folder [default: ./gateway-data].")]
Backend = Annotated[str | None, typer.Option(help="What stands behind: embedded.")]
Workers = Annotated[int | None, typer.Option(help="Importing processes [default: 1].")]
Cache = Annotated[str | None, typer.Option(help="Size of the cache of decoded frames [default: 4GiB]; 0: none.")]
Http = Annotated[str | None, typer.Option(help="HTTP listener [default: 127.0.0.1:8080]; port 0 picks a free one.")]
Dimse = Annotated[str | None, typer.Option(help="DIMSE listener [default: 127.0.0.1:11112].")]
Aet = Annotated[str | None, typer.Option(help="Our AE title [default: GATEWAY].")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Listen off loopback without credentials.")]
TlsCert = Annotated[Path | None, typer.Option(help="Certificate chain (PEM): https.")]
TlsKey = Annotated[Path | None, typer.Option(help="Private key (PEM) of the certificate.")]
S3Root = Annotated[Path | None, typer.Option("--s3-root", help="Import jobs: s3://bucket/key is DIR/bucket/key.")]

Url = Annotated[str, typer.Option(help="The running gateway.", envvar="GATEWAY_CLIENT_URL")]
TokenFlag = Annotated[str | None, typer.Option("--token", help="Bearer token.", envvar="GATEWAY_CLIENT_TOKEN")]
UserFlag = Annotated[
    str | None, typer.Option("--user", help="NAME:PASSWORD for HTTP Basic.", envvar="GATEWAY_CLIENT_USER")
]
Json = Annotated[bool, typer.Option("--json", help="The result as one JSON document.")]
_HERE = "http://127.0.0.1:8080"


def main() -> None:
    """The entry point of the command."""
    try:
        app()
    except InvalidInput as fault:
        _fail(fault.detail, 2)
    except GatewayError as fault:
        _fail(fault.detail, 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(detail: str, code: int) -> NoReturn:
    print(f"imageset-gateway: {detail}", file=sys.stderr)
    sys.exit(code)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"imageset-gateway {__version__}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


# Processes


@app.command()
def serve(
    config: Config = None,
    data: Data = None,
    backend: Backend = None,
    workers: Workers = None,
    cache: Cache = None,
    http: Http = None,
    dimse: Dimse = None,
    aet: Aet = None,
    s3_root: S3Root = None,
    insecure: Insecure = False,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Serve everything over one data folder: a web, a DIMSE and the worker processes.

    Prints one JSON line once both listeners accept. SIGTERM ends it within 20 s.
    """
    flags = {
        "data": data,
        "backend": backend,
        "workers": workers,
        "cache": cache,
        "http.listen": http,
        "dimse.listen": dimse,
        "dimse.aet": aet,
        "s3_root": s3_root,
        "auth.insecure": insecure or None,
        "http.tls_cert": tls_cert,
        "http.tls_key": tls_key,
    }
    settings = load(config, flags)
    folder = supervisor.DataFolder(settings.data)
    try:
        supervisor.share_metrics(settings.data, afresh=True)
        _start_logs(settings, "supervisor")
        keeper = supervisor.Supervisor(settings, _become)
        from . import compose

        compose.load()
        _migrate_apart(settings)
        code = keeper.run()
    finally:
        folder.release()
    raise typer.Exit(code)


def _become(kind: supervisor.Kind, role: supervisor.Role) -> None:
    """A child's life."""
    _start_logs(role.settings, kind)
    from . import compose

    try:
        role.run(compose.MAINS[kind])
    except GatewayError as fault:
        _fail(fault.detail, 1)


def _migrate_apart(settings: Settings) -> None:
    """In a child, which takes the memory of what only migrations need with it: the supervisor stays small."""
    child = os.fork()
    if not child:
        from . import compose

        compose.migrate(settings)
        raise typer.Exit
    _, status = os.waitpid(child, 0)
    if status:
        raise typer.Exit(os.waitstatus_to_exitcode(status))


@app.command()
def web(
    config: Config = None,
    data: Data = None,
    cache: Cache = None,
    http: Http = None,
    s3_root: S3Root = None,
    insecure: Insecure = False,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Serve HTTP alone: DICOMweb, the HealthImaging API and operations."""
    flags = {
        "data": data,
        "cache": cache,
        "http.listen": http,
        "s3_root": s3_root,
        "auth.insecure": insecure or None,
        "http.tls_cert": tls_cert,
        "http.tls_key": tls_key,
    }
    _serve_alone("web", config, flags)


@app.command()
def dimse(
    config: Config = None,
    data: Data = None,
    listen: Annotated[str | None, typer.Option("--dimse", help="DIMSE listener [default: 127.0.0.1:11112].")] = None,
    aet: Aet = None,
) -> None:
    """Serve DIMSE alone: C-ECHO, C-STORE and C-FIND."""
    _serve_alone("dimse", config, {"data": data, "dimse.listen": listen, "dimse.aet": aet})


@app.command()
def worker(config: Config = None, data: Data = None, s3_root: S3Root = None) -> None:
    """Import, edit and encode alone, for the other processes."""
    _serve_alone("worker", config, {"data": data, "s3_root": s3_root})


def _serve_alone(kind: supervisor.Kind, config: Path | None, flags: Mapping[str, Any]) -> None:
    settings = load(config, flags)
    settings.data.mkdir(parents=True, exist_ok=True)
    supervisor.share_metrics(settings.data)
    _start_logs(settings, kind)
    from . import compose

    compose.migrate(settings)
    listener = None
    if kind == "web":
        listener = supervisor.bind(settings.http.listen, "--http")
    elif kind == "dimse":
        listener = supervisor.bind(settings.dimse.listen, "--dimse")
    supervisor.Role(settings, listener).run(compose.MAINS[kind])


def _start_logs(settings: Settings, role: str) -> None:
    from . import telemetry

    telemetry.configure_logs(settings.log.level, settings.log.format, role=role)
    if role == "supervisor":
        import structlog

        for name in unknown_names(os.environ):
            structlog.get_logger("gateway").warning("unknown_setting", name=name)


# Looking after an installation


@database.command("migrate")
def db_migrate(config: Config = None, data: Data = None, as_json: Json = False) -> None:
    """Bring the database to this release's schema."""
    from . import compose

    revision = compose.migrate(load(config, {"data": data}))
    _answer({"revision": revision}, as_json, lambda: f"The schema is at revision {revision}.")


@database.command("check")
def db_check(config: Config = None, data: Data = None, as_json: Json = False) -> None:
    """Say at which revision the schema is; exit code 1 where there is none yet."""
    from . import compose

    revision = compose.schema_revision(load(config, {"data": data}))
    said = f"The schema is at revision {revision}." if revision else "There is no schema yet: `db migrate` makes it."
    _answer({"revision": revision}, as_json, lambda: said)
    raise typer.Exit(0 if revision else 1)


@database.command("backup")
def db_backup(
    path: Annotated[Path, typer.Argument(help="The backup's folder; one that holds a backup is brought forward.")],
    config: Config = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Back the store up to a folder, while it serves or at rest.

    Database and files are of one moment. Files only grow, so that a later backup copies what is new. A backup that
    breaks off leaves the one that was there. On PostgreSQL the database is copied with pg_dump, which has to be there.
    """
    from . import compose

    with _progress("copying") as tell:
        done = compose.back_up(load(config, {"data": data}), path, tell)
    _answer(
        _copied(done), as_json, lambda: f"{_size(done.copied_bytes)} copied, {_size(done.backup.size_bytes)} in all."
    )


@database.command("restore")
def db_restore(
    path: Annotated[Path, typer.Argument(help="The backup's folder.")],
    config: Config = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make a store again from a backup, in a data folder (and PostgreSQL database) that holds none."""
    from . import compose

    settings = load(config, {"data": data})
    folder = supervisor.DataFolder(settings.data)
    try:
        with _progress("copying") as tell:
            done = compose.restore(settings, path, tell)
    finally:
        folder.release()
    _answer(_copied(done), as_json, lambda: f"{_size(done.copied_bytes)} restored. `verify` looks at every byte of it.")


@database.command("rebuild")
def db_rebuild(config: Config = None, data: Data = None, as_json: Json = False) -> None:
    """Make the search index anew from what is stored, while the gateway serves or at rest."""
    from . import compose

    count = compose.rebuild_index(load(config, {"data": data}))
    _answer({"publications": count}, as_json, lambda: f"The search index was made anew from {count} publications.")


def _copied(done: Any) -> dict[str, Any]:
    return {
        "at": done.backup.at,
        "revision": done.backup.revision,
        "bytes": done.backup.size_bytes,
        "copiedBytes": done.copied_bytes,
        "seconds": round(done.seconds, 2),
    }


@app.command()
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="PATH", help="A backup from which damaged bytes can be repaired.")
    ] = None,
    config: Config = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Read the whole store and compare everything with its checksums and rules; exit code 1 if it is not sound.

    Works while the gateway serves, and at rest. `--repair` takes damaged bytes from the spool, as long as an instance
    lies there as it was received, or from a backup, and makes a wrong search index anew.
    """
    from . import compose

    with _progress("verifying") as tell:
        report = compose.verify(load(config, {"data": data}), repair=repair, backup=source, progress=tell)
    document = {"sound": report.is_sound, **asdict(report)}

    def text() -> str:
        said = [
            f"{report.rules} rules, {report.records} records, {report.frames} frames, {report.documents} documents and "
            f"{report.staged} staged instances, {_size(report.read_bytes)}: "
            + ("sound" if report.is_sound else "NOT sound")
        ]
        for fault in report.faults[:_MOST_SHOWN]:
            said.append(f"{'repaired' if fault.repaired else 'FAULT':9} {fault.kind} {fault.subject}: {fault.detail}")
        if len(report.faults) > _MOST_SHOWN:
            said.append(f"and {len(report.faults) - _MOST_SHOWN} more; --json lists all")
        return "\n".join(said)

    _answer(document, as_json, text)
    raise typer.Exit(0 if report.is_sound else 1)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, told bytes done and bytes in all; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@app.command()
def check(
    config: Config = None,
    data: Data = None,
    http: Http = None,
    dimse: Dimse = None,
    aet: Aet = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Print the effective settings, secrets masked, and try each part: exit code 1 if one does not work."""
    flags = {
        "data": data,
        "http.listen": http,
        "dimse.listen": dimse,
        "dimse.aet": aet,
        "auth.insecure": insecure or None,
    }
    settings = load(config, flags)
    parts = dict(_tries(settings))
    unknown = unknown_names(os.environ)
    sound = all(part["ok"] for part in parts.values())
    document = {"ok": sound, "settings": settings.masked(), "parts": parts, "unknown": unknown}

    def text() -> str:
        lines = list(_tree(settings.masked()))
        lines += [""] + [f"{'ok  ' if part['ok'] else 'FAIL'}  {name}: {part['says']}" for name, part in parts.items()]
        lines += [f"note  {name} is not a setting" for name in unknown]
        return "\n".join(lines)

    _answer(document, as_json, text)
    raise typer.Exit(0 if sound else 1)


def _tree(branch: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for name, value in branch.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{name}"
            yield from _tree(value, indent + "  ")
        else:
            yield f"{indent}{name} = {orjson.dumps(value).decode()}"


def _tries(settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    from . import compose
    from .client import port_is_free

    def attempt(name: str, part: Callable[[], str]) -> tuple[str, dict[str, Any]]:
        try:
            return name, {"ok": True, "says": part()}
        except GatewayError as fault:
            return name, {"ok": False, "says": fault.detail}
        except OSError as fault:
            return name, {"ok": False, "says": fault.strerror or type(fault).__name__}

    def folder() -> str:
        settings.data.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.data) as file:
            file.write(b"x")
            os.fsync(file.fileno())
        return f"{settings.data.absolute()} can be written"

    def schema() -> str:
        revision = compose.schema_revision(settings)
        return f"revision {revision}" if revision else "empty; the first start makes its schema"

    def codecs() -> str:
        missing = compose.missing_codecs()
        return f"kept without decoding: {', '.join(missing)}" if missing else "all transfer syntaxes can be decoded"

    def certificate() -> str:
        import ssl

        if settings.http.tls_cert is None:
            return "http"
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(settings.http.tls_cert, settings.http.tls_key)
        return "certificate and key fit together"

    def port(address: Any) -> Callable[[], str]:
        def run() -> str:
            if address.port and not port_is_free(*address):
                raise InvalidInput(f"{address} is taken; a running gateway of yours, or another program")
            return f"{address} is free"

        return run

    yield attempt("data", folder)
    yield attempt("database", schema)
    yield attempt("codecs", codecs)
    yield attempt("tls", certificate)
    yield attempt("http", port(settings.http.listen))
    yield attempt("dimse", port(settings.dimse.listen))


@app.command()
def conformance(
    dicomweb: Annotated[str, typer.Option(help="The DICOMweb base URL: what stands before /studies.")],
    aet: Annotated[str | None, typer.Option(help="AE title; without it DIMSE is not judged.")] = None,
    host: Annotated[str | None, typer.Option(help="DIMSE host [default: that of the URL].")] = None,
    port: Annotated[int, typer.Option(help="DIMSE port.")] = 104,
    calling: Annotated[str, typer.Option(help="The AE title that the suite calls itself.")] = "CONFORMANCE",
    auth: Annotated[
        str | None,
        typer.Option(help="NAME:PASSWORD for HTTP Basic, or 'Bearer TOKEN'.", envvar="GATEWAY_CLIENT_AUTH"),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page for people.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write a JSON document.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.")] = None,
    only: Annotated[
        str, typer.Option(help="Regular expression of the requirements to judge, such as 'QIDO|STOW'.")
    ] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Recommendations and choices count as well.")] = False,
) -> None:
    """Judge a DICOMweb and DIMSE server, this or any other, with data made for the run and removed after it.

    Exit code 0: every binding requirement that applies is met; 1: one is not, or nobody answers; 2: wrong usage.
    """
    import re

    from conformance import report as written
    from conformance import running

    if not dicomweb.startswith(("http://", "https://")):
        raise InvalidInput(f"--dicomweb {dicomweb}: must be a URL, such as http://127.0.0.1:8080/dicomweb")
    try:
        re.compile(only)
    except re.error as fault:
        raise InvalidInput(f"--only {only}: is no regular expression ({fault})") from None
    target = running.Target(dicomweb, auth, aet, host, port, calling)

    def progress(result: running.Result) -> None:
        if result.verdict == "fail":
            print(f"{result.requirement.id}: {result.faults[0].text}", file=sys.stderr)

    try:
        came = running.run(target, only, progress)
    except running.Unreachable as fault:
        _fail(str(fault), 1)
    if not came.results:
        raise InvalidInput(f"--only {only}: matches no requirement" + ("" if aet else "; those of DIMSE need --aet"))
    for path, write in ((report, written.as_html), (json, written.as_json), (junit, written.as_junit)):
        if path is not None:
            path.write_text(write(came), "utf-8")
    print(written.text(came))
    failed = any(result.verdict == "fail" for result in came.results)
    raise typer.Exit(1 if not came.is_conformant or (strict and failed) else 0)


# Clients of a running gateway


@contextmanager
def _client(url: str, token: str | None, user: str | None) -> Iterator[Any]:
    from .client import Client

    client = Client(url, token, user)
    try:
        yield client
    finally:
        client.close()


@app.command("import")
def import_(
    paths: Annotated[list[Path], typer.Argument(help="Files, folders, zip archives, DICOMDIRs.")],
    datastore: Annotated[str | None, typer.Option(help="Data store id [default: the default one].")] = None,
    url: Url = _HERE,
    token: TokenFlag = None,
    user: UserFlag = None,
    as_json: Json = False,
) -> None:
    """Send files to the gateway (STOW-RS); exit code 1 if an instance was not stored.

    Folders are walked and zip archives opened; a DICOMDIR stands for the files that it refers to.
    """
    from .client import Tally, files_under

    files = files_under(paths)
    total = Tally()
    all_bytes, sent_bytes = sum(file.size for file in files), 0
    with _client(url, token, user) as client, _progress("importing") as tell:
        for _, size, tally in client.store(files, datastore):
            total.stored += tally.stored
            total.warned += tally.warned
            total.skipped += tally.skipped
            total.failed += tally.failed
            total.studies |= tally.studies
            sent_bytes += size
            tell(sent_bytes, all_bytes)

    def text() -> str:
        lines = [f"{total.stored} stored in {len(total.studies)} studies, {total.warned} of them with a warning"]
        lines += [f"not DICOM: {path}" for path in total.skipped]
        lines += [f"failed {item['reason']} {item['sop']} {item['comment']}".rstrip() for item in total.failed]
        return "\n".join(lines)

    _answer(total.as_dict(), as_json, text)
    raise typer.Exit(1 if total.failed else 0)


@app.command()
def edit(
    datastore: Annotated[str, typer.Argument(metavar="STORE", help="Data store id.")],
    image_set: Annotated[str, typer.Argument(metavar="SET", help="Image set id.")],
    version: Annotated[int | None, typer.Option(help="The version that is to be edited [default: the latest].")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="Keyword=V", help="Set an attribute.")] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="Keyword", help="Remove an attribute.")] = None,
    revert: Annotated[int | None, typer.Option(metavar="N", help="Go back to version N, as a new version.")] = None,
    series: Annotated[str | None, typer.Option(metavar="U", help="Series Instance UID.")] = None,
    instance: Annotated[str | None, typer.Option(metavar="U", help="SOP Instance UID, for its own attributes.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Do what the rules would refuse.")] = False,
    study: Annotated[bool, typer.Option("--study", help="Also in the other image sets of the study.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    url: Url = _HERE,
    token: TokenFlag = None,
    user: UserFlag = None,
    as_json: Json = False,
) -> None:
    """Change an image set's metadata: a new version; the old ones stay readable."""
    if (revert is None) == (not set_ and not remove):
        raise InvalidInput("say what to change: --set and --remove, or --revert alone")
    changes = {}
    for entry in set_ or []:
        keyword, equals, value = entry.partition("=")
        if not equals:
            raise InvalidInput(f"--set {entry}: must be Keyword=Value")
        changes[keyword] = value
    with _client(url, token, user) as client:
        after = client.edit(
            datastore,
            image_set,
            version=version,
            set=changes,
            remove=remove or [],
            revert=revert,
            series=series,
            instance=instance,
            force=force,
            study=study,
            dry_run=dry_run,
        )
    _answer(after, as_json, lambda: _differences(after) if dry_run else f"version {after['versionId']}")


@app.command()
def diff(
    datastore: Annotated[str, typer.Argument(metavar="STORE", help="Data store id.")],
    image_set: Annotated[str, typer.Argument(metavar="SET", help="Image set id.")],
    start: Annotated[int | None, typer.Option("--from", metavar="N", help="[default: the version before].")] = None,
    end: Annotated[int | None, typer.Option("--to", metavar="M", help="[default: the latest version].")] = None,
    url: Url = _HERE,
    token: TokenFlag = None,
    user: UserFlag = None,
    as_json: Json = False,
) -> None:
    """Show what differs between two versions of an image set's metadata."""
    with _client(url, token, user) as client:
        found = client.diff(datastore, image_set, start, end)
    _answer(found, as_json, lambda: _differences(found))


def _differences(found: Mapping[str, Any]) -> str:
    lines = [f"version {found['from']} to {found['to']}"]
    for entry in found["differences"]:
        place = " ".join([entry["level"], *([entry["instance"]] if "instance" in entry else [])])
        if "attribute" not in entry:
            lines.append(f"{entry['change']:8} {place}")
            continue
        values = [orjson.dumps(entry[side]).decode() for side in ("from", "to") if side in entry]
        lines.append(f"{entry['change']:8} {place} {entry['attribute']}: {' -> '.join(values)}")
    return "\n".join(lines if len(lines) > 1 else [*lines, "no differences"])


@app.command()
def queue(url: Url = _HERE, token: TokenFlag = None, user: UserFlag = None, as_json: Json = False) -> None:
    """Show waiting and running work."""
    with _client(url, token, user) as client:
        state = client.queue()

    def text() -> str:
        lines = [f"{'work':12}{'waiting':>9}{'running':>9}{'oldest':>10}"]
        for kind, n in sorted(state["work"].items()):
            lines.append(f"{kind:12}{n['waiting']:>9.0f}{n['running']:>9.0f}{n['oldest_s']:>8.1f} s")
        for role, n in state["processes"].items():
            lines.append(f"{role:12}{'up' if n['up'] else 'down':>9}, started again {n['restarts']:.0f} times")
        return "\n".join(lines)

    _answer(state, as_json, text)


@quarantine.command("list")
def quarantine_list(url: Url = _HERE, token: TokenFlag = None, user: UserFlag = None, as_json: Json = False) -> None:
    """List what was acknowledged and could not be imported, the oldest first."""
    with _client(url, token, user) as client:
        items = list(client.quarantined())

    def text() -> str:
        lines = []
        for item in items:
            at = datetime.fromtimestamp(item["receivedAt"], UTC).strftime("%Y-%m-%d %H:%M:%SZ")
            way = f"{item['callingAe'] or '-'} > {item['calledAe'] or '-'}" if item["source"] == "dimse" else "STOW-RS"
            size = f"{item['sizeBytes']} bytes"
            lines.append(f"{item['id']}  {at}  {way}  {size}  {item['reason']} {item['message']}".rstrip())
        return "\n".join(lines) or "The quarantine is empty."

    _answer(items, as_json, text)


@quarantine.command("get")
def quarantine_get(
    id: Annotated[str, typer.Argument(metavar="ID")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file [default: ID.dcm].")] = None,
    url: Url = _HERE,
    token: TokenFlag = None,
    user: UserFlag = None,
) -> None:
    """Write an instance as it was received to a file."""
    path = output or Path(f"{Path(id).name}.dcm")
    part = path.with_name(f"{path.name}.part")
    try:
        with _client(url, token, user) as client, part.open("wb") as target:
            client.fetch_quarantined(id, target)
        part.replace(path)
    except OSError as fault:
        raise Unavailable(f"{path} cannot be written: {fault.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    print(path)


Ids = Annotated[list[str] | None, typer.Argument(metavar="ID...")]


@quarantine.command("retry")
def quarantine_retry(
    ids: Ids = None,
    every: Annotated[bool, typer.Option("--all", help="All that there is.")] = False,
    url: Url = _HERE,
    token: TokenFlag = None,
    user: UserFlag = None,
    as_json: Json = False,
) -> None:
    """Import instances once more; exit code 1 if one was not stored."""
    if bool(ids) == every:
        raise InvalidInput("name the instances by their ids, or say --all")
    with _client(url, token, user) as client:
        wanted = [item["id"] for item in client.quarantined()] if every else ids or []
        answers = [{"id": id, **client.retry_quarantined(id)} for id in wanted]

    def text() -> str:
        return "\n".join(
            f"{one['id']}  stored" if one["stored"] else f"{one['id']}  not stored {one.get('message', '')}".rstrip()
            for one in answers
        )

    _answer(answers, as_json, text)
    raise typer.Exit(0 if all(one["stored"] for one in answers) else 1)


@quarantine.command("drop")
def quarantine_drop(
    ids: Annotated[list[str], typer.Argument(metavar="ID...")],
    url: Url = _HERE,
    token: TokenFlag = None,
    user: UserFlag = None,
) -> None:
    """Forget instances for good."""
    with _client(url, token, user) as client:
        for id in ids:
            client.drop_quarantined(id)


@app.command()
def echo(url: Url = _HERE, as_json: Json = False) -> None:
    """Ask the gateway, by HTTP and by C-ECHO, whether it is there and ready."""
    import time

    from .client import Client
    from .client import echo as c_echo

    client = Client(url)
    try:
        began = time.monotonic()
        state = client.readiness()
        http_s = time.monotonic() - began
    finally:
        client.close()
    dimse_s = c_echo(state["dimse"], state["aet"])
    ready = state["status"] == "ready"
    result = {**state, "httpMs": round(http_s * 1000, 1), "dimseMs": round(dimse_s * 1000, 1)}
    _answer(
        result,
        as_json,
        lambda: "\n".join(
            [
                f"HTTP   {url}: {state['status']}, {result['httpMs']} ms",
                f"DIMSE  {state['aet']} at {state['dimse']}: success, {result['dimseMs']} ms",
            ]
            + [f"{name}: {says}" for name, says in state["checks"].items() if says != "ok"]
        ),
    )
    raise typer.Exit(0 if ready else 1)


def _answer(document: Any, as_json: bool, text: Callable[[], str]) -> None:
    print(orjson.dumps(document).decode() if as_json else text())
