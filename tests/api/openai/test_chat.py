"""What a body asks of a model, without a connection that it came by."""

from typing import Any

import pytest

from llmd.api.openai.bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from llmd.api.openai.chat import ROUTES, ask_of
from llmd.daemon.errors import BadRequest
from llmd.daemon.serving.ask import Ask
from llmd.daemon.wire.work import Chat, ChatMessage, Detokenize, Generate, RawText, Tokenize

HI = [{"role": "user", "content": "hi"}]
CHAT = Chat((ChatMessage("user", "hi"),))
BODIES: list[tuple[type[Any], dict[str, Any], str, Any]] = [
    (ChatBody, {"messages": HI}, "/v1/chat/completions", (CHAT,)),
    (CompletionBody, {"prompt": ["a", "b"]}, "/v1/completions", (RawText("a"), RawText("b"))),
    (TokenizeBody, {"content": "a"}, "/tokenize", Tokenize("a")),
    (DetokenizeBody, {"tokens": [1]}, "/detokenize", Detokenize((1,))),
]


@pytest.mark.parametrize(("kind", "fields", "path", "wanted"), BODIES, ids=lambda value: getattr(value, "__name__", ""))
def test_each_body_is_an_ask(kind: type[Any], fields: dict[str, Any], path: str, wanted: Any) -> None:
    ask: Ask = ask_of(kind.model_validate(fields | {"model": "m"}))
    found = ask.work.prompts if isinstance(ask.work, Generate) else ask.work
    assert (ask.model, ask.route, ask.dialect, found) == ("m", path, "openai", wanted)
    assert path in {route.path for route in ROUTES if route.ask_of is ask_of}


def test_what_no_model_can_do_is_refused() -> None:
    with pytest.raises(BadRequest, match="prompt is missing"):
        ask_of(TokenizeBody())
    with pytest.raises(BadRequest, match="no tools"):
        ask_of(ChatBody.model_validate({"messages": HI, "tool_choice": "required"}))
