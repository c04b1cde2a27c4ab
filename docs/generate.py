"""Writes the generated pages: settings.md and conformance-statement.md, the metrics in operations.md, and what is not
met in conformance.md."""

import re
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

import orjson
from prometheus_client import REGISTRY
from pydantic import BaseModel, ByteSize, SecretStr
from pydantic_core import PydanticUndefined

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

from conformance import statement  # noqa: E402
from gateway import telemetry  # noqa: E402
from gateway.settings import Address, environment_name, leaves  # noqa: E402

_HEAD = """# Settings

<!-- written by docs/generate.py (make docs) -->

One tree, from a TOML file (`--config`), then the environment, then flags; later wins. In TOML a level is a table
(`http.listen` is `listen` under `[http]`); in the environment levels are joined by two underscores, lists and tables
are JSON, and a name with `_FILE` at its end names a file that holds the value. `imageset-gateway check` prints them.

"""


def settings_page() -> str:
    """Every setting: its names, values, default and meaning."""
    lines = ["| setting | environment | values | default | meaning |", "| --- | --- | --- | --- | --- |"]
    for path, field in leaves():
        name = ".".join(path)
        default = "" if field.default is PydanticUndefined else _shown(field.default)
        kind = _kind(field.annotation)
        lines.append(f"| `{name}` | `{environment_name(path)}` | {kind} | {default} | {field.description} |")
    return _HEAD + "\n".join(lines) + "\n"


def operations_page(text: str) -> str:
    """The page with its list of metrics made anew."""
    families = [*REGISTRY.collect(), *telemetry.CurrentNumbers({}, {}).collect()]
    rows = ["<!-- metrics -->", "", "| metric | kind | meaning |", "| --- | --- | --- |"]
    for family in sorted(families, key=lambda family: family.name):
        if family.name.startswith("gateway_"):
            suffix = "_total" if family.type == "counter" else ""
            rows.append(f"| `{family.name}{suffix}` | {family.type} | {family.documentation} |")
    table = "\n".join(rows) + "\n\n"
    return re.sub(r"<!-- metrics -->\n(\n\|.*?\n\n|\n)", lambda _: table, text, count=1, flags=re.DOTALL)


def conformance_page(text: str) -> str:
    """The page with its list of what is not met made anew."""
    return text.partition("<!-- not met -->")[0] + "<!-- not met -->\n\n" + "\n".join(statement.not_met()) + "\n"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, ByteSize):
        value = value.human_readable().replace(".0", "")
    plain = str(value) if isinstance(value, (Address, Path)) else value
    return f"`{orjson.dumps(plain).decode()}`"


def _kind(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if origin is UnionType or str(origin) == "typing.Union":
        return _kind(next(one for one in get_args(annotation) if one is not NoneType))
    if origin is tuple:
        inner = get_args(annotation)[0]
        return f"list of {_kind(inner)}"
    if origin is dict:
        return "table"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "{" + ", ".join(f"`{field.alias or name}`" for name, field in annotation.model_fields.items()) + "}"
    names = {bool: "true, false", int: "number", float: "number", str: "text", Path: "path", SecretStr: "text"}
    names |= {Address: "HOST:PORT", ByteSize: "size"}
    if annotation in names:
        return names[annotation]
    return str(annotation)


if __name__ == "__main__":
    (FOLDER / "settings.md").write_text(settings_page())
    (FOLDER / "conformance-statement.md").write_text(statement.as_markdown())
    conformance = FOLDER / "conformance.md"
    conformance.write_text(conformance_page(conformance.read_text()))
    operations = FOLDER / "operations.md"
    operations.write_text(operations_page(operations.read_text()))
