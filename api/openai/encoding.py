"""A model's events as a client reads them: Server-Sent Events, or one JSON body.

The text of a token is the only part of an event that changes, so the rest is encoded once a stream.
"""

import asyncio
import codecs
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from llmd.api.http.error_answers import openai
from llmd.api.http.streams import event as sse
from llmd.daemon.errors import LlmdError, from_wire
from llmd.daemon.serving.begun import Answer
from llmd.daemon.wire.events import ChosenLogprob, Event, Failed, Finished, Reasoning, Text, TokenLogprob, ToolCalled


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


# stands for a choice's number and for a text where an event's unchanging parts are cut
_MARK = secrets.token_hex(8)
_CUT = f'"{_MARK}"'.encode()

# tokens whose log-probabilities are encoded at a time
SLICE = 128

DONE = sse("[DONE]")


def failed(error: LlmdError) -> bytes:
    """How a stream ends that cannot go on, or begin."""
    return sse(_json(openai(error)), "error") + DONE


@dataclass(slots=True)
class Shape:
    """The JSON that surrounds a text: chat or plain completions."""

    chat: bool
    id: str
    model: str
    logprobs: bool
    created: int = field(default_factory=lambda: int(time.time()))
    # plain completions: of each choice, the text that its log-probabilities have shown
    texts: dict[int, "TextLength"] = field(default_factory=dict)

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def show_logprobs(self, entries: Sequence[ChosenLogprob], choice: int) -> dict[str, Any] | None:
        """As this route shows them; None where none were asked for."""
        if not self.logprobs or not entries:
            return None
        if self.chat:
            return {
                "content": [{**_token(e.chosen), "top_logprobs": [_token(t) for t in e.top]} for e in entries],
            }
        text = self.texts.setdefault(choice, TextLength())
        return {
            "tokens": [_shown(e.chosen.token, "bytes:") for e in entries],
            "token_logprobs": [e.chosen.logprob for e in entries],
            "text_offset": [text.add(e.chosen.token) for e in entries],
            "top_logprobs": [{_shown(t.token, "bytes:"): t.logprob for t in e.top} for e in entries],
        }


class TextLength:
    """How long a text is that comes as tokens, in characters."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0

    def add(self, token: bytes) -> int:
        """Where the token begins: one that goes on with a character begins where that does."""
        at = self._length
        self._length += len(self._decoder.decode(token))
        return at


def _token(of: TokenLogprob) -> dict[str, Any]:
    return {"token": _shown(of.token), "logprob": of.logprob, "bytes": list(of.token)}


def _shown(token: bytes, mark: str = "") -> str:
    """A token's text; of one that is part of a character its bytes, written as OpenAI writes them."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return mark + "".join(f"\\x{byte:02x}" for byte in token)


def _begun(call: ToolCalled) -> dict[str, Any]:
    """A call as it begins; its identifier is made here, and nobody else keeps it."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": "call_" + secrets.token_hex(12), "type": "function", "function": function}


def _reason(end: Finished) -> str:
    """How this dialect calls an end."""
    return "tool_calls" if end.calls and end.reason == "stop" else end.reason


def usage(answer: Answer) -> dict[str, Any]:
    return {
        "prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
    }  # fmt: skip


class Counts:
    """The usage of an answer as far as it is shown: `note` its events in their order."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._tokens = [0] * answer.choices

    def note(self, event: Event) -> None:
        if isinstance(event, Text | Reasoning | ToolCalled | Finished):
            self._tokens[event.choice] = event.tokens

    def usage(self) -> dict[str, Any]:
        found, generated = usage(self._answer), sum(self._tokens)
        return {**found, "completion_tokens": generated, "total_tokens": found["prompt_tokens"] + generated}


