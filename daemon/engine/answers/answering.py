"""One request's answers: what they are held to, and what is read in them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from llmd.daemon.engine.answers import grammar
from llmd.daemon.engine.answers.formats import Syntax, Thoughts
from llmd.daemon.engine.answers.matching import Grammar, Grammars, Matcher
from llmd.daemon.engine.answers.reader import Piece, Reader
from llmd.daemon.engine.answers.schemas import texts_of
from llmd.daemon.engine.types import Lexicon
from llmd.daemon.wire.work import Wanted


@dataclass(frozen=True, slots=True)
class Answering:
    """Made once a request, by `Answers`. Whether a whole answer fits its schema is not seen here: a schema may make
    that take any time (`judge.py`)."""

    syntax: Syntax
    wanted: Wanted
    thoughts: Thoughts
    grammar: Grammar | None = None  # None: any text

    def start(self, stop: tuple[str, ...] = ()) -> "Choice":
        return Choice(self, stop)


class Choice:
    """One answer as it comes. The engine thread alone."""

    def __init__(self, answering: Answering, stop: tuple[str, ...] = ()) -> None:
        self.matcher: Matcher | None = answering.grammar.start() if answering.grammar else None
        tools = frozenset(tool.name for tool in answering.wanted.tools)
        texts = {tool.name: texts_of(tool.parameters) for tool in answering.wanted.tools}
        begun = answering.thoughts == Thoughts.BEGUN
        self._reader = Reader(answering.syntax, tools, texts=texts, thinks=begun, stop=stop)
        self.reasoning = 0  # tokens

    @property
    def calls(self) -> int:
        """How many are whole."""
        return self._reader.whole

    @property
    def stopped(self) -> str:
        """The stop string that came in what it says; "": none has."""
        return self._reader.stopped

    @property
    def shown(self) -> int:
        """How many characters of the text are certain to be no part of a stop string."""
        return self._reader.shown

    def push(self, text: str) -> list[Piece]:
        """A token's text."""
        thought = self._reader.thinking
        pieces = self._reader.push(text)
        self.reasoning += thought or self._reader.thinking
        return pieces

    def end(self, *, cut: bool) -> list[Piece]:
        """`cut`: the model had not ended it."""
        return self._reader.end(cut=cut)


class Answers:
    """What makes them, for one model. `lexicon` gives its vocabulary."""

    def __init__(self, lexicon: Callable[[], Lexicon]) -> None:
        self._lexicon = lexicon

    @cached_property
    def _vocabulary(self) -> tuple[Grammars, dict[str, int]]:
        lexicon = self._lexicon()
        return Grammars(lexicon), lexicon.tokens()

    def prepare(self, syntax: Syntax) -> dict[int, bytes]:
        """What the first request would wait for. The control tokens that mean something in this syntax, and their
        names: a reader sees them."""
        _, tokens = self._vocabulary
        found = {text: token for text, token in tokens.items() if any(text in mark for mark in syntax.marks)}
        return {token: text.encode() for text, token in found.items()}

    def answering(
        self, syntax: Syntax, wanted: Wanted, thoughts: Thoughts = Thoughts.MAY, owner: str = ""
    ) -> Answering | None:
        """None: whatever the model writes is text. What is made is kept for `owner`. Raises SchemaUnsupported."""
        if wanted.schema is None and not wanted.tools:
            return Answering(syntax, wanted, thoughts) if syntax.thinking else None
        grammars, tokens = self._vocabulary
        field = "tools" if wanted.schema is None else "response_format"
        compiled = grammars.compiled(grammar.answer(syntax, wanted, tokens, thoughts), field, owner)
        return Answering(syntax, wanted, thoughts, compiled)
