"""The whole configuration as one typed tree (architecture section 0).

Later wins: defaults, the TOML file, the environment (`GATEWAY_`, levels joined by `__`, lists as JSON, `..._FILE` for a
value in a file), flags. Frozen once loaded.
"""

import ipaddress
import os
import secrets
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    model_validator,
)

from .domain.errors import InvalidInput

PREFIX = "GATEWAY_"
MASK = "********"

_NOT_SETTINGS = ("GATEWAY_TEST_", "GATEWAY_CLIENT_")
"""Names with our prefix that are no settings of the gateway: of its tests, and of the commands that talk to it."""


class Address(NamedTuple):
    """Where a listener binds; port 0 picks a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @classmethod
    def parse(cls, text: Any) -> Self:
        """`HOST:PORT`, `[IPV6]:PORT` or `:PORT`, which means all interfaces. Raises ValueError."""
        if isinstance(text, cls):
            return text
        host, colon, port = str(text).rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError("must be HOST:PORT, for example 127.0.0.1:8080; port 0 picks a free one")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError("an IPv6 address stands in brackets: [::1]:8080")
        return cls(host or "0.0.0.0", int(port))


def _with_unit(size: ByteSize) -> ByteSize:
    if 0 < size < 1 << 20:
        raise ValueError("must be 0, or a size of 1 MiB or more with its unit, for example 4GiB")
    return size


Size = Annotated[ByteSize, AfterValidator(_with_unit)]
"""Bytes: `4GiB`, `500MB`; 0 is none."""
Listen = Annotated[Address, BeforeValidator(Address.parse), PlainSerializer(str, return_type=str)]
AeTitle = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[ -\[\]-~]*[!-\[\]-~][ -\[\]-~]*$")]
"""1 to 16 printable ASCII characters, not all spaces, no backslash (PS3.5 6.2)."""
Duration = Annotated[str, Field(pattern=r"^[0-9]{1,6}[smhd]$")]
"""`90s`, `15m`, `1h`, `30d`."""
HexId = Annotated[str, Field(pattern=r"^[0-9a-z]{32}$")]


class _Branch(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True)


class Credential(_Branch):
    """A key pair for Signature Version 4."""

    access_key_id: str = Field(alias="accessKeyId", min_length=1)
    secret_access_key: SecretStr = Field(alias="secretAccessKey", min_length=1)
    principal: str = Field(min_length=1)


class Token(_Branch):
    """A bearer token and who it stands for."""

    token: SecretStr = Field(min_length=1)
    principal: str = Field(min_length=1)


class BasicUser(_Branch):
    """A user for HTTP Basic; the name is the principal."""

    user: str = Field(min_length=1, pattern=r"^[^:]*$")
    password: SecretStr = Field(min_length=1)


class AuthSettings(_Branch):
    insecure: bool = Field(False, description="Listen off loopback without credentials.")
    credentials: tuple[Credential, ...] = Field((), description="Key pairs that may sign requests (SigV4).")
    tokens: tuple[Token, ...] = Field((), description="Bearer tokens.")
    basic: tuple[BasicUser, ...] = Field((), description="Users for HTTP Basic.")

    @property
    def is_closed(self) -> bool:
        """Whether callers must say who they are: any of the three closes every HTTP face."""
        return bool(self.credentials or self.tokens or self.basic)


class HttpSettings(_Branch):
    listen: Listen = Field(Address("127.0.0.1", 8080), description="Where HTTP listens.")
    processes: int = Field(1, ge=1, le=64, description="Web processes of `serve`, all on the one listener.")
    tls_cert: Path | None = Field(None, description="Certificate chain (PEM): https.")
    tls_key: Path | None = Field(None, description="Private key (PEM) of the certificate.")
    public_url: str | None = Field(
        None, pattern=r"^https?://[^?#]+$", description="How clients reach us, where a proxy changes the address."
    )
    trusted_proxies: tuple[str, ...] = Field((), description="Addresses whose X-Forwarded-* headers are believed.")
    cors_origins: tuple[str, ...] | None = Field(
        None, description="Origins that browsers may call from; default `*` without authentication, none with."
    )
    max_requests: int = Field(500, ge=1, description="Requests a web process serves at once; more are answered 503.")
    patience_s: float = Field(
        60.0,
        gt=0,
        description="Seconds for a request's head to come, for a client to take some of its answer, and over which "
        "`min_bytes_per_s` is measured; then its connection is closed.",
    )
    min_bytes_per_s: int = Field(2048, ge=1, description="A request's body that comes more slowly is given up: 408.")

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together: give both or neither")
        return self


class Peer(_Branch):
    """A DICOM application entity that is known by its title."""

    title: AeTitle
    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    cidr: str | None = None

    @model_validator(mode="after")
    def _cidr_is_a_network(self) -> Self:
        if self.cidr is not None:
            ipaddress.ip_network(self.cidr, strict=False)
        return self


class DimseSettings(_Branch):
    listen: Listen = Field(Address("127.0.0.1", 11112), description="Where DIMSE listens.")
    aet: AeTitle = Field("GATEWAY", description="Our AE title.")
    peers: tuple[Peer, ...] = Field((), description="Known application entities.")
    unknown_callers: Literal["all", "store", "none"] | None = Field(
        None,
        description="What callers outside `peers` may do: everything, C-ECHO and C-STORE, nothing; "
        "default `all` on loopback, `store` elsewhere.",
    )
    titles: dict[AeTitle, HexId] = Field(
        {}, description="Called AE title to data store; any other title: the default one."
    )
    max_associations: int = Field(100, ge=1, description="Associations at once; more are rejected as transient.")
    patience_s: float = Field(
        60.0,
        gt=0,
        description="Seconds of silence between two PDUs, and for one to arrive or be taken; then an association is "
        "aborted.",
    )


class StoreSettings(_Branch):
    resent: Literal["version", "always", "reject"] = Field(
        "version",
        description="An instance that is there already: a new version if it differs, always a new version, "
        "or refused if it differs.",
    )
    max_waiting: int = Field(
        5000,
        ge=1,
        description="Import jobs that may wait; while there are more, senders are told to come back (503, A700).",
    )
    memory_mb: int = Field(
        128,
        ge=1,
        description="MiB that instances still coming in may hold in the memory of a process; beyond it they are "
        "written to the disk as they come.",
    )


class SweepSettings(_Branch):
    every: Duration = Field("1m", description="How often rubbish is looked for.")
    grace: Duration = Field(
        "1h", description="How old rubbish must be before it is removed; longer than any read or import takes."
    )


class QidoSettings(_Branch):
    empty: Literal[200, 204] = Field(200, description="Status of a search without matches.")


class HiSettings(_Branch):
    strict_removal: bool = Field(False, description="Removing an instance needs the force flag.")
    legacy_uids: bool = Field(False, description="UIDs may be updated as before the service forbade it.")
    import_files: int = Field(5000, ge=1, le=100_000, description="Files that one import job may find.")
    copy_frames: int = Field(1000, ge=1, description="Frames that one CopyImageSet may copy.")


class WebhookSettings(_Branch):
    url: str | None = Field(
        None, pattern=r"^https?://[^\s#]+$", description="Where events are posted, as EventBridge would carry them."
    )
    token: SecretStr | None = Field(None, min_length=1, description="Bearer token that is sent along.")


class LogSettings(_Branch):
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    format: Literal["json", "console"] = Field("json", description="One JSON object a line, or lines for people.")


class Settings(BaseModel):
    """The tree."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    data: Path = Field(Path("gateway-data"), description="The data folder; created when missing.")
    backend: Literal["embedded"] = Field("embedded", description="What stands behind the gateway.")
    workers: int = Field(1, ge=1, le=64, description="Importing processes.")
    database_url: SecretStr | None = Field(
        None, description="SQLAlchemy URL, e.g. postgresql+psycopg://...; default: SQLite in the data folder."
    )
    disk_reserve_mb: int = Field(
        256, ge=0, description="Free space in MiB below which nothing more is taken in; 0 switches the check off."
    )
    retention: Duration = Field("30d", description="How long a deleted image set can be restored.")
    cache: Size = Field(
        ByteSize(4 << 30),
        description="What `cache/` in the data folder may grow to, where decoded frames are kept (`4GiB`, `500MB`); "
        "0: nothing is kept.",
    )
    s3_root: Path | None = Field(None, description="Import jobs: `s3://bucket/key` is `bucket/key` in this folder.")
    s3_endpoint_url: str | None = Field(
        None, pattern=r"^https?://[^?#]+$", description="Import jobs: an S3-compatible endpoint instead."
    )
    region: str = Field("us-east-1", min_length=1, description="In ARNs and in the signing scope.")
    account: str = Field("123456789012", pattern=r"^[0-9]{12}$", description="In ARNs.")
    http: HttpSettings = HttpSettings()
    dimse: DimseSettings = DimseSettings()
    auth: AuthSettings = AuthSettings()
    store: StoreSettings = StoreSettings()
    sweep: SweepSettings = SweepSettings()
    qido: QidoSettings = QidoSettings()
    hi: HiSettings = HiSettings()
    webhook: WebhookSettings = WebhookSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _is_not_exposed(self) -> Self:
        listen = self.http.listen
        if not (listen.is_loopback or self.auth.is_closed or self.auth.insecure):
            raise ValueError(
                f"http.listen {listen} can be reached from other machines, and no credentials are set.\n"
                "Add these two lines to the configuration file:\n"
                f'  [auth]\n  tokens = [{{ token = "{secrets.token_urlsafe(24)}", principal = "pacs" }}]\n'
                "or, where the network itself is trusted, start with --insecure"
            )
        return self

    @model_validator(mode="after")
    def _buckets_are_one(self) -> Self:
        if self.s3_root is not None and self.s3_endpoint_url is not None:
            raise ValueError("s3_root and s3_endpoint_url exclude each other: give one of them")
        return self

    @property
    def unknown_callers(self) -> Literal["all", "store", "none"]:
        """What DIMSE callers outside the peer table may do, the default worked out (AET-02)."""
        return self.dimse.unknown_callers or ("all" if self.dimse.listen.is_loopback else "store")

    @property
    def cors_origins(self) -> tuple[str, ...]:
        """Origins that browsers may call from, the default worked out."""
        if self.http.cors_origins is None:
            return () if self.auth.is_closed else ("*",)
        return self.http.cors_origins

    def masked(self) -> dict[str, Any]:
        """The tree for people: JSON values, every secret replaced."""
        tree: dict[str, Any] = _plain(self.model_dump(by_alias=True), lambda _: MASK)
        return tree

    def to_json(self) -> bytes:
        """The tree with its secrets, for a process of our own."""
        return orjson.dumps(_plain(self.model_dump(by_alias=True), SecretStr.get_secret_value))

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """What `to_json` wrote."""
        return cls.model_validate_json(text)


