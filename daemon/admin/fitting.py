"""What a deployment is asked to load, and which form of a model would fit: of one that is here, or of a Hugging Face
folder that is not converted yet."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmd.daemon.config import InUse
from llmd.daemon.errors import BadRequest, Conflict, DoesNotFit, LlmdError, ModelInvalid, Unavailable
from llmd.daemon.models.checking import check
from llmd.daemon.models.files import ModelStore
from llmd.daemon.models.importing import HEAD_BYTES, Importer
from llmd.daemon.models.making import Maker, Size
from llmd.daemon.planning.plan import ON_CPU, File, Placement, Wish, forms
from llmd.daemon.planning.planner import Planner
from llmd.daemon.replicas.pool import Pool
from llmd.daemon.state.records import Form, Model
from llmd.daemon.state.store import StateThread

MIN_CONTEXT, MAX_CONTEXT = 256, 1 << 24


@dataclass(frozen=True, slots=True)
class Deploying:
    """What is asked of a deployment, by hand: the rest is the configuration's or the plan's. `replicas` 0: one on each
    GPU that holds it whole; `evict`: take idle models out of service where it finds no room, None: as the configuration
    says."""

    ctx: int | None = None
    slots: int | None = None
    placement: Placement = ON_CPU
    replicas: int = 1
    evict: bool | None = None

    def of_form(self, kind: str | None) -> "Deploying":
        """With the form that the model's name says. Raises BadRequest where that is another one."""
        return replace(self, placement=self.placement.of_form(kind))

    def check(self) -> None:
        """Raises BadRequest for what cannot work, whatever the machine."""
        self.placement.check()
        if self.placement.gpus and self.replicas != 1:
            raise BadRequest("gpus names where one replica lies: leave it out, or the replicas", param="gpus")


PLAIN = Deploying()


@dataclass(slots=True)
class Fitting:
    current: InUse
    models: ModelStore
    state: StateThread
    planner: Planner
    maker: Maker
    importer: Importer
    pool: Pool

    def wish(self, model: Model, asked: Deploying, own: Sequence[Form] | None = None) -> Wish:
        """What is asked of a deployment, with the configuration's defaults. `own`: the model's forms, where it is not
        here. Raises BadRequest for more context than the model was trained for, NotFound for a form that it has not."""
        c, ctx, slots = self.current.now, asked.ctx, asked.slots
        trained = model.info.context_length
        least, most = min(MIN_CONTEXT, trained or MIN_CONTEXT), trained or MAX_CONTEXT
        if ctx and not least <= ctx <= most:
            raise BadRequest(
                f"ctx takes {least} to {most} for this model, or 0: as many as it was trained for", param="ctx"
            )
        asked_for = c.context if ctx is None else ctx
        context = min(asked_for or trained, trained or asked_for)
        there = self.forms(model.name, asked.placement.form) if own is None else own
        files = [File(f.name, str(self.models.file(f.digest)), f.size, f.digest, f.info.shape) for f in there]
        first, *others = sorted(files, key=lambda one: one.digest != model.digest)
        return Wish(
            first.path, slots or c.slots, context, c.batch, c.chunk, c.threads, asked.placement, first.shape,
            first.size, digest=first.digest, form=first.name, others=tuple(others), keep_context=bool(ctx),
            keep_slots=slots is not None, syntax=model.info.syntax_said,
        )  # fmt: skip

    def whole(self, model: Model, asked: Deploying) -> Wish:
        """As `wish`, of the forms whose files are there. Raises ModelInvalid where none is, with what to do."""
        there = {form.name: (form, self.models.damage(form)) for form in self.forms(model.name, asked.placement.form)}
        whole = [form for form, (why, _) in there.values() if not why]
        if not whole:
            why, fix = next(damage for _, damage in there.values())
            raise ModelInvalid(f"{model.name} cannot be loaded: {why}; {fix}")
        return self.wish(model, asked, whole)

    def forms(self, name: str, wanted: str | None) -> Sequence[Form]:
        """All of a model, or the one of this type. Raises ModelNotFound, NotFound."""
        return self.models.forms(name) if wanted is None else [self.models.form(name, wanted)]

    async def of_model(self, name: str, asked: Deploying) -> dict[str, Any]:
        """The largest standard form that would fit and is not made yet; what making it takes. Raises ModelNotFound,
        BadRequest, ModelInvalid, Conflict where one that is there fits, and DoesNotFit where none would."""
        model = await self.state.run(lambda: self.models.show(name))
        wish = await self.state.run(lambda: self.whole(model, asked))
        there = {form.form for form in forms(wish)}
        if await self._why_not(name, wish, asked) is None:
            raise Conflict(f"{name} fits as it is: nothing need be made")
        smaller = [size for size in await self.maker.smaller(model) if f"{name}@{size.type}" not in there]
        size = await self._first(name, wish, asked, smaller)
        return {
            "model": name, "type": size.type, "bytes": size.bytes, "now": model.size,
            "seconds": round(await self.maker.seconds(model, size.type), 1), "free": self.models.free(),
            "again": self.maker.again(model),
        }  # fmt: skip

    async def of_folder(self, path: str, name: str | None, asked: Deploying) -> dict[str, Any]:
        """What a Hugging Face folder's model takes, and the form of it that fits: `type` is None where it does as it
        is, or where a model was made of this folder already (`there`). Raises what an import of it would, BadRequest,
        and DoesNotFit."""
        if there := await self.importer.held(path, name):
            return {"model": there.name, "there": True, "type": None}
        name, job = await self.importer.asked(path, name)
        folder, kind = Path(job.path), asked.placement.form and asked.placement.form.upper()
        async with self.importer.outlined(folder) as file:
            info = await check(file)
            model = Model(name, "", info.size, str(folder), 0.0, info)
            whole = Form(name, info.file_type, "", model.size, info)
            plain = replace(asked, placement=replace(asked.placement, form=None))
            wish = self.wish(model, plain, [whole])
            why = await self._why_not(name, wish, plain)
            size, seconds = None, await self.importer.seconds(folder, model.size)
            if kind not in (None, whole.type) or (why and kind is None):
                size = await self._first(name, wish, plain, await self.maker.smaller_of(file, model.size, kind))
                seconds += await self.maker.seconds_of(file, size.type)
        self.models.make_room(model.size + HEAD_BYTES + (size.bytes if size else 0))
        return {
            "model": name, "there": False, "type": size and size.type, "bytes": size and size.bytes, "now": model.size,
            "read": job.read, "method": job.method,
            "why": why and why.message, "seconds": round(seconds, 1), "free": self.models.free(),
        }  # fmt: skip

    async def _why_not(self, name: str, wish: Wish, asked: Deploying) -> LlmdError | None:
        """Why memory does not hold it; None where it does."""
        replaced = {d.model: d.wanted for d in self.pool.all() if d.model == name and d.ready and d.wanted}
        try:
            await self.planner.check(name, wish, replaced, asked.replicas)
        except (DoesNotFit, Unavailable) as e:
            return e
        return None

    async def _first(self, name: str, wish: Wish, asked: Deploying, sizes: Sequence[Size]) -> Size:
        """The first form that would fit. Raises DoesNotFit."""
        for size in sizes:
            made = replace(
                wish, form=f"{name}@{size.type}", path="", size=size.bytes, digest="", shape=size.shape, others=()
            )
            if await self._why_not(name, made, asked) is None:
                return size
        raise DoesNotFit(f"no form of {name} would fit")
