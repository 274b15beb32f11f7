"""How many prompt tokens a step computes beside the streams, from how long steps have taken. Pure: times are passed in.

A step's prompts may take as long as its streams' own tokens do: then no stream is slowed to less than half, and prompts
have half of the device while there are any.
"""

# of a new measurement; the rest is what was measured before
WEIGHT = 0.2
LEAST = 32


class Pace:
    """`chunk`: prompt tokens a step; `first` until something is measured, `most` at most."""

    def __init__(self, first: int, most: int) -> None:
        self._chunk, self._most = float(first), most
        self._streams = 0.0  # seconds of a step without prompts

    @property
    def chunk(self) -> int:
        return round(self._chunk)

    def note(self, prompts: int, generating: int, seconds: float) -> None:
        """A step computed `prompts` tokens of prompts beside `generating` sequences' tokens.

        A pass has a cost of its own, so that a step of another length says nothing of this one's.
        """
        if not generating:
            return
        if not prompts:
            self._streams = (1 - WEIGHT) * self._streams + WEIGHT * seconds if self._streams else seconds
        elif self._streams and self._chunk / 2 <= prompts <= 2 * self._chunk and seconds > self._streams:
            fair = prompts * self._streams / (seconds - self._streams)
            self._chunk += WEIGHT * (max(LEAST, min(self._most, fair)) - self._chunk)
