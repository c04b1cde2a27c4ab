"""What must hold in the store of a running gateway: all that `imageset-gateway verify` reads; and nothing failed."""

from pathlib import Path

import sqlalchemy as sa

from gateway import compose
from gateway.settings import Settings, load
from tests.running import RunningGateway

_NEVER = {
    "an import job failed": "SELECT count(*), min(id) FROM job WHERE status = 'FAILED'",
    "an instance that was received failed to import": "SELECT count(*), min(id) FROM job WHERE n_failed > 0",
}
"""What may happen to a store, but not in a campaign that sends nothing but sound instances."""


def settings_of(gateway: RunningGateway) -> Settings:
    return load(flags={"data": gateway.data}, environ=gateway.environment)


def broken(settings: Settings) -> list[str]:
    """What does not hold, each with an example. The gateway may run meanwhile."""
    report = compose.verify(settings, repair=False, backup=None, progress=lambda done, total: None)
    faults = [f"{fault.kind} {fault.subject}: {fault.detail}" for fault in report.faults]
    database = compose.open_database(settings)
    try:
        with database.read() as connection:
            for words, query in _NEVER.items():
                count, example = connection.execute(sa.text(query)).one()
                if count:
                    faults.append(f"{words}: {count} times, for example {example}")
    finally:
        database.close()
    return faults


def leftovers(settings: Settings) -> dict[str, int]:
    """Segments still in the spool, and files that no row names: rubbish for the sweeper, by kind."""
    database = compose.open_database(settings)
    try:
        with database.read() as connection:
            known = {name for (name,) in connection.execute(sa.text("SELECT name FROM blob"))}
    finally:
        database.close()
    files = [f"{kind}/{path.name}" for kind in ("pack", "frames") for path in _files(settings.data / kind)]
    return {
        "files": len(files),
        "spool segments": len(_files(settings.data / "spool")),
        "orphan files": len(set(files) - known),
    }


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.exists() else []
