"""The daemon: builds every part, runs them until a signal, and takes them down in order.

Signals: SIGTERM or SIGINT drains (no new requests, running ones may finish) and a second one ends at once; SIGHUP reads
the configuration and the CA's files anew.
"""

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from llmd.api.admin import table
from llmd.api.http import openapi, probes
from llmd.api.http.app import application, client, noted
from llmd.api.http.listener import Listener
from llmd.api.http.routes import subjects
from llmd.api.openai import chat, models
from llmd.daemon import atomic, banner, logs
from llmd.daemon.admin.cards import Cards
from llmd.daemon.admin.clients import Clients, open_authority
from llmd.daemon.admin.deployments import Deployments
from llmd.daemon.admin.doctor import Doctor
from llmd.daemon.admin.fitting import Fitting
from llmd.daemon.admin.forms import DEPLOY, Bringing, Forms, said
from llmd.daemon.admin.policies import Policies, open_policy
from llmd.daemon.admin.service import Service
from llmd.daemon.admin.upkeep import Upkeep
from llmd.daemon.admin.usage import Usage
from llmd.daemon.audit.acts import Acts
from llmd.daemon.audit.log import AuditLog
from llmd.daemon.config import Config, InUse
from llmd.daemon.errors import cut
from llmd.daemon.gpus.faults import Action
from llmd.daemon.gpus.inventory import Inventory
from llmd.daemon.gpus.nvml import Nvml
from llmd.daemon.gpus.watch import Watcher, figures
from llmd.daemon.identity.connections import Connections
from llmd.daemon.identity.pki import IssuedClient
from llmd.daemon.identity.policy import InForce
from llmd.daemon.identity.principal import Identity
from llmd.daemon.identity.tls import ServerTls
from llmd.daemon.jobs.queue import Jobs, Kind
from llmd.daemon.machine import cpu, process, systemd
from llmd.daemon.machine.groups import Groups
from llmd.daemon.machine.process import Fatal
from llmd.daemon.machine.seats import Seats
from llmd.daemon.metrics import Metrics
from llmd.daemon.models.files import ModelStore
from llmd.daemon.models.importing import Importer
from llmd.daemon.models.making import Maker
from llmd.daemon.planning import gpu_code
from llmd.daemon.planning.measurements import planner
from llmd.daemon.planning.planner import Planner
from llmd.daemon.replicas.pool import Pool
from llmd.daemon.serving.answer import Serving
from llmd.daemon.state.store import StateThread, Store
from llmd.daemon.tasks import Tasks

log = logging.getLogger("llmd")

# that a thread keeps the interpreter: the event loop gives it away with each write of TLS, and waits to have it again
SWITCH_SECONDS = 0.0005
DEMO_CLIENT = "demo"
# what answers on the TLS listener
CLIENT_ROUTES = (*chat.ROUTES, *models.ROUTES, *probes.ROUTES, *openapi.ROUTES)
Plans: TypeAlias = Callable[[Watcher, Store, StateThread, Tasks], Planner]


