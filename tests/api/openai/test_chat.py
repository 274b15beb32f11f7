"""The routes that a model answers: in which thread a body becomes what is asked."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from fastapi import Request

from llmd.api.http.app import application
from llmd.api.openai import chat
from llmd.api.openai.schema import ChatBody, CompletionBody
from llmd.daemon.engine.messages import Prompt
from llmd.daemon.errors import BadRequest
from llmd.daemon.identity.principal import Principal

NOBODY: Any = None


@pytest.mark.parametrize(("size", "here"), [(1, True), (chat.MANY_PIECES, False)])
async def test_a_long_conversation_is_taken_apart_beside_the_event_loop(size: int, here: bool) -> None:
    threads: list[str] = []

    class Noted(ChatBody):
        def prompts(self) -> Sequence[Prompt]:
            threads.append(threading.current_thread().name)
            raise BadRequest("that is enough")

    body = Noted.model_validate({"messages": [{"role": "user", "content": "hi"}] * size})
    alice = Principal("alice", "infer", "", "")
    app = application((), lambda _: alice)
    request = Request({"type": "http", "large": False, "principal": alice, "app": app})
    with pytest.raises(BadRequest, match="enough"):
        await chat.chat(body, request, NOBODY, alice)
    assert (threads == [threading.current_thread().name]) is here


def test_what_counts_as_a_piece() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}] * 3}, {"role": "user", "content": "b"}]
    assert ChatBody.model_validate({"messages": parts}).pieces() == 4
    for prompt, count in (("a", 1), ([1, 2, 3], 3), ([[1, 2], [3]], 3), (["a", "b"], 2)):
        assert CompletionBody.model_validate({"prompt": prompt}).pieces() == count
