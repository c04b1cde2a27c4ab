"""The settings tree: where values come from, what is refused, and how it is told."""

from pathlib import Path

import pytest

from gateway.domain.errors import InvalidInput
from gateway.settings import Address, Settings, leaves, load, unknown_names


def test_defaults_are_those_of_the_public_face() -> None:
    settings = load(environ={})
    assert str(settings.data) == "gateway-data"
    assert str(settings.http.listen) == "127.0.0.1:8080"
    assert str(settings.dimse.listen) == "127.0.0.1:11112"
    assert (settings.dimse.aet, settings.workers, settings.backend) == ("GATEWAY", 1, "embedded")
    assert (settings.region, settings.account, settings.qido.empty) == ("us-east-1", "123456789012", 200)


def test_file_then_environment_then_flags(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('workers = 2\nregion = "eu-west-1"\n[http]\nlisten = "127.0.0.1:1"\n[dimse]\naet = "FILE"\n')
    environ = {"GATEWAY_WORKERS": "3", "GATEWAY_DIMSE__AET": "ENV"}
    settings = load(config, {"workers": 4, "dimse.listen": None}, environ)
    assert settings.workers == 4
    assert settings.dimse.aet == "ENV"
    assert settings.region == "eu-west-1"
    assert settings.http.listen == Address("127.0.0.1", 1)


def test_lists_are_json_and_secrets_may_lie_in_files(tmp_path: Path) -> None:
    secret = tmp_path / "tokens"
    secret.write_text('[{"token": "s3cret", "principal": "viewer"}]\n')
    settings = load(
        environ={
            "GATEWAY_AUTH__TOKENS_FILE": str(secret),
            "GATEWAY_DIMSE__PEERS": '[{"title": "MOD", "host": "10.0.0.1", "port": 104, "cidr": "10.0.0.0/8"}]',
            "GATEWAY_AUTH__CREDENTIALS": '[{"accessKeyId": "A", "secretAccessKey": "k3y", "principal": "p"}]',
        }
    )
    assert settings.auth.tokens[0].token.get_secret_value() == "s3cret"
    assert settings.dimse.peers[0].port == 104
    assert settings.auth.credentials[0].access_key_id == "A"
    assert settings.auth.is_closed


def test_masked_and_printed_trees_hold_no_secret() -> None:
    settings = load(
        environ={
            "GATEWAY_AUTH__BASIC": '[{"user": "u", "password": "hunter2"}]',
            "GATEWAY_DATABASE_URL": "postgresql+psycopg://u:hunter2@h/d",
        }
    )
    assert "hunter2" not in str(settings.masked())
    assert "hunter2" not in repr(settings)
    assert Settings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"GATEWAY_WORKERS": "many"}, "workers (GATEWAY_WORKERS): "),
        ({"GATEWAY_HTTP__LISTEN": "8080"}, "must be HOST:PORT"),
        ({"GATEWAY_HTTP__LISTEN": "::1:8080"}, "in brackets"),
        ({"GATEWAY_AUTH__TOKENS": "[{not json"}, "auth.tokens (GATEWAY_AUTH__TOKENS)"),
        ({"GATEWAY_AUTH__TOKENS_FILE": "/nowhere/at/all"}, "GATEWAY_AUTH__TOKENS_FILE: its file cannot be read"),
        ({"GATEWAY_DIMSE__AET": "A" * 17}, "dimse.aet (GATEWAY_DIMSE__AET)"),
        ({"GATEWAY_HTTP__TLS_CERT": "c.pem"}, "tls_cert and tls_key go together"),
        ({"GATEWAY_QIDO__EMPTY": "404"}, "qido.empty (GATEWAY_QIDO__EMPTY)"),
    ],
)
def test_what_is_wrong_is_named_with_its_setting(environ: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        load(environ=environ)
    assert said in refusal.value.detail


def test_a_wrong_secret_is_not_quoted() -> None:
    with pytest.raises(InvalidInput) as refusal:
        load(environ={"GATEWAY_AUTH__TOKENS": '[{"token": "hunter2", "principal": ["hunter2"]}]'})
    assert "hunter2" not in refusal.value.detail


def test_listening_to_the_network_without_credentials_is_refused_with_the_lines_to_add(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as refusal:
        load(environ={"GATEWAY_HTTP__LISTEN": "0.0.0.0:8080"})
    lines = [line.strip() for line in refusal.value.detail.splitlines()]
    start = lines.index("[auth]")
    config = tmp_path / "gateway.toml"
    config.write_text("\n".join(lines[start : start + 2]))
    assert load(config, environ={"GATEWAY_HTTP__LISTEN": "0.0.0.0:8080"}).auth.is_closed
    assert load(environ={"GATEWAY_HTTP__LISTEN": "0.0.0.0:8080", "GATEWAY_AUTH__INSECURE": "true"})


@pytest.mark.parametrize(
    ("listen", "is_loopback"),
    [("127.0.0.1:1", True), ("localhost:1", True), ("[::1]:1", True), ("127.8.8.8:1", True), (":1", False)],
)
def test_loopback(listen: str, is_loopback: bool) -> None:
    assert Address.parse(listen).is_loopback is is_loopback


def test_unknown_callers_and_cors_depend_on_the_rest() -> None:
    assert load(environ={}).unknown_callers == "all"
    assert load(environ={"GATEWAY_DIMSE__LISTEN": "0.0.0.0:104"}).unknown_callers == "store"
    assert load(environ={}).cors_origins == ("*",)
    closed = {"GATEWAY_AUTH__TOKENS": '[{"token": "t", "principal": "p"}]'}
    assert load(environ=closed).cors_origins == ()


def test_a_file_with_an_unknown_setting_is_refused_and_a_misspelt_variable_is_found(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text("[http]\nlisten_on = 1\n")
    with pytest.raises(InvalidInput, match=r"http\.listen_on"):
        load(config, environ={})
    names = {"GATEWAY_DATAA": "x", "GATEWAY_DATA": "x", "GATEWAY_TEST_DATA": "x", "GATEWAY_DATABASE_URL_FILE": "x"}
    assert unknown_names(names) == ["GATEWAY_DATAA"]


def test_every_setting_is_described_and_frozen() -> None:
    assert not [path for path, field in leaves() if not field.description]
    with pytest.raises(ValueError, match="frozen"):
        load(environ={}).workers = 2
