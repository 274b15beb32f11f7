"""What goes on beside requests: the configuration and the CA's files anew when somebody asks for it, and what is due
renewed whether or not anybody does."""

import asyncio
import logging

from llmd.daemon.admin.service import Service
from llmd.daemon.audit.refusals import Refusals
from llmd.daemon.errors import LlmdError
from llmd.daemon.tasks import Tasks

log = logging.getLogger("llmd")

MAINTAIN_SECONDS = 10.0
RETRY_SECONDS = 60.0
CERTIFICATES = "renewing certificates"


class Upkeep:
    """`start()` gives the task that renews; `reload()` is called by a signal."""

    def __init__(self, service: Service, refusals: Refusals, tasks: Tasks) -> None:
        self._service, self._refusals, self._tasks = service, refusals, tasks
        self._reloading: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        return self._tasks.start(CERTIFICATES, self._maintain)

    def reload(self) -> None:
        """Nobody waits for it: what comes of it is logged."""
        self._reloading = self._tasks.start("reload", self._reload)

    async def _reload(self) -> None:
        try:
            done = await self._service.reload("signal")
        except (LlmdError, OSError) as e:
            log.error("reload failed: %s", e)
            return
        except Exception as e:  # what serves goes on as it was: that it could not be changed takes nothing from it
            log.critical("reload failed", exc_info=e)
            return
        if done["next_start"]:
            log.warning("changed in llmd.toml, and used from the next start on: %s", ", ".join(done["next_start"]))
        if done["changed"]:
            log.info("changed in llmd.toml, and used from now on: %s", ", ".join(done["changed"]))
        log.info(
            "reloaded: the server's certificate is good until %s, revoked certificates: %d",
            done["server_certificate_until"], done["revoked_certificates"],
        )  # fmt: skip

    async def _maintain(self) -> None:
        """What the CA made is renewed long before it ends, and soon after a wrong clock was set right."""
        while True:
            pause = MAINTAIN_SECONDS
            try:
                self._refusals.flush()
                await self._service.renew()
                self._tasks.failed.discard(CERTIFICATES)
            except (LlmdError, OSError) as e:
                log.error("certificates could not be renewed: %s", e)
                pause = RETRY_SECONDS
            except Exception as e:
                self._tasks.unexpected(CERTIFICATES, e)
                pause = RETRY_SECONDS
            await asyncio.sleep(pause)
