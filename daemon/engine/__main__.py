"""The worker process: one model. `python -P -m llmd.daemon.engine FD` with FD its end of a Unix socket pair.

Threads: the main thread is the engine; `read` takes frames in; `prompts` renders templates and tokenizes, so that a
long text never holds up a step; `beat` says once a second that the process lives and for how long the step has been
running.
"""

import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import threading
import time
from queue import SimpleQueue
from typing import Any

from llmd.daemon.engine import frames
from llmd.daemon.engine.loop import Engine
from llmd.daemon.engine.prompts import Prompts, TemplateTimeout
from llmd.daemon.engine.types import Request, Runner, SamplingParams
from llmd.daemon.errors import BadRequest, ContextExceeded, LlmdError

PR_SET_PDEATHSIG = 1
TEMPLATE_SECONDS = 2.0


class Worker:
    """Joins the socket to the engine. One thread a method of `read`, `prepare` and `beat`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._inbox: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._preparing: float | None = None
        self._prepare_thread: threading.Thread
        self._engine: Engine
        self._prompts: Prompts

    def send(self, message: dict[str, Any]) -> None:
        data = frames.encode(message)
        with self._lock:
            try:
                self._sock.sendall(data)
            except OSError:
                os._exit(0)  # the daemon is gone, and nobody is left to answer

    def serve(self) -> None:
        decoder = frames.Decoder()
        messages = self._messages(decoder)
        load = next(messages, None)
        if load is None:
            return
        runner = make_runner(load)
        self._prompts = Prompts(runner)
        self._engine = Engine(runner, self.send, batch=load["batch"], chunk=load["chunk"])
        info = runner.info
        self.send({
            "op": "ready", "context": info.context, "slots": info.slots, "vocab": info.vocab,
            "parameters": info.parameters,
            "size": info.size, "description": info.description, "chat": bool(info.chat_template),
        })  # fmt: skip
        self._prepare_thread = threading.Thread(target=self._prepare_all, name="prompts", daemon=True)
        self._prepare_thread.start()
        threading.Thread(target=self._read, args=(messages,), name="read", daemon=True).start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        gc.collect()
        gc.freeze()
        self._engine.run()

    # --- read

    def _messages(self, decoder: frames.Decoder) -> Any:
        while data := self._sock.recv(1 << 16):
            yield from decoder.feed(data)

    def _read(self, messages: Any) -> None:
        for message in messages:
            if message["op"] == "cancel":
                self._engine.cancel(message["id"])
            else:
                self._inbox.put(message)
        os._exit(0)

    # --- prompts

    def _prepare_all(self) -> None:
        while True:
            message = self._inbox.get()
            try:
                self._preparing = time.monotonic()
                self._prepare(message)
            except LlmdError as e:
                self._refuse(message["id"], e)
            except TemplateTimeout:
                self._refuse(message["id"], BadRequest("this prompt took too long to render"))
            finally:
                self._preparing = None

    def _refuse(self, id_: int, error: LlmdError) -> None:
        event = [id_, frames.ERROR, error.code, error.message, error.param]
        self.send({"op": "step", "events": [event], "state": None})

    def _prepare(self, message: dict[str, Any]) -> None:
        op, id_ = message["op"], message["id"]
        if op == "tokenize":
            tokens = self._runner.tokenize(
                message["text"], add_special=message["special"], parse_special=message["special"]
            )
            return self.send({"op": "reply", "id": id_, "value": tokens})
        if op == "detokenize":
            self._check_tokens(message["tokens"], "tokens")
            return self.send({"op": "reply", "id": id_, "value": self._runner.detokenize(message["tokens"])})
        tokens = self._tokens(message)
        context = self._runner.info.context
        if len(tokens) >= context:
            raise ContextExceeded(
                f"the prompt has {len(tokens)} tokens and this model's context is {context} tokens, at least one of "
                "them for the "
                "answer; shorten the prompt"
            )
        params = SamplingParams(**{**message["params"], "stop": tuple(message["params"]["stop"]),
                                   "logit_bias": tuple(map(tuple, message["params"]["logit_bias"]))})  # fmt: skip
        self._check_tokens([t for t, _ in params.logit_bias], "logit_bias")
        self.send({"op": "step", "events": [[id_, frames.START, len(tokens)]], "state": None})
        self._engine.add(Request(id_, message["owner"], tuple(tokens), params, message["choices"]))

    def _tokens(self, message: dict[str, Any]) -> list[int]:
        if message["messages"] is not None:
            return self._prompts.from_messages(message["messages"])
        if isinstance(message["prompt"], str):
            tokens = self._prompts.from_text(message["prompt"])
        else:
            tokens = message["prompt"]
            self._check_tokens(tokens, "prompt")
        if not tokens:
            raise BadRequest("the prompt is empty; give at least one token", param="prompt")
        return tokens

    def _check_tokens(self, tokens: list[int], param: str) -> None:
        vocab = self._runner.info.vocab
        for token in tokens:
            if not 0 <= token < vocab:
                raise BadRequest(f"there is no token {token}; this model's tokens are 0 to {vocab - 1}", param=param)

    @property
    def _runner(self) -> Runner:
        return self._engine.runner

    # --- beat

    def _beat(self) -> None:
        while True:
            began, now = self._engine.step_began, time.monotonic()
            self.send({"op": "beat", "step": now - began if began else 0.0, "token": now - self._engine.last_token})
            if self._preparing and now - self._preparing > TEMPLATE_SECONDS:
                # a template may loop for ever without output; nothing else can stop a thread
                ident = ctypes.c_ulong(self._prepare_thread.ident or 0)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(TemplateTimeout))
            time.sleep(1.0)


def make_runner(load: dict[str, Any]) -> Runner:
    """The runner that a `load` message asks for. The import is here: a fake one needs no llama.cpp."""
    if load["runner"] == "fake":
        from llmd.daemon.engine.fake import FakeRunner

        return FakeRunner(slots=load["slots"], context=load["context"], **load["fake"])
    from llmd.daemon.engine.llama import LlamaRunner

    return LlamaRunner(
        load["path"], slots=load["slots"], context=load["context"], batch=load["batch"], threads=load["threads"],
        gpus=load["gpus"], split=load["split"], kv_type=load["kv_type"], ubatch=load["ubatch"],
    )  # fmt: skip


def main() -> None:
    parent = int(sys.argv[2])
    # the kernel kills this process when the daemon dies, however it dies
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold prompts
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's to handle
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    worker = Worker(sock)
    try:
        worker.serve()
    except LlmdError as e:
        worker.send({"op": "fatal", "code": e.code, "message": e.message})
        sys.exit(1)


if __name__ == "__main__":
    main()
