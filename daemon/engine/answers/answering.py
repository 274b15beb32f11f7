"""One request's answers: what they are held to, and what is read in them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from llmd.daemon.engine.answers import grammar
from llmd.daemon.engine.answers.formats import Syntax
from llmd.daemon.engine.answers.matching import Grammar, Grammars, Matcher
from llmd.daemon.engine.answers.reader import Argued, Called, Piece, Reader, Said
from llmd.daemon.engine.answers.schemas import Validator, parsed, texts_of
from llmd.daemon.engine.messages import Wanted
from llmd.daemon.engine.types import Lexicon


@dataclass(frozen=True, slots=True)
class Answering:
    """Made once a request, by `Answers`. `text` and `arguments` (by tool): what a whole answer is held against."""

    syntax: Syntax
    wanted: Wanted
    thinks: bool
    grammar: Grammar | None = None  # None: any text
    text: Validator | None = None
    arguments: Mapping[str, Validator] = field(default_factory=dict)

    def start(self) -> "Choice":
        return Choice(self)


class Choice:
    """One answer as it comes. The engine thread alone."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self.matcher: Matcher | None = answering.grammar.start() if answering.grammar else None
        tools = frozenset(tool.name for tool in answering.wanted.tools)
        texts = {tool.name: texts_of(tool.parameters) for tool in answering.wanted.tools}
        self._reader = Reader(answering.syntax, tools, texts=texts, thinks=answering.thinks)
        self._said: list[str] = []
        self._called: list[tuple[str, list[str]]] = []
        self.reasoning = 0  # tokens

    @property
    def calls(self) -> int:
        return len(self._called)

    def push(self, text: str) -> list[Piece]:
        """A token's text."""
        thought = self._reader.thinking
        pieces = self._reader.push(text)
        self.reasoning += thought or self._reader.thinking
        self._keep(pieces)
        return pieces

    def end(self) -> list[Piece]:
        pieces = self._reader.end()
        self._keep(pieces)
        return pieces

    def check(self) -> None:
        """Of an answer that ended by itself: it is what it was to be. Raises AnswerInvalid."""
        answering = self._answering
        if answering.text is not None and not self._called:
            answering.text.check("".join(self._said), "the answer")
        for name, arguments in self._called:
            if name in answering.arguments:
                answering.arguments[name].check("".join(arguments), "a call's arguments")

    def _keep(self, pieces: Sequence[Piece]) -> None:
        checks = self._answering
        for piece in pieces:
            if isinstance(piece, Said) and checks.text is not None:
                self._said.append(piece.text)
            elif isinstance(piece, Called):
                self._called.append((piece.name, []))
            elif isinstance(piece, Argued) and checks.arguments:
                self._called[-1][1].append(piece.text)


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

    def answering(self, syntax: Syntax, wanted: Wanted, *, thinks: bool) -> Answering | None:
        """None: whatever the model writes is text. Raises SchemaUnsupported."""
        if wanted.schema is None and not wanted.tools:
            return Answering(syntax, wanted, thinks) if syntax.thinking else None
        grammars, tokens = self._vocabulary
        field = "tools" if wanted.schema is None else "response_format"
        compiled = grammars.compiled(grammar.answer(syntax, wanted, tokens, thinks=thinks), field)
        text = None if wanted.schema is None else Validator(parsed(wanted.schema, "response_format"), "response_format")
        arguments = {
            tool.name: Validator(parsed(tool.parameters, f"tools.{tool.name}"), f"tools.{tool.name}")
            for tool in wanted.tools
            if tool.strict
        }
        return Answering(syntax, wanted, thinks, compiled, text, arguments)
