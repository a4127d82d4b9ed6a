"""The worker's own flags."""

from __future__ import annotations

import pytest

from dynamometer.engines.sglang import SGLang
from dynamometer.worker.command import parser

DURATIONS = ("--hang-timeout", "--hang-restart", "--drain-timeout", "--drain-delay")


@pytest.mark.parametrize("flag", [*DURATIONS, "--restart-limit"])
@pytest.mark.parametrize("value", ["-1", "-0.5", "nan", "inf", "-inf", "1e999", "soon", "", "5s"])
def test_a_wrong_number_names_the_flag_and_the_value(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser("dyno sglang", [SGLang()]).parse_known_args([f"{flag}={value}"])
    assert ended.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {flag}: {value!r} must be a " in message


@pytest.mark.parametrize("flag", DURATIONS)
def test_a_negative_number_in_a_word_of_its_own_is_refused_too(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in ("-1", "-1e3", "-inf"):
        with pytest.raises(SystemExit):
            parser("dyno sglang", [SGLang()]).parse_known_args([flag, value])
        assert f"argument {flag}: " in capsys.readouterr().err
