"""T: streams whose clients behave as no client should. Every row names the test that covers it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTOCOL, STREAMS, MAIN = (
    "tests/api/http/test_protocol.py",
    "tests/api/http/test_streams.py",
    "tests/daemon/test_main.py",
)
OUTPUT = "tests/daemon/engine/test_output.py"
ROWS = {
    "T1 never reads": (PROTOCOL, "test_a_client_that_takes_nothing_is_cut_on_every_route"),
    "T2 reads a byte a second": (PROTOCOL, "test_a_client_that_takes_nothing_is_cut_on_every_route"),
    "T3 leaves before, amid and after": (MAIN, "test_two_hundred_streams_opened_and_left_leave_nothing"),
    "T4 many streams opened and left": (MAIN, "test_two_hundred_streams_opened_and_left_leave_nothing"),
    "T6 a stop string across tokens": (OUTPUT, "test_a_stop_string_split_across_tokens_is_never_seen"),
    "T6 a character across tokens": (OUTPUT, "test_a_character_split_across_tokens_comes_whole"),
    "T7 revoked amid a stream": (MAIN, "test_a_revoked_clients_stream_ends_and_it_stays_out"),
    "T8 taken out of service amid a stream": (
        "tests/daemon/serving/test_worker.py",
        "test_undeploy_lets_running_requests_finish_and_ends_the_process",
    ),
    "a machine that is gone": ("tests/daemon/test_vanished.py", "test_a_client_that_vanished_holds_nothing"),
}


@pytest.mark.parametrize("row", ROWS)
def test_t(row: str) -> None:
    file, name = ROWS[row]
    assert f"def {name}" in (ROOT / file).read_text()
