"""What is left of a client's limits, as its client library reads it; and the deadline that it sends."""

import pytest

from llmd.api.http import rates
from llmd.daemon.errors import BadRequest
from llmd.daemon.serving.quotas import NO_RATES, Rate, Rates


def test_headers_are_those_that_openais_clients_read() -> None:
    assert rates.headers(NO_RATES) == {}
    assert rates.headers(Rates(Rate(60, 59, 0.4), Rate(150_000, 0, 360.0))) == {
        "x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000", "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "6m0s",
    }  # fmt: skip
    assert rates.headers(Rates(Rate(1, 0, 3661.0)))["x-ratelimit-reset-requests"] == "1h1m1s"


def test_a_deadline_is_a_number_of_milliseconds() -> None:
    assert rates.deadline({}) is None and rates.deadline({"x-request-deadline-ms": "1500"}) == 1.5
    for wrong in ("", "0", "-1", "1.5", "1e3", "soon", "99999999999", "٣"):
        with pytest.raises(BadRequest, match="whole number of milliseconds"):
            rates.deadline({"x-request-deadline-ms": wrong})
