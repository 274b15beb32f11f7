"""What somebody wants of a model. A dialect makes it of a body that it has validated; nothing is validated again."""

import hashlib
import json
from dataclasses import asdict, dataclass

from llmd.daemon import limits
from llmd.daemon.engine.messages import Chat, Detokenize, Generate, RawText, Tokenize, Tokens, Work


@dataclass(frozen=True, slots=True)
class Ask:
    """`route` is how the audit log names the way it came, `model` None the only model there is."""

    route: str
    model: str | None
    work: Work
    deadline: float = limits.GENERATE_SECONDS  # seconds until its last event

    @property
    def places(self) -> int:
        """How many sequences it may add to what runs and waits."""
        return self.work.choices if isinstance(self.work, Generate) else 1

    def prompt(self) -> bytes:
        """What the audit log's keyed hash covers."""
        work = self.work
        if isinstance(work, Detokenize):
            return json.dumps(work.tokens).encode()
        if isinstance(work, Tokenize):
            return work.text.encode()
        match work.prompt:
            case RawText(text):
                return text.encode()
            case Tokens(tokens):
                return json.dumps(tokens, separators=(",", ":")).encode()
            case Chat(turns):
                said = [{"role": t.role, "content": t.content} for t in turns]
                return json.dumps(said, separators=(",", ":")).encode()

    def parameters(self) -> str:
        """SHA-256 of the sampling parameters: equal parameters have equal hashes. "" where there are none."""
        if not isinstance(self.work, Generate):
            return ""
        return hashlib.sha256(json.dumps(asdict(self.work.params), sort_keys=True).encode()).hexdigest()
