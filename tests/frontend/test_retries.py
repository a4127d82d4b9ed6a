"""The budget of retries, by a clock that the test sets."""

from __future__ import annotations

import pytest

from dynamometer.frontend.retries import RetryBudget


def taken(budget: RetryBudget, now: float, most: int = 10**6) -> int:
    """Return how many retries the budget allows at once."""
    count = 0
    while count < most and budget.take(now):
        count += 1
    return count


def test_quiet_frontend_may_retry_a_few_requests() -> None:
    assert taken(RetryBudget(5.0), 5.0) == 10


def test_each_request_adds_a_tenth_of_a_retry() -> None:
    budget = RetryBudget(0.0)
    for _ in range(200):
        budget.add_request(0.0)
    assert taken(budget, 0.0) in (29, 30)


def test_retries_of_the_past_are_forgotten() -> None:
    budget = RetryBudget(0.0)
    assert taken(budget, 0.0) == 10
    assert taken(budget, 0.5) == 0
    assert taken(budget, 2.0) == 1
    assert taken(budget, 1000.0) in (9, 10)


def test_requests_of_the_past_are_forgotten() -> None:
    budget = RetryBudget(0.0)
    for _ in range(10_000):
        budget.add_request(0.0)
    assert taken(budget, 1000.0) in (9, 10)


@pytest.mark.parametrize("rate", [1, 10, 1000])
def test_retries_under_load_are_a_tenth_and_one_per_second(rate: int) -> None:
    """Every request needs a retry, for 100 seconds."""
    budget = RetryBudget(0.0)
    retries = 0
    for number in range(100 * rate):
        now = number / rate
        budget.add_request(now)
        retries += budget.take(now)
    assert 0.1 * 100 * rate <= retries <= 0.1 * 100 * rate + 10 + 100
