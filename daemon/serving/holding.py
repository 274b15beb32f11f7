"""What a request's whole answers are held against, gathered from its events: its schema, and those of its strict tools.
What checks them is `judging.py`."""

from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from llmd.daemon.wire.events import Event, Finished, Text, ToolCalled
from llmd.daemon.wire.work import Wanted

# a schema, the request's field that it comes from, what is held against it, and what that is
Whole: TypeAlias = tuple[str, str, str, str]
# raises AnswerInvalid for what does not fit, and Unavailable
Check = Callable[[list[Whole]], Coroutine[Any, Any, None]]


class Held:
    """Of one request. `note` its events in their order."""

    def __init__(self, wanted: Wanted) -> None:
        self._schema = wanted.schema
        self._tools = {tool.name: tool.parameters for tool in wanted.tools if tool.strict}
        self._said: dict[int, list[str]] = {}  # by choice
        self._called: dict[int, list[tuple[str, list[str]]]] = {}

    def note(self, event: Event) -> list[Whole]:
        """What is to be checked before this event is shown. An answer that is cut is none that could fit."""
        match event:
            case Text() if self._schema is not None:
                self._said.setdefault(event.choice, []).append(event.text)
            case ToolCalled(name=name, arguments=arguments):
                called = self._called.setdefault(event.choice, [])
                if name:
                    called.append((name, []))
                called[-1][1].append(arguments)
            case Finished():
                return self._whole(event.choice, event.calls, cut=event.reason == "length")
        return []

    def _whole(self, choice: int, calls: int, *, cut: bool) -> list[Whole]:
        called = self._called.pop(choice, [])[:calls]
        said = "".join(self._said.pop(choice, ()))
        if self._schema is not None and not called:
            if cut:
                return []
            return [(self._schema, "response_format", said, "the answer")]
        return [
            (self._tools[name], f"tools.{name}", "".join(arguments), "a call's arguments")
            for name, arguments in called
            if name in self._tools
        ]


def held(wanted: Wanted | None) -> Held | None:
    """None: whatever the model answers will do."""
    if wanted is None or (wanted.schema is None and not any(tool.strict for tool in wanted.tools)):
        return None
    return Held(wanted)
