"""Settings of the service: file, environment and flags, and rejected values."""

from pathlib import Path
from typing import Any

import pytest

from dalle.errors import ConfigError, DalleError
from serving.__main__ import _all_cores, _settings
from serving.ingress.callers import Callers, Key, read_keys
from serving.model_settings import ModelSettings
from serving.settings import LimitSettings, Settings, load_settings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DALLE_SERVE_CONFIG", "")  # set, so that it is restored after a flag has changed it


def test_defaults_are_a_service_for_this_machine() -> None:
    settings = load_settings({})
    assert settings.host == "127.0.0.1" and settings.port == 8000
    assert [model.id for model in settings.models] == ["emoji"]
    assert settings.cors_origins == () and settings.keys_file is None and not settings.log_prompts


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:8000"), ("::1", "http://[::1]:8000"), ("localhost", "http://localhost:8000")],
)
def test_an_ipv6_address_is_in_brackets(host: str, url: str) -> None:
    assert load_settings({"host": host}).url == url


def test_flags_win_over_the_environment_and_both_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("port: 1001\nstore_seconds: 5\nlimits: {max_n: 2, deadline: 7}\nhost: 127.0.0.2\n")
    monkeypatch.setenv("DALLE_SERVE_PORT", "1002")
    monkeypatch.setenv("DALLE_SERVE_LIMITS__MAX_N", "3")
    settings = _settings(["--config", str(file), "--port", "1003"])
    assert (settings.port, settings.limits.max_n, settings.limits.deadline) == (1003, 3, 7)
    assert (settings.host, settings.store_seconds) == ("127.0.0.2", 5)
    assert _settings(["--config", str(file)]).port == 1002
    assert _settings([f"--config={file}"]).port == 1002


def test_models_by_flag_and_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [model.path for model in _settings(["--model", "emoji", "--model", "/models/birds"]).models] == [
        "emoji",
        "/models/birds",
    ]
    monkeypatch.setenv("DALLE_SERVE_MODELS", '[{"path": "/models/birds", "num_slots": 16, "mode": "fast"}]')
    (model,) = _settings([]).models
    assert (model.id, model.num_slots, model.mode) == ("birds", 16, "fast")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": 0}, "port: Input should be greater than or equal to 1"),
        ({"prot": 8000}, "prot: Extra inputs are not permitted"),
        ({"models": []}, "models: "),
        ({"models": [{"path": "a/b"}, {"path": "c/b"}]}, "models have the names b, b; each needs its own"),
        ({"models": [{"num_slots": 1}]}, r"models.0.num_slots: "),
        ({"models": [{"name": "a b"}]}, "a name has letters"),
        ({"models": [{"min_replicas": 3, "max_replicas": 2}]}, "max_replicas is 2; it must be at least min_replicas"),
        ({"limits": {"rate": "often"}}, "rate is 'often'; it must be like 60/minute"),
        ({"limits": {"deadline": 0}}, "limits.deadline: "),
        ({"idle_unload": "soon"}, "idle_unload: the duration is 'soon'; it must be like 90s, 10m or 1h30m, or off"),
        ({"idle_unload": ""}, "idle_unload: the duration is ''; it must be like 90s"),
        ({"idle_unload": "-5m"}, "idle_unload: the duration is '-5m'; it must be like 90s"),
        ({"idle_unload": "5s"}, "idle_unload: idle_unload is 5 s; it must be at least 15 s, or off"),
        (
            {"models": [{"idle_unload": -1}]},
            "models.0.idle_unload: idle_unload is -1 s; it must be at least 15 s, or off",
        ),
        ({"limits": {"deadline": float("inf")}}, "limits.deadline: "),
        ({"store_seconds": float("inf")}, "store_seconds: "),
        ({"cors_origins": ["example.org"]}, "cors_origins.0: 'example.org' is no origin, such as https://example.org"),
        ({"cors_origins": ["https://example.org/"]}, "is no origin"),
        ({"cors_origins": ["https://Example.org"]}, "is no origin"),
        ({"public_url": "example.org"}, "public_url: 'example.org' is no base URL"),
    ],
)
def test_an_invalid_setting_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(values)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *(("10m", 600), ("90s", 90), ("90", 90), (90, 90), (22.5, 22.5), ("1h30m", 5400), ("1.5h", 5400)),
        *((" 2M ", 120), ("1h0m5s", 3605), ("off", None), ("0", None), (False, None)),
    ],
)
def test_a_model_is_unloaded_after_a_duration(value: object, seconds: float | None) -> None:
    settings = load_settings({"models": [{"path": "a", "idle_unload": value}, {"path": "b"}], "idle_unload": "1h"})
    assert [settings.idle_seconds(model) for model in settings.models] == [seconds, 3600]
    assert Settings(**settings.model_dump(mode="json")) == settings


