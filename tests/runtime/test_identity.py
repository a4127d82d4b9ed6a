"""The instance number of a process, as a user gives it."""

from __future__ import annotations

import pytest

from dynamometer.runtime.identity import hexadecimal, new_id, parse_id


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7),
        (" 7 ", 7),
        ("0x1f", 31),
        ("0X1F", 31),
        ("18446744073709551615", 2**64 - 1),
        ("0xffffffffffffffff", 2**64 - 1),
        ("00000000000000ab", 0xAB),
        ("1234567890123456", 0x1234567890123456),  # 16 digits, as on pages
    ],
)
def test_a_number_is_decimal_or_hexadecimal(text: str, number: int) -> None:
    assert parse_id(text) == number


def test_the_digits_on_pages_are_the_number_itself() -> None:
    number = new_id()
    assert parse_id(hexadecimal(number)) == number


@pytest.mark.parametrize("name", ["sglang-0", "worker-7f9c-x2x", "cafe", "1.5", "größer", "a b"])
def test_a_name_is_hashed_to_the_same_number_everywhere(name: str) -> None:
    assert parse_id(name) == parse_id(name)
    assert 1 <= parse_id(name) < 2**64
    assert parse_id(name) != parse_id(name + "x")


def test_the_number_of_a_name_never_changes() -> None:
    # Series of a fleet would change their label with a release of this project.
    assert hexadecimal(parse_id("sglang-0")) == "a93f1e5db1f3e9cf"


@pytest.mark.parametrize(
    "text", ["0", "0x0", "-1", "+0", "18446744073709551616", "0x" + "f" * 17, "1" * 5000]
)
def test_a_number_outside_the_range_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="from 1 to 18446744073709551615"):
        parse_id(text)


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "a\x00"])
def test_text_that_cannot_be_a_name_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="must be a number or a name"):
        parse_id(text)


@pytest.mark.parametrize("text", ["$(POD_NAME)", "${POD_NAME}"])
def test_a_variable_that_was_not_replaced_is_an_error(text: str) -> None:
    # Kubernetes passes the text unchanged if the variable is not defined.
    with pytest.raises(ValueError, match="a variable that was not replaced"):
        parse_id(text)
