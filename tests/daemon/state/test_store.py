"""state.db: what is kept, what is refused, what a damaged file says."""

import asyncio
import json
import sqlite3
import threading
from pathlib import Path

import pytest

from llmd.daemon.errors import Conflict, ModelNotFound, NoSpace, NotFound, Unavailable
from llmd.daemon.state.records import Converted, Form, Info, Made, Proof
from llmd.daemon.state.store import StateThread, Store
from llmd.daemon.state.tables import VERSION

INFO = Info(architecture="llama", parameters=7)


@pytest.fixture
def store() -> Store:
    now = iter(range(1000, 9000))
    return Store(None, clock=lambda: float(next(now)))


def test_principals(store: Store) -> None:
    made = store.add_principal("ann", "infer")
    assert made == store.principal("ann") and (made.role, made.created) == ("infer", 1000.0)
    with pytest.raises(Conflict, match="client ann already"):
        store.add_principal("ann", "admin")
    assert store.set_role("ann", "operator").role == "operator"
    assert [p.name for p in store.principals()] == ["ann"]
    with pytest.raises(NotFound):
        store.principal("bob")
    with pytest.raises(NotFound):
        store.set_role("bob", "infer")


def test_certificates_are_revoked_once(store: Store) -> None:
    store.add_principal("ann", "infer")
    store.add_principal("bob", "infer")
    for serial, name in (("0A", "ann"), ("0b", "ann"), ("0c", "bob")):
        store.add_certificate(serial, name, 0, 100)
    assert [c.serial for c in store.certificates()] == ["0a", "0b", "0c"]
    assert [c.serial for c in store.good_certificates("ann")] == ["0a", "0b"]
    assert [c.serial for c in store.good_certificates("ann", "0B")] == ["0b"]
    assert store.mark_revoked({"0a": 7.0, "0b": 8.0, "ff": 9.0}) == ["0a", "0b"]
    assert store.mark_revoked({"0a": 9.0}) == [] and store.good_certificates("ann") == []
    assert [(c.serial, c.revoked_at) for c in store.revoked_certificates()] == [("0a", 7.0), ("0b", 8.0)]
    assert all(c.revoked_at for c in store.certificates("ann")) and store.certificates("bob")[0].revoked_at is None
    with pytest.raises(Conflict):
        store.add_certificate("0A", "bob", 0, 100)
    for call in (lambda: store.add_certificate("0d", "eve", 0, 1), lambda: store.good_certificates("eve")):
        with pytest.raises(NotFound):
            call()


def test_a_client_comes_with_its_certificate_or_not_at_all(store: Store) -> None:
    store.add_client("ann", "operator", "0A", 0, 100)
    store.add_client("ann", "infer", "0b", 0, 100)
    assert store.principal("ann").role == "operator" and len(store.certificates("ann")) == 2
    with pytest.raises(Conflict, match="certificate"):
        store.add_client("bob", "infer", "0a", 0, 100)
    assert [p.name for p in store.principals()] == ["ann"]


def test_models_and_their_names(store: Store) -> None:
    store.add_model("a", "d1", 1 << 40, "/mnt/a.gguf", INFO)
    store.add_model("b", "d1", 1 << 40, "/mnt/a.gguf", INFO)
    assert store.model("a").info == INFO and store.model("a").size == 1 << 40
    assert [f.model for f in store.with_file("d1")] == ["a", "b"] and store.with_file("d2") == []
    assert store.files() == {"d1"}
    with pytest.raises(Conflict):
        store.add_model("a", "d2", 1, "", Info())
    with pytest.raises(Conflict):
        store.rename_model("a", "b")
    store.set_info("a", INFO.but(tried=True))
    assert store.model("a").info == store.model("b").info == INFO.but(tried=True)
    assert store.rename_model("a", "c").name == "c"
    assert store.remove_model("c").name == "c"
    for call in (store.model, store.remove_model, lambda name: store.rename_model(name, "x")):
        with pytest.raises(ModelNotFound):
            call("c")