class EventEncoder:
    """One stream's events to bytes. `usage`: the client asked for a last event with the token counts. `counts`:
    each event is to have some."""

    def __init__(self, shape: Shape, *, usage: bool, counts: Counts | None = None) -> None:
        self._shape, self._usage, self._counts = shape, usage, counts
        self._kind = "chat.completion.chunk" if shape.chat else "text_completion"
        # what stands before the choice's number, between it and the text, and after the text
        self._before, self._between, self._after = self._chunk(_MARK, self._content(_MARK), None, None).split(_CUT)

    def first(self, choices: int) -> bytes:
        """Chat: each choice begins with its role."""
        if not self._shape.chat:
            return b""
        return b"".join(
            self._chunk(c, {"delta": {"role": "assistant", "content": ""}}, None, None) for c in range(choices)
        )

    def event(self, event: Event) -> bytes:
        """What a client sees of it."""
        if self._counts:
            self._counts.note(event)
        match event:
            case Text():
                return self.text(event)
            case Reasoning():
                return self.reasoning(event)
            case ToolCalled():
                return self.called(event)
            case Finished():
                return self.finished(event)
        return b""

    def text(self, event: Text) -> bytes:
        shown = self._shape.show_logprobs(event.logprobs, event.choice)
        if shown is None and not self._counts:
            return b"%s%d%s%s%s" % (self._before, event.choice, self._between, quoted(event.text).encode(), self._after)
        return self._chunk(event.choice, self._content(event.text), shown, None)

    def reasoning(self, event: Reasoning) -> bytes:
        return self._chunk(event.choice, {"delta": {"reasoning_content": event.text}}, None, None)

    def called(self, event: ToolCalled) -> bytes:
        call: dict[str, Any] = {"index": event.number, "function": {"arguments": event.arguments}}
        if event.name:
            call = {"index": event.number, **_begun(event)}
        return self._chunk(event.choice, {"delta": {"tool_calls": [call]}}, None, None)

    def finished(self, event: Finished) -> bytes:
        content: dict[str, Any] = {"delta": {}} if self._shape.chat else {"text": ""}
        return self._chunk(event.choice, content, None, _reason(event))

    def failed(self, event: Failed) -> bytes:
        return failed(from_wire(event.code, event.message, event.param))

    def end(self, usage: dict[str, Any]) -> bytes:
        if not self._usage:
            return DONE
        return sse(_json({**self._shape.head(self._kind), "choices": [], "usage": usage})) + DONE

    def _content(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}} if self._shape.chat else {"text": text}

    def _chunk(
        self, choice: int | str, content: dict[str, Any], logprobs: dict[str, Any] | None, finish: str | None
    ) -> bytes:
        value = {
            **self._shape.head(self._kind),
            "choices": [{"index": choice, **content, "logprobs": logprobs, "finish_reason": finish}],
        }
        if self._counts:
            value["usage"] = self._counts.usage()
        elif self._usage:
            value["usage"] = None
        return sse(_json(value))


async def encoded(answer: Answer, encoder: EventEncoder) -> AsyncIterator[bytes]:
    """Everything that waits goes out in one write: when tokens come faster than the client reads, writes grow, not
    queues."""
    if begin := encoder.first(answer.choices):
        yield begin
    async for events in answer:
        out = bytearray()
        for event in events:
            if isinstance(event, Failed):
                yield bytes(out) + encoder.failed(event)
                return
            out += encoder.event(event)
        if out:
            yield bytes(out)
    yield encoder.end(usage(answer))


class _Whole:
    """A choice of an answer that is no stream."""

    def __init__(self) -> None:
        self.text = self.reasoning = ""
        self.calls: list[dict[str, Any]] = []
        self.logprobs: list[ChosenLogprob] = []
        self.finish: str | None = None

    def take(self, event: object) -> None:
        match event:
            case Text():
                self.text += event.text
                self.logprobs += event.logprobs
            case Reasoning():
                self.reasoning += event.text
            case ToolCalled():
                if event.name:
                    self.calls.append(_begun(event))
                else:
                    self.calls[event.number]["function"]["arguments"] += event.arguments
            case Finished():
                self.finish = _reason(event)
                del self.calls[event.calls :]  # one that was cut is none

    def message(self) -> dict[str, Any]:
        content = None if self.calls and not self.text else self.text
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = self.calls
        return message


async def whole(answer: Answer, shape: Shape) -> list[bytes]:
    """The answer as one JSON body, in parts. Raises the LlmdError that ended it."""
    choices = [_Whole() for _ in range(answer.choices)]
    async for events in answer:
        for event in events:
            if isinstance(event, Failed):
                raise from_wire(event.code, event.message, event.param)
            if isinstance(event, Text | Reasoning | ToolCalled | Finished):
                choices[event.choice].take(event)
    kind = "chat.completion" if shape.chat else "text_completion"
    parts = [_json(shape.head(kind))[:-1].encode(), b',"choices":[']
    for i, choice in enumerate(choices):
        content: dict[str, Any] = {"message": choice.message()} if shape.chat else {"text": choice.text}
        parts += [b"," if i else b"", _json({"index": i, **content})[:-1].encode(), b',"logprobs":']
        parts += [part async for part in _logprobs(shape, choice.logprobs, i)]
        parts.append(b',"finish_reason":%s}' % _json(choice.finish).encode())
    return [*parts, b'],"usage":%s}' % _json(usage(answer)).encode()]


async def _logprobs(shape: Shape, entries: list[ChosenLogprob], choice: int) -> AsyncIterator[bytes]:
    """The JSON of a choice's log-probabilities. There may be megabytes of them: others have their turn in between."""
    slices = [entries[at : at + SLICE] for at in range(0, len(entries), SLICE)]
    shown: dict[str, list[bytes]] = {}
    for some in slices:
        for key, values in (shape.show_logprobs(some, choice) or {}).items():
            shown.setdefault(key, []).append(_json(values)[1:-1].encode())
        await asyncio.sleep(0)
    if not shown:
        yield b"null"
        return
    for at, (key, parts) in enumerate(shown.items()):
        yield b'%s"%s":[' % (b"," if at else b"{", key.encode())
        for number, part in enumerate(parts):
            yield (b"," if number else b"") + part
        yield b"]"
    yield b"}"