class Daemon:
    """Every part of one running llmd. `await run()` returns after a drain."""

    def __init__(
        self,
        settings: Config,
        read: Callable[[], Config] | None = None,
        *,
        nvml: Nvml | None = None,
        plans: Plans = planner,
        groups: Groups | None = None,
    ) -> None:
        """`read` reads the configuration anew. What reaches out of this process may be another: what tells of the GPUs,
        who plans on them, and the control groups."""
        self.current = InUse(settings, read)
        self.current.follow(self._changed)
        state = settings.state
        process.apart(state)
        (state / "pki").mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = process.lock(state)
        self.audit = AuditLog(state / "audit.db", process.audit_key(state))
        self.audit.open()
        self.store, self.state = Store(state / "state.db"), StateThread()
        self.authority = open_authority(settings, self.store, self.audit)
        self.metrics, self.tasks = Metrics(), Tasks()
        self.watcher = Watcher(nvml or Nvml(), self._gpus_seen, self._gpu_faults)
        self.planner = plans(self.watcher, self.store, self.state, self.tasks)
        self.seats = Seats(settings.threads)
        self.pool = Pool(
            self.metrics, self.tasks, self.planner, audit=self.audit.event, groups=groups or Groups.open(),
            seats=self.seats,
        )  # fmt: skip
        self.serving = Serving(
            self.pool, lambda: self.config.queue, self.audit, self.metrics, self.tasks, unaudited=self._unaudited,
            policy=InForce(open_policy(self.store, self.audit)),
        )  # fmt: skip
        self.connections = Connections(process.descriptors() - process.OWN_DESCRIPTORS, lambda: self.authority.revoked)
        self.tls = ServerTls(self.authority, state / "pki")
        self.acts = Acts(self.audit, unlogged=self._unaudited)
        self.service = self._service()
        self.watchdog = systemd.Watchdog(self._dead, self._status)
        self.upkeep = Upkeep(self.service, self.serving.books.refusals, self.tasks)
        self._stopping = asyncio.Event()

    @property
    def config(self) -> Config:
        return self.current.now

    def _unaudited(self) -> bool:
        return self.config.audit_on_failure == "serve"

    def _service(self) -> Service:
        store, state, authority = self.store, self.state, self.authority
        models = ModelStore(self.config.state / "models", store, state, self.seats)
        maker = Maker(models, state, lambda: self.seats.total)
        importer = Importer(models, maker, state, lambda: self.seats.total)
        self.jobs = Jobs(store, state, lambda job: self.audit.event("job.ended", **said(job)))
        forms = Forms(models, maker, importer, self.jobs, self.pool, state, self.acts)
        fitting = Fitting(self.current, models, state, self.planner, maker, importer, self.pool)
        deployments = Deployments(
            self.current, self.pool, self.planner, self.acts, store, state, models, fitting, forms
        )
        self.jobs.register(*forms.kinds(), Kind(DEPLOY, Bringing, deployments.bring))
        clients = Clients(store, state, authority, self.connections, self.acts, lambda: self.serving.policy.now.groups)
        doctor = Doctor(
            self.current, self.serving, store, state, authority, self.watcher, clients.register, models, self.planner
        )  # fmt: skip
        return Service(
            current=self.current,
            serving=self.serving,
            acts=self.acts,
            store=store,
            state=state,
            models=models,
            fitting=fitting,
            forms=forms,
            deployments=deployments,
            authority=authority,
            tls=self.tls,
            clients=clients,
            policies=Policies(self.serving, store, state, self.acts, clients.roles, *subjects(CLIENT_ROUTES)),
            doctor=doctor,
            usage=Usage(self.serving, store, state),
            cards=Cards(self.watcher, self.planner, self.pool, store, state, self.acts),
            planner=self.planner,
            started=time.time(),
            version=version("llmd-appliance"),
        )

    def _changed(self, was: Config, new: Config) -> None:
        if new.audit_on_failure != was.audit_on_failure:
            self.audit.event("audit.on_failure", value=new.audit_on_failure)
        self.seats.use(new.threads)

    # --- life

    async def run(self, default_model: tuple[str, Path] | None = None) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)
        self.metrics.confined(process.confinement(required=self.config.require_confinement))
        self._handle_signals()
        self.service.doctor.cpu = await cpu.choose(self.config.state)
        self.planner.architectures = await gpu_code.known()
        self.service.cards.restore()
        self.service.usage.restore()
        clients = Listener(
            self._client_app(),
            ssl=lambda: self.tls.context,
            connections=self.connections,
            refusals=self.serving.books.refusals,
            hosts=lambda: self.config.allowed_hosts,
            tasks=self.tasks,
        )
        admin = Listener(
            application(table.ROUTES, table.who, serving=self.serving, service=self.service),
            refusals=self.serving.books.refusals, tasks=self.tasks,
        )  # fmt: skip
        beside = [
            self.upkeep.start(),
            self.jobs.start(self.tasks),
            self.tasks.start("schemas", self.serving.schemas.start),
            self.tasks.start("usage", self.service.usage.run),
        ]
        self.watcher.start(asyncio.get_running_loop())
        try:
            if await self._unless_stopped(self._start(clients, admin, default_model)):
                systemd.notify(READY=1, STATUS=self._status())
                aside = [self.tasks.start("announce", self._announce), self.tasks.start("watchdog", self.watchdog.run)]
                await self._stopping.wait()
                for task in aside:
                    task.cancel()
            log.info("stopping: running requests have %d s", self.config.drain_seconds)
            # how long that takes is the configuration's to say, not the unit's
            patience = (self.config.drain_seconds + 30) * 1_000_000
            systemd.notify(STOPPING=1, STATUS="draining", EXTEND_TIMEOUT_USEC=patience)
            self.pool.draining = True
            await self._drain(clients)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self.pool.close(0)
            await clients.stop(0)
            await admin.stop(0)
            await self.serving.schemas.close()
            await asyncio.to_thread(self.watcher.close)
            await self.close()

    async def close(self) -> None:
        """The files, and nothing else: of one that does not run."""
        self.state.close()
        self.service.usage.end()
        self.store.close()
        self.serving.books.refusals.flush(all_=True)
        await asyncio.to_thread(self.audit.close)
        os.close(self._lock)

    async def _start(self, clients: Listener, admin: Listener, default_model: tuple[str, Path] | None) -> None:
        await self._demo_client()
        await admin.start_unix(self.config.admin_path, 0o660, process.admins())
        self.service.deployments.restore()
        if default_model:
            await self._default_model(*default_model)
        await clients.start(*self.config.address, systemd.sockets())
        self.audit.ready()
        if self._unaudited():
            self.audit.event("audit.on_failure", value="serve")
        self.current.use(self.config.at(clients.port))
        log.info("clients on https://%s, admins on %s", self.config.listen, self.config.admin_path)
        # what start-up made stays: a collection that walks it all would hold up every stream for tens of milliseconds
        gc.collect()
        gc.freeze()

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Whether `work` came to its end. A signal cancels it: an import may take minutes."""
        task, stopping = asyncio.create_task(work), asyncio.create_task(self._stopping.wait())
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        done = task.done()
        for ends in (task, stopping):
            ends.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        try:
            await task
        except asyncio.CancelledError:
            log.info("stopped while starting")
        return done

    async def _drain(self, clients: Listener) -> None:
        """Running requests finish, or a second signal or the deadline ends them."""
        grace = self.config.drain_seconds
        drained = asyncio.create_task(self.pool.close(grace))
        self._stopping.clear()
        again = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({drained, again}, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        drained.cancel()
        await asyncio.gather(again, drained, return_exceptions=True)
        await self.pool.close(0)  # what still runs is told that it ends, and how
        await clients.stop(1.0)
        log.info("stopped: running answers that were cut: %d", self.pool.cut)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for kind in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(kind, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self.upkeep.reload)

    def _client_app(self) -> object:
        clients, authority = self.service.clients, self.authority
        identity = Identity(authority.node, lambda: authority.revoked, clients.roles.get, clients.register)
        refused = noted(self.serving.books.refusals)
        return application(CLIENT_ROUTES, client(identity), refused, serving=self.serving, doctor=self.service.doctor)

    # --- GPUs

    def _gpus_seen(self, found: Inventory) -> None:
        self.metrics.gpus((gpu.uuid, gpu.name, figures(gpu, self.watcher.health(gpu.uuid))) for gpu in found.gpus)
        self.serving.books.meter.energy({gpu.uuid: gpu.energy for gpu in found.gpus}, time.monotonic())
        self.pool.see(self.watcher.view.usable)

    def _gpu_faults(self, uuid: str, todo: Action, reason: str) -> None:
        log.warning("GPU %s: %s (%s)", uuid, reason, todo)
        if todo != Action.NOTE:
            self.audit.event("gpu.fault", gpu=uuid, reason=reason, action=str(todo))
            self.pool.fault(uuid, todo, reason)

    # --- systemd

    async def _dead(self) -> str:
        """What ended that nothing works without; "": nothing."""
        if not await self.audit.answers():
            return "the audit log's writer"
        return min(self.tasks.dead, default="")

    def _status(self) -> str:
        """One line for `systemctl status`."""
        deployed = self.pool.all()
        ready = [d.model for d in deployed if d.ready]
        busy = sum(replica.worker.open_sequences for d in deployed for replica in d.replicas if replica.worker)
        told = f"ready: {', '.join(sorted(ready)) or 'no model'}"
        told += f"; {len(deployed) - len(ready)} not ready" if len(ready) < len(deployed) else ""
        return f"{told}; {busy} running or waiting; audit log {'written' if self.audit.writable else 'NOT WRITTEN'}"

    async def _demo_client(self) -> None:
        """On an empty state directory: one client certificate, so that a first request needs no further step. Its files
        are there before the client is known: a start that is cut off is begun again by the next one."""
        folder = self.config.state / "pki" / "clients"

        def keep(issued: IssuedClient) -> None:
            folder.mkdir(mode=0o700, exist_ok=True)
            atomic.write(folder / f"{DEMO_CLIENT}.crt", issued.certificate_pem, 0o644)
            atomic.write(folder / f"{DEMO_CLIENT}.key", issued.key_pem, 0o600)

        if not self.store.principals():
            await self.service.clients.issue(DEMO_CLIENT, 90, "first start", keep=keep)

    # --- the first model

    async def _default_model(self, name: str, file: Path) -> None:
        """Import and deploy the default model once; an admin who takes it away later is not overruled."""
        if any(model.name == name for model in self.store.models()):
            return
        if not file.exists():
            raise Fatal(f"{cut(str(file))} does not exist: --default-model takes NAME=FILE")
        log.info("importing %s", name)
        await self.service.import_model(str(file), name, "first start", lambda *_: None)
        await self.service.deployments.deploy(name, "first start")

    async def _announce(self) -> None:
        """Once a model answers: how to ask it."""
        while True:
            for deployment in self.pool.all():
                if deployment.ready:
                    logs.Writer(1).line(banner.text(self.config, deployment.model))
                    return
            await asyncio.sleep(0.05)
