from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dynamometer import settings
from dynamometer.errors import SettingsError
from dynamometer.variables import BUCKETS, FRONTEND_PATHS, VARIABLES, BucketRange


def test_an_empty_environment_has_the_defaults() -> None:
    assert settings.read({}) == settings.Settings()
    assert settings.read({"DYN_SYSTEM_PORT": " "}) == settings.Settings()


def test_values_are_typed() -> None:
    read = settings.read(
        {
            "DYN_SYSTEM_PORT": "-1",
            "DYN_HTTP_PORT": "9000",
            "DYN_NAMESPACE": "prod",
            "DYN_FILE_KV": "/x",
            "DYN_LOG": "debug,h2=off",
            "DYN_LOGGING_JSONL": "true",
        }
    )
    assert (read.system_port, read.http_port, read.namespace) == (-1, 9000, "prod")
    assert (read.discovery_directory, read.log_level, read.log_json) == (Path("/x"), "debug", True)


def test_questions_to_an_engine_have_the_names_of_nvidia_dynamo() -> None:
    assert settings.read({}).health_check == settings.HealthCheckSettings(
        enabled=True, wait_seconds=10, request_seconds=3
    )
    environment = {
        "DYN_HEALTH_CHECK_ENABLED": "false",
        "DYN_CANARY_WAIT_TIME": "2.5",
        "DYN_HEALTH_CHECK_REQUEST_TIMEOUT": "1",
    }
    assert settings.read(environment).health_check == settings.HealthCheckSettings(
        enabled=False, wait_seconds=2.5, request_seconds=1
    )


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("DYN_SYSTEM_PORT", "-2", "-1 for none"),
        ("DYN_SYSTEM_PORT", "http", "a port"),
        ("DYN_SYSTEM_PORT", "8_099", "a port"),
        ("DYN_HTTP_PORT", "70000", "65535"),
        ("DYN_HTTP_PORT", "-1", "0 (any free one)"),
        ("DYN_NAMESPACE", 'a"b', "letters, digits"),
        ("DYN_SYSTEM_STARTING_HEALTH_STATUS", "healthy", "ready or notready"),
        ("DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS", "generate", '["generate"]'),
        ("DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS", '["generate", 1]', '["generate"]'),
        ("DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS", "{}", '["generate"]'),
        ("DYN_SYSTEM_HEALTH_PATH", "health", "a path"),
        ("DYN_SYSTEM_HEALTH_PATH", "/a/{b}", "a path"),
        ("DYN_SYSTEM_HEALTH_PATH", "/metrics", "not /metrics"),
        ("DYN_SYSTEM_LIVE_PATH", "/", "a path"),
        ("DYN_HEALTH_CHECK_ENABLED", "maybe", "1, true"),
        ("DYN_CANARY_WAIT_TIME", "0", "above 0"),
        ("DYN_CANARY_WAIT_TIME", "10s", "a number of seconds"),
        ("DYN_HEALTH_CHECK_REQUEST_TIMEOUT", "-1", "above 0"),
        ("DYN_LOG", "loud", "one of trace, debug"),
        ("DYN_LOGGING_JSONL", "perhaps", "1, true"),
    ],
)
def test_a_wrong_value_names_variable_value_and_what_is_allowed(
    variable: str, value: str, allowed: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        settings.read({variable: value})
    for part in (variable, repr(value), allowed):
        assert part in str(raised.value)


ODD = ["8_0", "+8", "\uff18", "٨", " 8", "8\n", "-0", "0x8", "", "nan", "inf", "1e400", "9" * 5000]


@pytest.mark.parametrize("value", [*ODD, "-1", "8.0", "1e1"])
@pytest.mark.parametrize("parse", [settings.port, settings.system_port, settings.count])
def test_a_whole_number_has_only_ascii_digits(parse: Callable[[str], int], value: str) -> None:
    if (parse, value) == (settings.system_port, "-1"):
        assert parse(value) == -1
        return
    with pytest.raises(ValueError, match=r"^must be a (port|whole number)"):
        parse(value)


def test_a_bound_is_at_least_one() -> None:
    assert settings.bound("1") == 1
    for wrong in ("0", "-1", ""):
        with pytest.raises(ValueError, match="must be a whole number, 1 or more"):
            settings.bound(wrong)


@pytest.mark.parametrize("value", [*(odd for odd in ODD if odd != "9" * 5000), "-1", "1e", "."])
@pytest.mark.parametrize(
    "parse",
    [
        settings.seconds,
        settings.positive_seconds,
        settings.rate,
        settings.fraction,
        settings.bucket_bound,
    ],
)
def test_a_number_is_ascii_decimal_and_has_no_sign(
    parse: Callable[[str], float], value: str
) -> None:
    with pytest.raises(ValueError, match=r"^must be a"):
        parse(value)


@pytest.mark.parametrize(
    ("text", "number"), [("10", 10), ("0.5", 0.5), (".5", 0.5), ("5.", 5), ("1e-3", 1e-3)]
)
def test_a_number_may_have_a_point_and_an_exponent(text: str, number: float) -> None:
    assert settings.seconds(text) == number


@pytest.mark.parametrize("value", ["abc", "0", "0.0", "-1", "inf"])
def test_each_wrong_rate_has_one_message(value: str) -> None:
    with pytest.raises(ValueError, match=r"^must be a number above 0$"):
        settings.rate(value)


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("*", "*"),
        ("https://chat.example", "https://chat.example"),
        ("HTTPS://Chat.Example:443", "https://chat.example"),
        ("http://localhost:80", "http://localhost"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_an_origin_is_as_browsers_send_it(text: str, origin: str) -> None:
    assert settings.origin(text) == origin


@pytest.mark.parametrize(
    "text",
    ["", "chat.example", "https://", "https://x/", "https://x/y", "ftp://x", "https://*.x",
     "https://u@x", "https://x:y", "https://x\r\nA: b", "null"],
)  # fmt: skip
def test_anything_else_is_not_an_origin(text: str) -> None:
    with pytest.raises(ValueError, match="an origin without a path"):
        settings.origin(text)


def test_origins_are_separated_by_spaces() -> None:
    with pytest.raises(ValueError, match="separate origins by spaces"):
        settings.origin("https://a.example,https://b.example")


def test_white_space_around_a_value_is_ignored() -> None:
    assert settings.read({"DYN_SYSTEM_PORT": " 8099\n"}).system_port == 8099


def test_health_and_live_have_two_paths() -> None:
    health, live = {"DYN_SYSTEM_HEALTH_PATH": "/x"}, {"DYN_SYSTEM_LIVE_PATH": "/x"}
    with pytest.raises(SettingsError, match="HEALTH_PATH='/x' and DYN_SYSTEM_LIVE_PATH='/x': "):
        settings.read(health | live)
    assert settings.read(health).health.live_path == "/live"


@pytest.mark.parametrize(
    ("variable", "value", "other"),
    [
        ("DYN_SYSTEM_LIVE_PATH", "/health", "DYN_SYSTEM_HEALTH_PATH"),
        ("DYN_SYSTEM_HEALTH_PATH", "/live", "DYN_SYSTEM_LIVE_PATH"),
    ],
)
def test_an_error_names_only_variables_that_are_set(variable: str, value: str, other: str) -> None:
    with pytest.raises(SettingsError, match=f"^{variable}='{value}': .* different paths") as raised:
        settings.read({variable: value})
    assert other not in str(raised.value)


def test_the_settings_of_health() -> None:
    read = settings.read(
        {
            "DYN_SYSTEM_STARTING_HEALTH_STATUS": "ready",
            "DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS": '["generate", "other", "generate"]',
            "DYN_SYSTEM_HEALTH_PATH": "/custom/health",
            "DYN_SYSTEM_LIVE_PATH": "/custom/live",
        }
    ).health
    assert read == settings.HealthSettings(
        ready_at_start=True,
        endpoints=("generate", "other"),
        path="/custom/health",
        live_path="/custom/live",
    )


@pytest.mark.parametrize(
    ("text", "bytes_"), [("4096", 4096), ("64MiB", 2**26), ("1 GB", 10**9), ("2k", 2048)]
)
def test_sizes(text: str, bytes_: int) -> None:
    assert settings.size(text) == bytes_


@pytest.mark.parametrize(
    "text", ["", "MiB", "0", "-1", "1.5MB", "12 parsecs", "1_0", "+1", "\uff18MB", "9" * 5000]
)
def test_an_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="number of bytes"):
        settings.size(text)


@pytest.mark.parametrize(
    "text", ["", "/", "health", "/health/", "//health", "/a b", "/a?b", "/a/{b}", "/../a", "/a/."]
)
def test_other_text_is_not_a_path(text: str) -> None:
    with pytest.raises(ValueError, match="must be a path such as /custom/health"):
        settings.route_path(text)


@pytest.mark.parametrize("text", ["/health", "/v1/health/ready", "/-/a.b_c~", "/.hidden", "/..."])
def test_paths(text: str) -> None:
    assert settings.route_path(text) == text


def test_a_variable_of_a_path_is_read() -> None:
    read = settings.read({"DYN_HTTP_SVC_HEALTH_PATH": "/healthz"}).frontend_paths
    assert read == {**FRONTEND_PATHS, "DYN_HTTP_SVC_HEALTH_PATH": "/healthz"}
    with pytest.raises(SettingsError, match=r"^DYN_HTTP_SVC_READY_PATH='ready': must be a path"):
        settings.read({"DYN_HTTP_SVC_READY_PATH": "ready"})


def test_a_misspelled_variable_is_distinguished_from_one_of_nvidia_dynamo() -> None:
    environment = {"DYN_SYSTEM_PROT": "1", "DYN_HTTP_PORT": "1", "DYN_TCP_RPC_HOST": "x"}
    environment["DYN_HTTP_SVC_CHAT_PATH"] = "/chat"
    assert settings.misspelled(environment) == [("DYN_SYSTEM_PROT", "DYN_SYSTEM_PORT")]


def test_buckets_and_prefix_are_read() -> None:
    read = settings.read(
        {
            "DYN_METRICS_PREFIX": "mine:frontend_1",
            "DYN_METRICS_TTFT_MIN": "0.01",
            "DYN_METRICS_TTFT_MAX": "1e1",
            "DYN_METRICS_TTFT_COUNT": "4",
            "DYN_METRICS_OUTPUT_SEQUENCE_COUNT": "512",
        }
    )
    default = settings.DEFAULT_BUCKET_RANGES
    assert read.metrics_prefix == "mine:frontend_1"
    assert read.bucket_ranges["time_to_first_token"] == BucketRange(0.01, 10.0, 4)
    assert read.bucket_ranges["output_sequence"] == replace(default["output_sequence"], count=512)
    assert read.bucket_ranges["request_duration"] == default["request_duration"]


@pytest.mark.parametrize("name", [buckets.variable for buckets in BUCKETS.values()])
@pytest.mark.parametrize(
    ("part", "value", "allowed"),
    [
        ("MIN", "0", "a number above 0"),
        ("MIN", "-1", "a number above 0"),
        ("MIN", "nan", "a number above 0"),
        ("MIN", "a little", "a number above 0"),
        ("MIN", "1e9", "must be below"),
        ("MAX", "inf", "a number above 0"),
        ("MAX", "1e999", "a number above 0"),
        ("MAX", "1e-9", "must be above"),
        ("COUNT", "0", "from 1 to 512"),
        ("COUNT", "513", "from 1 to 512"),
        ("COUNT", "-1", "from 1 to 512"),
        ("COUNT", "2.5", "from 1 to 512"),
        ("COUNT", "9" * 5000, "from 1 to 512"),
    ],
)
def test_a_wrong_bucket_range_names_variable_value_and_what_is_allowed(
    name: str, part: str, value: str, allowed: str
) -> None:
    variable = f"{name}_{part}"
    with pytest.raises(SettingsError) as raised:
        settings.read({variable: value})
    for text in (variable, repr(value), allowed):
        assert text in str(raised.value)


def test_a_reversed_range_names_both_ends() -> None:
    with pytest.raises(SettingsError, match=r"_ITL_MAX='2': must be above .*_ITL_MIN, 3"):
        settings.read({"DYN_METRICS_ITL_MIN": "3", "DYN_METRICS_ITL_MAX": "2"})
    with pytest.raises(SettingsError, match=r"_ITL_MIN='80': must be below .*_ITL_MAX, 80"):
        settings.read({"DYN_METRICS_ITL_MIN": "80"})


@pytest.mark.parametrize("prefix", ["1st", "my-frontend", "a b", "späť", "{}"])
def test_an_invalid_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(SettingsError, match=r"DYN_METRICS_PREFIX=.*a metric's name can begin"):
        settings.read({"DYN_METRICS_PREFIX": prefix})


def test_every_variable_that_is_read_is_listed() -> None:
    class Asked(dict[str, str]):
        def get(self, key: str, default: object = None) -> str:
            self[key] = ""
            return ""

    asked = Asked()
    settings.read(asked)
    assert set(asked) == set(VARIABLES)