def test_a_model_has_forms_which_go_with_it(store: Store) -> None:
    store.add_model("a", "1" * 64, 100, "a.gguf", Info(file_type="BF16"))
    (own,) = store.forms("a")
    assert (own.name, own.digest, own.size) == ("a@BF16", "1" * 64, 100)
    store.add_form(Form("a", "Q4_K_M", "4" * 64, 30, Info(shape={})))
    with pytest.raises(Conflict, match="a form a@Q4_K_M"):
        store.add_form(Form("a", "Q4_K_M", "5" * 64, 31, Info()))
    store.set_info("a", Info(file_type="BF16", tried=True))
    assert store.forms("a")[0].info.tried is True and store.forms("a")[1].info == Info(shape={})
    store.rename_model("a", "b")
    assert [form.name for form in store.forms("b")] == ["b@BF16", "b@Q4_K_M"]
    store.remove_model("b")
    store.add_model("b", "1" * 64, 100, "a.gguf", Info())
    assert [form.name for form in store.forms("b")] == ["b@GGUF"]


def test_what_is_known_of_a_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    """A file of an earlier llmd lacks what it did not know, and a field that this one does not know is passed over."""
    info = Info(
        architecture="llama", generation={"temperature": 0.5}, shape={"layers": []}, conversations={"plain": ""},
        laid={}, ends=["</s>"], tried=False, proof=Proof(0.01, 0.1, 96, True),
        converted=Converted("LlamaForCausalLM", "gptq"), made=Made("d" * 64, "Q8_0", "0.3", "1.0"),
    )  # fmt: skip
    store = Store(tmp_path / "state.db")
    assert store.add_model("a", "d", 1, "", info).info == store.model("a").info == info
    store.add_model("b", "e", 1, "", Info())
    store.close()
    db = sqlite3.connect(tmp_path / "state.db")
    with db:
        (text,) = db.execute("SELECT info FROM models WHERE name = 'a'").fetchone()
        told = json.loads(text)
        assert told["made"]["from"] == "d" * 64 and told["converted"]["from"] == "LlamaForCausalLM"
        assert "name" not in told, "nobody said it"
        db.execute("UPDATE models SET info = ? WHERE name = 'a'", (json.dumps(told | {"later": [1]}),))
    db.close()
    again = Store(tmp_path / "state.db")
    assert again.model("a").info == info and again.model("b").info == Info()
    again.close()
    db = sqlite3.connect(tmp_path / "state.db")
    with db:
        db.execute("UPDATE models SET info = ?", (json.dumps({"tried": "perhaps"}),))
    db.close()
    with pytest.raises(Unavailable, match="damaged: restore it from a backup"):
        Store(tmp_path / "state.db").model("a")


def test_measurements_are_of_one_build_and_bounded(store: Store) -> None:
    for n in range(5):
        store.keep_measurement(f"conditions {n}", "1", {"overhead": n}, 3)
    assert [m["overhead"] for m in store.measurements("1")] == [2, 3, 4]
    store.keep_measurement("conditions 3", "1", {"overhead": 30}, 3)
    assert sorted(m["overhead"] for m in store.measurements("1")) == [2, 4, 30]
    assert store.measurements("2") == []
    store.keep_measurement("conditions 3", "2", {"overhead": 7}, 3)
    assert store.measurements("1") == [] and store.measurements("2") == [{"overhead": 7}]


def test_deployments(store: Store) -> None:
    with pytest.raises(ModelNotFound):
        store.set_deployment("a")
    store.add_model("a", "d1", 1, "", Info())
    first = store.set_deployment("a", ctx=4096)
    again = store.set_deployment("a", slots=4)
    assert (first.ctx, first.slots, again.ctx, again.slots) == (4096, None, None, 4)
    assert again.created == first.created and again.placement == {}
    put = {"gpus": ["GPU-a"], "kv": "q8_0"}
    assert store.set_deployment("a", placement=put).placement == put == store.deployments()[0].placement
    with pytest.raises(Conflict, match="undeploy it first"):
        store.remove_model("a")
    store.rename_model("a", "b")
    assert [d.model for d in store.deployments()] == ["b"]
    store.remove_deployment("b")
    with pytest.raises(ModelNotFound):
        store.remove_deployment("b")


