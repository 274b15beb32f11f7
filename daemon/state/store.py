"""`state.db`: who may use this server, which models it has and which of them serve.

One connection, used by one thread: the tables are small and each statement takes microseconds, but a write takes an
fsync. Everything here is kept across restarts; what can be derived is not stored. Times are Unix seconds.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, TypeVar

from llmd.daemon.errors import Conflict, ModelNotFound, NotFound
from llmd.daemon.state.database import JSON, StateFile, packed, unpacked
from llmd.daemon.state.records import Certificate, Deployment, Form, Info, Job, Model, PolicyText, Principal, Used
from llmd.daemon.state.versions import Restored

T = TypeVar("T")


class StateThread:
    """The one thread that reads and writes `state.db` and the CA's files while the daemon serves: an fsync takes as
    long as the disk likes. What one `run` does is not mixed with another's."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="state")

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` gives or raises. A caller that is cancelled waits for its end all the same."""
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            raise

    def close(self) -> None:
        self._executor.shutdown()


class Store:
    """The tables of `path`, made when missing; None keeps them in memory. `clock` gives Unix seconds. Raises what its
    file does (`StateFile`)."""

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._file = clock, StateFile(path)

    @property
    def restored(self) -> Restored | None:
        """A copy from before a newer llmd that was taken."""
        return self._file.restored

    def close(self) -> None:
        self._file.close()

    # --- principals

    def add_principal(self, name: str, role: str) -> Principal:
        """Raises Conflict when the name is taken."""
        made = Principal(name, role, self._clock())
        self._file.insert("principals", made, f"there is a client {name} already")
        return made

    def principal(self, name: str) -> Principal:
        """Raises NotFound."""
        found = self._file.rows(Principal, "SELECT * FROM principals WHERE name = ?", name)
        if not found:
            raise NotFound.among("client", (p.name for p in self.principals()))
        return found[0]

    def principals(self) -> list[Principal]:
        return self._file.rows(Principal, "SELECT * FROM principals ORDER BY name")

    def set_role(self, name: str, role: str) -> Principal:
        """Raises NotFound."""
        self.principal(name)
        self._file.write("UPDATE principals SET role = ? WHERE name = ?", role, name)
        return self.principal(name)

    # --- certificates

    def add_client(self, name: str, role: str, serial: str, not_before: float, not_after: float) -> None:
        """A certificate, and its principal where there is none yet: both or neither. Raises Conflict when the serial is
        there."""
        with self._file.atomic():
            if not any(p.name == name for p in self.principals()):
                self.add_principal(name, role)
            self.add_certificate(serial, name, not_before, not_after)

    def add_certificate(self, serial: str, principal: str, not_before: float, not_after: float) -> Certificate:
        """Raises NotFound without that principal, Conflict when the serial is there."""
        self.principal(principal)
        made = Certificate(serial.lower(), principal, not_before, not_after, None, self._clock())
        self._file.insert("certificates", made, f"there is a certificate {serial} already")
        return made

    def certificates(self, principal: str | None = None) -> list[Certificate]:
        """All, or one principal's, the oldest first."""
        return self._file.rows(
            Certificate,
            "SELECT * FROM certificates WHERE ?1 IS NULL OR principal = ?1 ORDER BY issued, serial",
            principal,
        )

    def good_certificates(self, principal: str, serial: str = "") -> list[Certificate]:
        """All of this principal's that are not revoked, or the one whose serial number begins with `serial`. Raises
        NotFound, and Conflict where several begin so."""
        self.principal(principal)
        own = [c for c in self.certificates(principal) if c.serial.startswith(serial.lower())]
        if serial and not own:
            raise NotFound.among("certificate", (c.serial for c in self.certificates(principal)), param="serial")
        if serial and len(own) > 1:
            raise Conflict(f"{len(own)} certificates begin with that serial number; give more of it")
        return [c for c in own if c.revoked_at is None]

    def mark_revoked(self, serials: Mapping[str, float]) -> list[str]:
        """Serial to the moment of its revocation; one that was revoked before keeps its own, and one that is not known
        here is passed over. The serials that were good until now, all or none of them."""
        revoke = "UPDATE certificates SET revoked_at = ? WHERE serial = ? AND revoked_at IS NULL"
        with self._file.atomic():
            return [serial for serial, when in serials.items() if self._file.write(revoke, when, serial)]

    def revoked_certificates(self) -> list[Certificate]:
        return self._file.rows(Certificate, "SELECT * FROM certificates WHERE revoked_at IS NOT NULL ORDER BY serial")

    # --- models

    def add_model(self, name: str, digest: str, size: int, source: str, info: Info) -> Model:
        """With its first form. Raises Conflict when the name is taken."""
        made = Model(name, digest, size, source, self._clock(), info)
        with self._file.atomic():
            self._file.insert("models", made, f"there is a model {name} already")
            self.add_form(Form(name, info.file_type or "GGUF", digest, size, info))
        return made

    def add_form(self, form: Form) -> None:
        """Raises Conflict when the model has one of this type."""
        self._file.insert("forms", form, f"there is a form {form.name} already")

    def forms(self, model: str) -> list[Form]:
        """The largest first. Raises ModelNotFound."""
        self.model(model)
        return self._file.rows(Form, "SELECT * FROM forms WHERE model = ? ORDER BY size DESC, type", model)

    def model(self, name: str) -> Model:
        """Raises ModelNotFound."""
        found = self._file.rows(Model, "SELECT * FROM models WHERE name = ?", name)
        if not found:
            raise ModelNotFound.among("imported model", (m.name for m in self.models()), param="model")
        return found[0]

    def models(self) -> list[Model]:
        return self._file.rows(Model, "SELECT * FROM models ORDER BY name")

    def with_file(self, digest: str) -> list[Form]:
        """The forms that one file is."""
        return self._file.rows(Form, "SELECT * FROM forms WHERE digest = ? ORDER BY model, type", digest)

    def files(self) -> set[str]:
        """The digests of every form."""
        return {form.digest for form in self._file.rows(Form, "SELECT * FROM forms")}

    def remove_form(self, model: str, kind: str) -> Form:
        """Raises ModelNotFound, NotFound, and Conflict for the form that was imported: it goes with its model."""
        found = [form for form in self.forms(model) if form.type == kind]
        if not found:
            raise NotFound.among(f"form of {model}", (form.type for form in self.forms(model)), param="form")
        if found[0].digest == self.model(model).digest:
            raise Conflict(f"{found[0].name} is what was imported: it goes with its model")
        self._file.write("DELETE FROM forms WHERE model = ? AND type = ?", model, kind)
        return found[0]

    def rename_model(self, name: str, new: str) -> Model:
        """Its deployment goes with it. Raises ModelNotFound, Conflict when `new` is taken."""
        self.model(name)
        with self._file.atomic(f"there is a model {new} already"):
            self._file.write("UPDATE models SET name = ? WHERE name = ?", new, name)
        return self.model(new)

    def set_info(self, name: str, info: Info) -> None:
        """Of every name of the file. Raises ModelNotFound."""
        digest = self.model(name).digest
        for table in ("models", "forms"):
            self._file.write(f"UPDATE {table} SET info = ? WHERE digest = ?", packed(info), digest)

    def remove_model(self, name: str) -> Model:
        """Raises ModelNotFound, Conflict while it is deployed."""
        gone = self.model(name)
        with self._file.atomic(f"the model {name} is deployed: undeploy it first"):
            self._file.write("DELETE FROM models WHERE name = ?", name)
        return gone

    # --- deployments

    def deployments(self) -> list[Deployment]:
        return self._file.rows(Deployment, "SELECT * FROM deployments ORDER BY model")

    def set_deployment(
        self,
        model: str,
        ctx: int | None = None,
        slots: int | None = None,
        placement: dict[str, Any] | None = None,
        replicas: int = 1,
    ) -> Deployment:
        """Make or replace. Raises ModelNotFound."""
        self.model(model)
        values = model, ctx, slots, self._clock(), json.dumps(placement or {}), replicas
        columns = ("ctx", "slots", "placement", "replicas")
        replaced = ", ".join(f"{column} = excluded.{column}" for column in columns)
        self._file.write(
            "INSERT INTO deployments (model, ctx, slots, created, placement, replicas) VALUES (?, ?, ?, ?, ?, ?) "
            f"ON CONFLICT (model) DO UPDATE SET {replaced}, evicted = '{{}}'", *values,
        )  # fmt: skip
        return self._file.rows(Deployment, "SELECT * FROM deployments WHERE model = ?", model)[0]

    def set_evicted(self, model: str, other: str) -> float:
        """It made room for another one. Tells when."""
        now = self._clock()
        self._file.write(
            "UPDATE deployments SET evicted = ? WHERE model = ?", json.dumps({"for": other, "at": now}), model
        )
        return now

    def clear_evicted(self, model: str) -> None:
        """It serves on."""
        self._file.write("UPDATE deployments SET evicted = '{}' WHERE model = ?", model)

    def remove_deployment(self, model: str) -> None:
        """Raises ModelNotFound when it is not deployed."""
        if not self._file.write("DELETE FROM deployments WHERE model = ?", model):
            raise ModelNotFound.among("deployed model", (d.model for d in self.deployments()), param="model")

    # --- jobs

    def add_job(self, kind: str, model: str, asked: dict[str, Any], actor: str) -> Job:
        """At the queue's end."""
        add = "INSERT INTO jobs (kind, model, asked, actor, created, state) VALUES (?, ?, ?, ?, ?, 'queued')"
        return self.job(self._file.add(add, kind, model, packed(asked), actor, self._clock()))

    def job(self, number: int) -> Job:
        """Raises NotFound."""
        found = self._file.rows(Job, "SELECT * FROM jobs WHERE id = ?", number)
        if not found:
            raise NotFound.among("job", (str(job.id) for job in self.jobs()[-20:]), param="job")
        return found[0]

    def jobs(self) -> list[Job]:
        """The oldest first."""
        return self._file.rows(Job, "SELECT * FROM jobs ORDER BY id")

    def set_job(self, number: int, **values: Any) -> Job:
        """Columns that change: state, started, ended, error, result, log."""
        given = {k: packed(v) if k in JSON else v for k, v in values.items()}
        self._file.write(
            f"UPDATE jobs SET {', '.join(f'{k} = ?' for k in given)} WHERE id = ?", *given.values(), number
        )
        return self.job(number)

    def forget_jobs(self, most: int) -> None:
        """Only the last `most` that have ended stay."""
        ended = "SELECT id FROM jobs WHERE ended IS NOT NULL ORDER BY id DESC LIMIT -1 OFFSET ?"
        self._file.write(f"DELETE FROM jobs WHERE id IN ({ended})", most)

    # --- GPUs

    def ignored_gpus(self) -> frozenset[str]:
        """The UUIDs of those that are kept out of every plan."""
        return frozenset(uuid for (uuid,) in self._file.all("SELECT uuid FROM ignored_gpus"))

    def ignore_gpu(self, uuid: str) -> None:
        self._file.write("INSERT INTO ignored_gpus VALUES (?, ?) ON CONFLICT DO NOTHING", uuid, self._clock())

    def use_gpu(self, uuid: str) -> None:
        self._file.write("DELETE FROM ignored_gpus WHERE uuid = ?", uuid)

    # --- policies

    def policies(self) -> list[PolicyText]:
        """The oldest first; the last one holds."""
        return self._file.rows(PolicyText, "SELECT * FROM policies ORDER BY version")

    def policy(self, version: int | None = None) -> PolicyText | None:
        """That version, or the last one."""
        query = "SELECT * FROM policies WHERE ?1 IS NULL OR version = ?1 ORDER BY version DESC LIMIT 1"
        return next(iter(self._file.rows(PolicyText, query, version)), None)

    def add_policy(self, version: int, text: str, actor: str) -> PolicyText:
        """It holds from now on. Raises Conflict where there is that version already."""
        made = PolicyText(version, self._clock(), actor, text)
        self._file.insert("policies", made, f"there is a policy {version} already")
        return made

    # --- what was used

    def keep_usage(self, rows: Iterable[Used], oldest: str) -> None:
        """They replace those of the same day, client, groups and model; what is of a day before `oldest` goes."""
        marks = ", ".join("?" * len(fields(Used)))
        with self._file.atomic():
            for row in rows:
                self._file.write(f"INSERT OR REPLACE INTO usage VALUES ({marks})", *astuple(row))
            self._file.write("DELETE FROM usage WHERE day < ?", oldest)

    def usage(self, since: str) -> list[Used]:
        """From that day on, the oldest first."""
        return self._file.rows(Used, "SELECT * FROM usage WHERE day >= ? ORDER BY day, client, groups, model", since)

    # --- what was measured

    def measurements(self, build: str) -> list[dict[str, Any]]:
        """What was kept of an engine's build, the oldest first."""
        query = "SELECT overhead FROM calibration WHERE build = ? ORDER BY measured"
        return [unpacked(text) for (text,) in self._file.all(query, build)]

    def keep_measurement(self, conditions: str, build: str, measured: dict[str, Any], most: int) -> None:
        """It replaces one of the same conditions; only the last `most` stay, and none of another build."""
        self._file.write(
            "INSERT INTO calibration (conditions, build, measured, overhead) VALUES (?1, ?2, ?3, ?4) ON CONFLICT "
            "(conditions) DO UPDATE SET build = ?2, measured = ?3, overhead = ?4",
            conditions, build, self._clock(), json.dumps(measured),
        )  # fmt: skip
        last = "SELECT conditions FROM calibration WHERE build = ?1 ORDER BY measured DESC LIMIT ?2"
        self._file.write(f"DELETE FROM calibration WHERE conditions NOT IN ({last})", build, most)
