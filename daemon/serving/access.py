"""What a client may use of what is deployed. What was asked for is turned into a model here, and nowhere else; the
policy judges the model that would answer. What a client may not use is not there for it: it sees the same errors as
where there is no such model.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from llmd.daemon.errors import BadRequest, LlmdError, ModelNotFound, OutsideHours, denied, listed
from llmd.daemon.hours import Hours
from llmd.daemon.identity.policy import Bounds, Decision, InForce, Rights
from llmd.daemon.identity.principal import Principal
from llmd.daemon.replicas.deployment import Deployment
from llmd.daemon.replicas.pool import Pool
from llmd.daemon.serving.ask import Ask
from llmd.daemon.state.records import of_form


def _now() -> datetime:
    return datetime.now(UTC)


# the local admin's, who tries a model while others keep it busy
LOCAL_WEIGHT = 64.0


class Access:
    """Made once, by `Serving`."""

    def __init__(self, pool: Pool, policy: InForce, now: Callable[[], datetime] = _now) -> None:
        self._pool, self.policy, self._now = pool, policy, now

    # --- what is there

    def seen(self, principal: Principal) -> list[Deployment]:
        """The deployed models that are there for this client."""
        return self._seen(self.policy.of(principal))

    def find(self, principal: Principal, asked: str) -> Deployment:
        """A model that is there for this client, by its name or that of a form of it. Raises ModelNotFound, and
        ModelNotReady for one that made room for another one."""
        model, form = self._named(asked)
        self._given(self.policy.of(principal), model, form)
        return self._pool.find(model)

    def bounds(self, principal: Principal, model: str, forms: frozenset[str]) -> Bounds:
        return self.policy.of(principal).decide(model, forms).bounds

    # --- what is asked

    def named(self, principal: Principal, ask: Ask) -> Ask:
        """With the name of its model, and the form where one is asked for. Raises BadRequest where no name is given and
        more than one model, or none, is there."""
        if ask.model is not None:
            model, form = self._named(ask.model)
            return replace(ask, model=model, form=form)
        names = [d.model for d in self._seen(self.policy.of(principal), ask.route)]
        if len(names) != 1:
            raise BadRequest(f"model is missing; deployed: {listed(names)}", param="model")
        return replace(ask, model=names[0])

    def judged(self, principal: Principal, ask: Ask) -> Ask:
        """With the forms that may answer, and what bounds the answer. Raises ModelNotFound, OutsideHours."""
        rights, model = self.policy.of(principal), ask.model or ""
        known, decision = self._given(rights, model, ask.form, ask.route)
        if decision.hours and (closed := decision.closed(self._now())):
            raise denied(_closed(model, closed[1]), rights.not_open(*closed))
        forms = None if decision.forms == known.forms else decision.forms
        deadline = min(filter(None, (ask.deadline, decision.deadline)), default=None)
        weight = LOCAL_WEIGHT if principal.local else decision.weight
        taken = (forms, decision.bounds, weight, decision.counts, deadline)
        if taken == (ask.forms, ask.bounds, ask.weight, ask.counts, ask.deadline):
            return ask
        forms, bounds, weight, counts, deadline = taken
        return replace(ask, forms=forms, bounds=bounds, weight=weight, counts=counts, deadline=deadline)

    def lost(self, principal: Principal, ask: Ask, form: str, was: Rights) -> LlmdError | None:
        """Why a request that a form of a model answers may not go on under the policy that holds now, after `was`.
        Where its hours were over before, it may finish."""
        rights, model, forms = self.policy.of(principal), ask.model or "", frozenset({form})
        decision = rights.decide(model, forms, ask.route)
        if not decision.forms:
            error = ModelNotFound("there is no such model any more", param="model")
            return denied(error, rights.no_grant(f"{model} by {ask.route}"))
        now = self._now()
        closed = decision.closed(now)
        if closed and not was.decide(model, forms, ask.route).closed(now):
            return denied(_closed(model, closed[1]), rights.not_open(*closed))
        return None

    # --- in it

    def _named(self, asked: str) -> tuple[str, str | None]:
        """What was asked for as a model and a form of it."""
        model, form = of_form(asked)
        return (model, form) if self._pool.known(model) else (asked, None)

    def _seen(self, rights: Rights, route: str | None = None) -> list[Deployment]:
        return [d for d in self._pool.all() if rights.forms(d.model, d.forms, route)]

    def _given(
        self, rights: Rights, model: str, form: str | None, route: str | None = None
    ) -> tuple[Deployment, Decision]:
        """A deployment, and what of it may be asked. Raises ModelNotFound: one of the same words for what is not there
        at all and what is not there for this client."""
        known = self._pool.known(model)
        forms = known.forms if known else frozenset()
        decision = rights.decide(model, forms if form is None else forms & {form}, route)
        if known and decision.forms:
            return known, decision
        if given := rights.forms(model, forms, route):
            served = " and ".join(f"{model}@{kind}" for kind in sorted(given))
            error = ModelNotFound(f"this form of {model} is not deployed; {served} is", param="model")
        else:
            names = (d.model for d in self._seen(rights, route))
            error = ModelNotFound.among("deployed model", names, param="model")
        there = known is not None and form in (None, *forms)
        asked = model if form is None else f"{model}@{form}"
        raise denied(error, rights.no_grant(f"{asked} by {route}" if route else asked)) if there else error


def _closed(model: str, hours: Hours) -> OutsideHours:
    return OutsideHours(f"you may use {model} at these hours: {hours}", param="model")