def test_no_model_is_unloaded_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings({})
    assert settings.idle_seconds(settings.models[0]) is None and settings.request_seconds == settings.limits.deadline
    (tmp_path / "settings.yaml").write_text("idle_unload: 10m\nmodels: [{path: a}, {path: b, idle_unload: off}]\n")
    monkeypatch.setenv("DALLE_SERVE_CONFIG", str(tmp_path / "settings.yaml"))
    both = load_settings({})
    assert [both.idle_seconds(model) for model in both.models] == [600, None]
    assert both.request_seconds > both.limits.deadline, "a request waits for its model too"
    flags = _settings(["--model", "a", "--idle-unload", "2m"])
    assert flags.idle_seconds(flags.models[0]) == 120


@pytest.mark.parametrize(
    "origin", ["*", "null", "http://localhost:3000", "https://[::1]:8000", "chrome-extension://ab"]
)
def test_origins_as_browsers_send_them_are_taken(origin: str) -> None:
    assert load_settings({"cors_origins": [origin]}).cors_origins == (origin,)


def test_an_invalid_flag_or_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DalleError, match="port: Input should be a valid integer"):
        _settings(["--port", "many"])
    with pytest.raises(DalleError, match="there is no such file"):
        _settings(["--config", str(tmp_path / "nothing.yaml")])


def test_batches_are_kept_in_the_store_or_a_folder_of_their_own() -> None:
    for values, folder in (
        ({}, None),
        ({"store": "/s"}, Path("/s/batches")),
        ({"store": "/s", "batches": "/b"}, Path("/b")),
    ):
        assert load_settings(values).batches_folder == folder


def test_settings_round_trip_through_json() -> None:
    settings = load_settings(
        {"store": "/pictures", "limits": {"max_n": 3}, "models": [{"path": "emoji", "threads": 2}]}
    )
    assert Settings(**settings.model_dump(mode="json")) == settings


def test_a_model_gets_the_cores_of_the_machine_unless_it_says_how_many() -> None:
    settings = load_settings({"models": [{"path": "a"}, {"path": "b", "num_cpus": 3}]})
    assert [model.num_cpus for model in _all_cores(settings, 8).models] == [5, 3]
    assert _all_cores(load_settings({}), 1).models == (ModelSettings(num_cpus=1),)
    three = load_settings({"models": [{"path": name} for name in "abc"]})
    assert [model.num_cpus for model in _all_cores(three, 2).models] == [0.66] * 3
    for num_cpus in (3, 2):
        with pytest.raises(ConfigError, match=f"take 3 CPUs, and this machine has {num_cpus}"):
            _all_cores(settings, num_cpus)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("alice", "line 1: expected NAME KEY"),
        ("alice short", "at least 16 characters"),
        ("alice aaaaaaaaaaaaaaaa\nalice bbbbbbbbbbbbbbbb", "line 2: alice has a key already"),
        ("# nobody\n", "has no keys"),
    ],
)
def test_a_key_file_is_read_strictly(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_keys(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "nothing")
    assert read_keys(None) is None


def test_a_key_has_one_turn_whatever_users_it_names_unless_it_is_trusted() -> None:
    keys = {name: Key(digest=b"", trusted=name == "webui") for name in ("alice", "webui")}
    with_keys, without = Callers(keys, LimitSettings()), Callers(None, LimitSettings())
    assert with_keys.turn("alice", "one") == with_keys.turn("alice", "another") == with_keys.turn("alice", None)
    assert len({with_keys.turn("webui", user) for user in ("one", "another", None)}) == 3
    assert len({without.turn("10.0.0.1", user) for user in ("one", "another", None)}) == 3