def seconds(duration: str) -> int:
    """What a `Duration` says."""
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[duration[-1]]


def load(
    config: Path | None = None, flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """The effective settings. `flags` are `dotted.name -> value`; None counts as not given.

    Raises InvalidInput with one line for each fault: the setting, its name in the environment, what it must be.
    """
    tree: dict[str, Any] = {}
    if config is not None:
        _merge(tree, _read_toml(config))
    for path, value in _from_environment(os.environ if environ is None else environ):
        _merge(tree, _nest(path, value))
    for name, value in (flags or {}).items():
        if value is not None:
            _merge(tree, _nest(name.split("."), value))
    try:
        return Settings.model_validate(tree)
    except ValidationError as fault:
        raise InvalidInput("\n".join(_fault_line(error["loc"], error["msg"]) for error in fault.errors())) from None


def unknown_names(environ: Mapping[str, str]) -> list[str]:
    """Names in the environment that look like settings and are none: typing mistakes, mostly."""
    return sorted(name for name in environ if _is_ours(name) and not _is_setting(_path_of(name)))


def leaves(branch: type[BaseModel] = Settings, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every setting: its path in the tree and its field, in the order of declaration."""
    for name, field in branch.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Branch):
            yield from leaves(field.annotation, (*path, name))
        else:
            yield (*path, name), field


def environment_name(path: tuple[str, ...]) -> str:
    """`("http", "listen")` is `GATEWAY_HTTP__LISTEN`."""
    return PREFIX + "__".join(path).upper()


def _is_ours(name: str) -> bool:
    return name.startswith(PREFIX) and not name.startswith(_NOT_SETTINGS)


def _path_of(name: str) -> tuple[str, ...]:
    return tuple(name.removeprefix(PREFIX).removesuffix("_FILE").lower().split("__"))


def _is_setting(path: tuple[str, ...]) -> bool:
    return any(path == known for known, _ in leaves())


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, text in environ.items():
        if _is_ours(name) and _is_setting(_path_of(name)):
            if name.endswith("_FILE"):
                try:
                    text = Path(text).read_text(encoding="utf-8").strip()
                except (OSError, UnicodeDecodeError) as fault:
                    raise InvalidInput(f"{name}: its file cannot be read ({type(fault).__name__})") from None
            yield _path_of(name), _from_text(text)


def _from_text(text: str) -> Any:
    """Lists and objects come as JSON; all else is text, also `[::1]:8080`."""
    if text[:1] in ("[", "{"):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            return text
    return text


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise InvalidInput(f"{path}: the configuration file cannot be read: {fault.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise InvalidInput(f"{path}: the configuration file is not TOML: {fault}") from None


def _nest(path: tuple[str, ...] | list[str], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    nested: dict[str, Any] = value
    return nested


def _merge(tree: dict[str, Any], later: Mapping[str, Any], path: tuple[str, ...] = ()) -> None:
    """Branches are merged, settings replaced as a whole."""
    for name, value in later.items():
        here = (*path, name)
        if isinstance(value, Mapping) and isinstance(tree.get(name), dict) and not _is_setting(here):
            _merge(tree[name], value, here)
        else:
            tree[name] = dict(value) if isinstance(value, Mapping) else value


def _plain(value: Any, secret: Callable[[SecretStr], str]) -> Any:
    if isinstance(value, SecretStr):
        return secret(value)
    if isinstance(value, dict):
        return {key: _plain(member, secret) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(member, secret) for member in value]
    return str(value) if isinstance(value, Path) else value


def _fault_line(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    path = tuple(str(step) for step in location)
    known = next((path[:length] for length in range(len(path), 0, -1) if _is_setting(path[:length])), None)
    if known is None:
        return f"{'.'.join(path)}: {message}" if path else message
    return f"{'.'.join(path)} ({environment_name(known)}): {message}"
