"""The harness with cells of our own behind its own: run as it is, with its arguments.

python -m benchmarks.cells compare A.json B.json ...

metadata.series500.unchanged.cC   metadata of the stock series for a client that has them (If-None-Match): 304
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from .harness import harness_module

Cell = tuple[str, str, str, Callable[[Any, int], Mapping[str, Any]]]
"""Suite, name, what it needs of a target, and what measures it on a target."""
_CLIENTS: Final = (1, 8)
_SECONDS: Final = 3


def unchanged(harness: Any, target: Any, clients: int) -> Mapping[str, Any]:
    """Answers without a body. A server that names no ETag, or answers anew all the same, does not serve this."""
    study, series, _ = target.state["ct"][0]
    path, headers = f"/studies/{study}/series/{series}/metadata", {"Accept": "application/dicom+json"}
    _, given, _ = target.get(path, headers)
    if "etag" not in given:
        return {"ok": False, "unsupported": True, "errors": ["no ETag"]}

    def check(status: int, _: Mapping[str, str], body: bytes) -> str | None:
        return None if status == 304 and not body else f"HTTP {status}"

    figures: Mapping[str, Any] = harness.cell_get(
        target, [path], {**headers, "If-None-Match": given["etag"]}, clients, _SECONDS, check
    )
    return figures


def main() -> None:
    harness = harness_module("harness")
    planned = harness.cells

    def cells() -> list[Cell]:
        ours: list[Cell] = [
            (
                "wado",
                f"metadata.series500.unchanged.c{clients}",
                "http",
                lambda target, _, clients=clients: unchanged(harness, target, clients),  # type: ignore[misc]
            )
            for clients in _CLIENTS
        ]
        asked = harness.OPT
        return [
            *planned(),
            *(cell for cell in ours if cell[0] in asked.suites and (not asked.only or re.search(asked.only, cell[1]))),
        ]

    harness.cells = cells
    harness.main()


if __name__ == "__main__":
    main()
