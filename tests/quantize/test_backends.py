"""Which GPUs an engine has code for."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from llmd.quantize import backends


@pytest.mark.parametrize(
    ("known", "runs", "does_not"),
    [
        (["90-real"], [(9, 0)], [(6, 1), (8, 0), (8, 9), (10, 0), (12, 0)]),
        (["80-real", "90-real"], [(8, 0), (8, 6), (8, 9), (9, 0)], [(7, 5), (10, 0)]),
        (["86-real"], [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        (["80-virtual"], [(8, 0), (8, 6), (9, 0), (12, 1)], [(6, 1), (7, 5)]),
        (["75", "120"], [(7, 5), (8, 0), (9, 0), (12, 0), (12, 1)], [(6, 1), (7, 0)]),
        (["90a"], [(9, 0)], [(8, 9), (10, 0)]),
        (["100f"], [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
        (["all-major"], [(5, 0), (12, 1)], []),
        (["90-real", "native"], [(6, 1)], []),
        ([], [(3, 5), (12, 1)], []),
    ],
)
def test_a_card_that_there_is_code_for(
    known: Sequence[str], runs: Sequence[tuple[int, int]], does_not: Sequence[tuple[int, int]]
) -> None:
    assert backends.has_code(known, None), "a driver that does not tell keeps no card out"
    assert [one for one in (*runs, *does_not) if backends.has_code(known, one)] == [*runs]


def test_the_engine_says_what_it_was_compiled_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "folder", lambda: tmp_path)
    assert backends.architectures() == ()
    (tmp_path / "libggml-cuda.architectures").write_text("80-real; 90\n")
    assert backends.architectures() == ("80-real", "90")
    (tmp_path / "libggml-cuda.architectures").write_bytes(b"\xff")
    assert backends.architectures() == ()
    monkeypatch.setattr(backends, "folder", lambda: None)
    assert backends.architectures() == ()
