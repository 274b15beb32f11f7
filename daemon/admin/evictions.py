"""Which idle models go where another one needs their room: the cheapest to load again first, no more than needed."""

from collections.abc import Mapping
from dataclasses import dataclass

from llmd.daemon.admin.doctor import rfc3339
from llmd.daemon.audit.acts import Acts
from llmd.daemon.errors import DoesNotFit, Unavailable
from llmd.daemon.planning.plan import Wish
from llmd.daemon.planning.planner import Planner
from llmd.daemon.replicas.pool import Pool
from llmd.daemon.store import StateThread, Store


@dataclass(slots=True)
class Evictions:
    """Made once, by `main`."""

    pool: Pool
    planner: Planner
    store: Store
    state: StateThread
    acts: Acts

    async def needed(self, model: str, wish: Wish, gone: Mapping[str, Wish], replicas: int) -> list[str]:
        """The idle models without which it fits; none: nothing would help. `gone` is as `Planner.check` takes it."""
        idle = {d.model: d.wanted for d in self.pool.all() if d.idle and d.wanted and d.model != model}
        chosen: dict[str, Wish] = {}
        for name, one in sorted(idle.items(), key=lambda item: (item[1].size, item[0])):
            chosen[name] = one
            if await self._fits(model, wish, {**gone, **chosen}, replicas):
                break
        else:
            return []
        for name in reversed(list(chosen)):  # the dearest first: a small one that was not enough may not be needed
            fewer = {other: one for other, one in chosen.items() if other != name}
            if await self._fits(model, wish, {**gone, **fewer}, replicas):
                chosen = fewer
        return list(chosen)

    async def _fits(self, model: str, wish: Wish, gone: Mapping[str, Wish], replicas: int) -> bool:
        try:
            await self.planner.check(model, wish, gone, replicas)
        except (DoesNotFit, Unavailable):
            return False
        return True

    async def evict(self, name: str, other: str, actor: str) -> None:
        """Raises Conflict where somebody asks it something meanwhile."""
        async with self.acts("admin.evict", actor, model=name, made_room_for=other):
            at = await self.state.run(lambda: self.store.set_evicted(name, other))
            try:
                await self.pool.evict(name, made_room(other, at))
            except BaseException:
                await self.state.run(lambda: self.store.clear_evicted(name))
                raise


def made_room(other: str, at: float) -> str:
    return f"made room for {other} at {rfc3339(at)}"
