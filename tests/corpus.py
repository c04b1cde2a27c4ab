"""Where the corpus of real DICOM files lies, if it lies anywhere: `GATEWAY_TEST_DATA`, else `../shared/data`."""

import json
import os
from pathlib import Path
from typing import Any

_folder = Path(os.environ.get("GATEWAY_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
CORPUS: Path | None = _folder if (_folder / "manifest.json").exists() else None
"""The folder, or None on a clone that lacks it."""


def manifest() -> list[dict[str, Any]]:
    """The records of the corpus, one a file; empty without the corpus."""
    if CORPUS is None:
        return []
    records: list[dict[str, Any]] = json.loads((CORPUS / "manifest.json").read_text())["files"]
    return records
