"""The routes that a model answers: in which thread a body becomes what is asked."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from fastapi import Request

from llmd.api.http.app import application
from llmd.api.openai import chat
from llmd.api.openai.schema import ChatBody
from llmd.daemon.errors import BadRequest
from llmd.daemon.identity.principal import Principal
from llmd.daemon.wire.work import Prompt

NOBODY: Any = None


@pytest.mark.parametrize("large", [False, True])
async def test_a_large_conversation_is_taken_apart_beside_the_event_loop(large: bool) -> None:
    threads: list[str] = []

    class Noted(ChatBody):
        def prompts(self) -> Sequence[Prompt]:
            threads.append(threading.current_thread().name)
            raise BadRequest("that is enough")

    body = Noted.model_validate({"messages": [{"role": "user", "content": "hi"}]})
    alice = Principal("alice", "infer", "", "")
    app = application((), lambda _: alice)
    request = Request({"type": "http", "large": large, "principal": alice, "app": app})
    with pytest.raises(BadRequest, match="enough"):
        await chat.chat(body, request, NOBODY, alice)
    assert (threads == [threading.current_thread().name]) is not large
