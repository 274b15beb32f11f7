"""O: settings, commands and the admin socket. Every row names the test that covers it, or why none does."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLI, CONNECTION, MAIN = "tests/api/cli/test_cli.py", "tests/api/cli/test_connection.py", "tests/daemon/test_main.py"
ROWS = {
    "O1 settings that are wrong": (MAIN, "test_bad_settings_are_one_line_with_file_and_line"),
    "O1 a reload keeps what works": (MAIN, "test_a_reload_by_signal_keeps_serving"),
    "O5 two daemons": (MAIN, "test_a_second_daemon_on_the_same_state_is_refused"),
    "O8 a daemon that is dead": (CLI, "test_without_a_daemon_it_says_so"),
    "O8 a daemon that goes away": (CONNECTION, "test_an_answer_that_is_cut_off_is_a_sentence"),
    "a stop while it starts": (MAIN, "test_sigterm_is_heard_during_the_first_import"),
    "a log that nobody reads": ("tests/daemon/test_logs.py", "test_the_daemon_serves_while_nobody_reads_its_log"),
}
REASONS = {
    "O3 a configuration of 1 GB, or a link": "it is root's file: whoever can write it can do more than that",
    "O7 the environment under the unit": "there is no unit yet; children get the names that daemon/children.py lists",
}


@pytest.mark.parametrize("row", ROWS)
def test_o(row: str) -> None:
    file, name = ROWS[row]
    assert f"def {name}(" in (ROOT / file).read_text()
