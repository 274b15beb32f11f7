"""state.db over an upgrade, a migration that fails, and an older llmd: what stays, what is lost and what is told."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils import Database, Migrations

from llmd.daemon.errors import Unavailable
from llmd.daemon.state import database, tables, versions
from llmd.daemon.state.records import Form, Info
from llmd.daemon.state.store import Store

NOW = tables.VERSION
INFO = Info(file_type="Q8_0")


def table(db: Database) -> None:
    db.execute("CREATE TABLE licences (model TEXT PRIMARY KEY REFERENCES models (name)) STRICT")


def renamed(db: Database) -> None:
    db.execute("ALTER TABLE principals RENAME COLUMN role TO may")


def fails(db: Database) -> None:
    db.execute("DROP TABLE deployments")
    db.execute("SELECT none FROM nowhere")


@pytest.fixture
def next_llmd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[Database], None]], pytest.MonkeyPatch]]:
    """Makes this llmd the next version, with one more migration."""

    def install(migration: Callable[[Database], None]) -> pytest.MonkeyPatch:
        def both(db: Database) -> None:
            migration(db)
            db.execute(f"PRAGMA user_version = {NOW + 1}")

        more = Migrations("state")
        for one in tables.MIGRATIONS._migrations:
            more(name=one.name)(one.fn)
        more(name="next")(both)
        monkeypatch.setattr(database, "MIGRATIONS", more)
        monkeypatch.setattr(database, "VERSION", NOW + 1)
        return monkeypatch

    yield install


def begun(file: Path) -> None:
    db = Store(file)
    db.add_model("old", "d", 1, "x", INFO)
    db.add_model("kept", "k", 1, "x", INFO)
    for model in ("old", "kept"):
        db.set_deployment(model)
    for name, role in (("ann", "admin"), ("bob", "infer")):
        db.add_client(name, role, f"{name}1", 0, 1)
    db.add_policy(1, "old", "me")
    db.close()


def went_on(file: Path) -> None:
    """What the next version did before somebody went back."""
    db = Store(file)
    db.add_model("new", "e", 1, "x", INFO)
    db.set_deployment("new")
    db.remove_deployment("old")
    db.set_deployment("kept", 512)
    db.add_form(Form("kept", "Q4_0", "f", 1, INFO))
    db.set_role("ann", "infer")
    db.add_client("cat", "infer", "cat1", 0, 1)
    db.add_certificate("bob2", "bob", 0, 1)
    db.mark_revoked({"bob1": 5.0})
    db.add_policy(2, "new", "me")
    db.close()


def test_an_upgrade_keeps_a_copy(tmp_path: Path, next_llmd: Callable[..., pytest.MonkeyPatch]) -> None:
    file = tmp_path / "state.db"
    begun(file)
    assert not list(tmp_path.glob("*.v*")), "a file that was made or is current needs none"
    next_llmd(table)
    Store(file).close()
    kept = versions.copy(file, NOW)
    assert kept.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(kept)) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == NOW
        assert db.execute("SELECT name FROM models").fetchall() == [("kept",), ("old",)]
    before = kept.read_bytes()
    Store(file).close()
    assert kept.read_bytes() == before, "the second start migrates nothing"


def test_a_migration_that_fails_leaves_what_was(tmp_path: Path, next_llmd: Callable[..., pytest.MonkeyPatch]) -> None:
    file = tmp_path / "state.db"
    begun(file)
    patch = next_llmd(fails)
    for _ in range(2):
        with pytest.raises(Unavailable, match="from version .*it is as it was, install the earlier llmd again"):
            Store(file)
    patch.undo()
    again = Store(file)
    assert again.restored is None
    assert [d.model for d in again.deployments()] == ["kept", "old"] and len(again.principals()) == 2
    again.close()


def test_going_back_keeps_who_may_do_what(tmp_path: Path, next_llmd: Callable[..., pytest.MonkeyPatch]) -> None:
    file = tmp_path / "state.db"
    begun(file)
    patch = next_llmd(table)
    went_on(file)
    patch.undo()
    older = Store(file)
    assert older.restored and older.restored.lost == (
        "model new", "form kept@Q4_0", "deployment of new", "the end of deployment of old",
        "a change of deployment of kept",
    )  # fmt: skip
    assert {p.name: p.role for p in older.principals()} == {"ann": "infer", "bob": "infer", "cat": "infer"}
    assert {c.serial: c.revoked_at for c in older.certificates()} == {
        "ann1": None, "bob1": 5.0, "bob2": None, "cat1": None,
    }  # fmt: skip
    assert [m.name for m in older.models()] == ["kept", "old"] and len(older.deployments()) == 2
    assert [(p.version, p.text) for p in older.policies()] == [(1, "old"), (2, "new")]
    older.close()
    assert versions.copy(file, NOW + 1).exists(), "the newer file is kept"
    once = Store(file)
    assert once.restored is None, "it is told once"
    once.close()
    # and forward again
    next_llmd(table)
    again = Store(file)
    assert len(again.principals()) == 3
    again.close()


def test_a_newer_file_that_cannot_be_read_is_told(tmp_path: Path, next_llmd: Callable[..., pytest.MonkeyPatch]) -> None:
    file = tmp_path / "state.db"
    begun(file)
    patch = next_llmd(renamed)
    Store(file).close()
    with sqlite3.connect(file) as db:
        db.execute("DROP TABLE forms")
        db.execute("DROP TABLE deployments")
        db.execute("DROP TABLE models")
    db.close()
    patch.undo()
    older = Store(file)
    assert older.restored
    told = str(older.restored)
    assert "clients, certificates, roles and policies" in told and "each model since" in told
    assert [p.name for p in older.principals()] == ["ann", "bob"]
    older.close()


def test_a_copy_is_never_half(
    tmp_path: Path, next_llmd: Callable[..., pytest.MonkeyPatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off at any step, the next start does it again."""
    file = tmp_path / "state.db"
    begun(file)
    patch = next_llmd(table)
    went_on(file)
    patch.undo()
    put = versions._put
    for cut in (1, 2):
        calls = 0

        def dies(part: Path, target: Path, at: int = cut) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt
            put(part, target)

        with monkeypatch.context() as m:
            m.setattr(versions, "_put", dies)
            with pytest.raises(KeyboardInterrupt):
                Store(file)
    older = Store(file)
    assert older.restored and "model new" in older.restored.lost
    older.close()
    assert not list(tmp_path.glob("*.part"))
