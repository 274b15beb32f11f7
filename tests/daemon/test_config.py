"""Every mistake in llmd.toml, or beside it, is one line that says where it is."""

import re
from pathlib import Path

import pytest

from llmd.daemon.config import Config, ConfigError, changes, load
from llmd.daemon.errors import MAX_GIVEN

# what the file holds, the line that is told, and words of what is told
MISTAKES = [
    ('evict = "no"', 1, "evict takes true or false"),
    ("\nevict = 1", 2, "evict takes true or false"),
    ("slots = true", 1, "slots takes a whole number"),
    ("slots = 3.0", 1, "slots takes a whole number"),
    ("slots = 1979-05-27", 1, "slots takes a whole number"),
    ("slots = 8\n\nqueue = -1", 3, "queue is -1; it takes 0 to 100000"),
    ("slots = " + "9" * 4000, 1, "slots is larger than that; it takes 1 to 256"),
    ("slots = 0x" + "f" * 5000, 1, "slots is larger than that"),
    ("slots = 257", 1, "slots is 257; it takes 1 to 256"),
    ("slots = 8\nbatch = " + "9" * 5000, 2, "too long or too deep"),
    ("listen = " + "[" * 5000, None, "too long or too deep"),
    ("[listen]\nhost = 1", 1, "listen takes a text"),
    ("[[listen]]\nhost = 1", 1, "listen takes a text"),
    ("listen.host = 1", 1, "listen takes a text"),
    ('server_names = "a.example"', 1, "server_names takes a list of texts"),
    ('server_names = [["a.example"]]', 1, "server_names takes a list of texts"),
    ("allowed_hosts = [1]", 1, "allowed_hosts takes a list of texts"),
    ('listen = "here"', 1, "it takes HOST:PORT"),
    ('listen = "::1:8443"', 1, "it takes HOST:PORT"),
    ('listen = "[fe80::1%eth0]:8443"', 1, "it takes HOST:PORT"),
    ('listen = "127.0.0.1:65536"', 1, "it takes HOST:PORT"),
    ('listen = "a\\u0000:1"', 1, "without control characters"),
    ('state_dir = "a\\u0000"', 1, "without control characters"),
    ('state_dir = ""', 1, "it takes a folder"),
    ('admin_socket = "a\\nb"', 1, "without control characters"),
    (f'server_names = ["{"a" * 64}.example"]', 1, "it takes DNS names and addresses"),
    ('server_names = ["a..example"]', 1, "it takes DNS names and addresses"),
    ('node = "Here"', 1, "node takes lower-case letters"),
    ('audit_on_failure = "ignore"', 1, 'takes "refuse" or "serve"'),
    ("slots 8", 1, "Expected '='"),
    ("slots = 8\nslots = 9", 2, "Cannot overwrite"),
    ("quue = 7", 1, "there is no setting 'quue'"),
    ("k" * 5000 + " = 7", 1, "there is no setting 'kkk"),
    ('listen = "' + "x" * 5000 + '"', 1, "it takes HOST:PORT"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "words"), MISTAKES)
def test_a_mistake_is_one_short_line_of_the_file(tmp_path: Path, text: str, line: int | None, words: str) -> None:
    file = tmp_path / "llmd.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load(file)
    at, said = re.fullmatch(rf"{re.escape(str(file))}(?::(\d+))?: (.*)", str(refused.value)).groups()  # type: ignore[union-attr]
    assert words in said and at == (line and str(line))
    assert len(said) <= MAX_GIVEN + 80


def test_the_file_is_utf_8_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "llmd.toml"
    file.write_bytes("﻿slots = 3\n".encode())
    assert load(file).slots == 3
    file.write_bytes("﻿slots = true\n".encode())
    with pytest.raises(ConfigError, match=r"llmd\.toml:1: slots takes"):
        load(file)
    file.write_bytes("slots = 3\n".encode("utf-16"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(file)


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "llmd.toml"
    file.write_text('listen = "127.0.0.1:1"\nstate_dir = "/there"\n')
    assert load(file, listen="127.0.0.1:2", state_dir=None) == Config(listen="127.0.0.1:2", state_dir="/there")
    with pytest.raises(ConfigError, match=r"^--listen: listen is 'here'; it takes HOST:PORT$"):
        load(file, listen="here")
    file.write_text("listen = 1\n")
    with pytest.raises(ConfigError, match=r"llmd\.toml:1: listen takes a text"):
        load(file, listen="127.0.0.1:2")
    with pytest.raises(ConfigError):
        load(tmp_path / "none.toml")


def test_a_port_of_the_kernels_choice_is_no_change() -> None:
    used = Config(listen="[::1]:0").at(40123)
    assert used.listen == "[::1]:40123" and used.url == "https://[::1]:40123" and used.at(5) is used
    assert changes(used, Config(listen="[::1]:0")) == (used, [], [])
    assert changes(used, Config(listen="127.0.0.1:0"))[2] == ["listen"]


@pytest.mark.parametrize("listen", ["127.0.0.1:8443", "[::1]:8443", "llm.example:443", "my_host:0", "0.0.0.0:1"])
def test_where_llmd_may_listen(tmp_path: Path, listen: str) -> None:
    file = tmp_path / "llmd.toml"
    file.write_text(f'listen = "{listen}"\nserver_names = ["*.example", "10.0.0.7", "fe80::1", "a_b.example"]\n')
    assert load(file).listen == listen