def test_it_is_kept_and_private(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    store = Store(file)
    store.add_model("a", "d1", 1, "", INFO)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o600}
    store.close()
    again = Store(file)
    assert again.model("a").info == INFO
    check = sqlite3.connect(file)
    assert check.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert check.execute("PRAGMA user_version").fetchone() == (VERSION,)
    assert all(row[5] for row in check.execute("PRAGMA table_list") if row[1] == "models"), "STRICT"
    check.close()
    again.close()


def test_a_writer_that_was_killed_loses_nothing(tmp_path: Path) -> None:
    first = Store(tmp_path / "state.db")
    first.add_model("a", "d1", 1, "", INFO)
    copy = tmp_path / "copy"  # as the files are at the moment of a kill
    copy.mkdir()
    for file in tmp_path.glob("state.db*"):
        (copy / file.name).write_bytes(file.read_bytes())
    first.close()
    again = Store(copy / "state.db")
    assert again.model("a").digest == "d1"
    again.close()


def made(file: Path) -> bytes:
    store = Store(file)
    for i in range(100):
        store.add_model(f"m{i}", "d", i, "x" * 50, INFO)
    store.close()
    return file.read_bytes()


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    made(file)
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(Unavailable, match="newer llmd .*99.*no copy"):
        Store(file)


def test_a_file_from_before_migrations_had_names_is_taken_over(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    first = Store(file)
    first.add_principal("ann", "infer")
    first.add_model("a", "1" * 64, 100, "a.gguf", Info(file_type="Q8_0"))
    first.close()
    db = sqlite3.connect(file)
    with db:
        db.execute("DROP TABLE _sqlite_migrations")
        db.execute("DROP TABLE forms")
        for column in ("placement", "replicas", "evicted"):
            db.execute(f"ALTER TABLE deployments DROP COLUMN {column}")
        db.execute("PRAGMA user_version = 1")
    db.close()
    for _ in range(2):
        again = Store(file)
        assert [p.name for p in again.principals()] == ["ann"] and again.deployments() == []
        assert [form.name for form in again.forms("a")] == ["a@Q8_0"]
        again.close()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    good = made(file)
    page = 4096
    for damaged in (
        b"not a database, but long enough to be read as one" * 100,
        good[: 3 * page],
        good[:page] + b"\xff" * page + good[2 * page :],
        good[: 5 * page] + bytes(2 * page) + good[7 * page :],
    ):
        file.write_bytes(damaged)
        with pytest.raises(Unavailable, match="damaged|cannot be used"):
            Store(file)
    file.write_bytes(b"")  # a new one, as SQLite sees it
    Store(file).close()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        Store(tmp_path / "missing" / "state.db")


def test_a_full_disk(store: Store) -> None:
    store._file._db.execute("PRAGMA max_page_count = 9")
    with pytest.raises(NoSpace):
        for i in range(500):
            store.add_model(f"m{i}", "d", i, "x" * 500, Info())
    assert store.models(), "what was written stays readable"
    store._file._db.execute("PRAGMA max_page_count = 1000")
    store.add_model("later", "d", 1, "", Info())


async def test_the_state_thread_is_one_thread_and_not_the_loops() -> None:
    state = StateThread()
    names = {await state.run(lambda: threading.current_thread().name) for _ in range(3)}
    assert len(names) == 1 and names.pop().startswith("state")
    with pytest.raises(Conflict):
        await state.run(_conflict)
    state.close()


def _conflict() -> None:
    raise Conflict("no")


async def test_a_caller_that_is_cancelled_waits_for_its_work() -> None:
    state, begun, go, done = StateThread(), threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        go.wait(5)
        done.append(True)

    task = asyncio.create_task(state.run(work))
    await asyncio.to_thread(begun.wait, 5)
    task.cancel()
    asyncio.get_running_loop().call_later(0.05, go.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done
    state.close()
