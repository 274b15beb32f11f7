"""Stop strings: what of a text that comes in pieces may be shown. Pure."""

from operator import itemgetter


class Stops:
    """A text ends where the first of its stop strings begins, and no part of one is shown. `held` characters at the end
    of what was pushed are not shown: they may become one, or belong to the one that was `found` ("": none yet)."""

    def __init__(self, texts: tuple[str, ...] = ()) -> None:
        self._stops = [_Stop(text) for text in dict.fromkeys(texts)]
        self._text = ""
        self.held, self.found = 0, ""

    def push(self, new: str) -> str:
        """What may be shown now. Nothing is pushed behind one that was found."""
        if not self._stops:
            return new
        text, begin = self._text + new, len(self._text)
        found = [(begin + end - len(stop.text), stop.text) for stop in self._stops if (end := stop.read(new)) >= 0]
        if found:
            at, self.found = min(found, key=itemgetter(0))
            self.held = len(text) - at
        else:
            self.held = max(stop.at for stop in self._stops)
        shown = len(text) - self.held
        self._text = "" if found else text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """What was held: the text ends here, or something else comes."""
        if self.found:
            return ""
        text, self._text, self.held = self._text, "", 0
        for stop in self._stops:
            stop.at = 0
        return text


class _Stop:
    """One that looks out for itself: a step a character, whatever came before (Knuth, Morris, Pratt, 1977). `at`: how
    many of its first characters the text ends with."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        # of the first 1, 2, … characters, how many of the last ones are the first ones too; as far as it came
        self._back = [0]

    def read(self, new: str) -> int:
        """Where in `new` it ends first; -1: nowhere."""
        text, at = self.text, self.at
        for i, char in enumerate(new, 1):
            while at and text[at] != char:
                at = self._back[at - 1]
            if text[at] == char:
                at += 1
            if at == len(text):
                return i
            if at > len(self._back):
                self._back.append(self._next(at - 1))
        self.at = at
        return -1

    def _next(self, last: int) -> int:
        size = self._back[last - 1]
        while size and self.text[size] != self.text[last]:
            size = self._back[size - 1]
        return size + (self.text[size] == self.text[last])
