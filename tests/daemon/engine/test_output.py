"""Tokens to text: whole characters, and never a part of a stop string; log-probabilities of that text and no other."""

from hypothesis import given
from hypothesis import strategies as st

from llmd.daemon.engine.output import LogprobOutput, TextOutput
from llmd.daemon.wire.events import ChosenLogprob, TokenLogprob


def shown(pieces: list[bytes], stop: tuple[str, ...] = ()) -> list[str]:
    out = TextOutput(stop)
    texts = []
    for piece in pieces:
        texts.append(out.push(piece))
        if out.stopped:
            return texts
    return [*texts, out.flush()]


def test_a_character_split_across_tokens_comes_whole() -> None:
    smile = "🙂".encode()
    assert shown([b"a", smile[:1], smile[1:3], smile[3:], b"b"]) == ["a", "", "", "🙂", "b", ""]


def test_bytes_that_are_no_character_become_the_replacement_character() -> None:
    assert "".join(shown([b"a\xff", b"b", b"\xe2\x82b"])) == "a\ufffdb\ufffdb"


def test_a_text_that_ends_inside_a_character_ends_before_it() -> None:
    assert "".join(shown([b"a", b"b\xe2\x82"])) == "ab"
    assert "".join(shown([b"x", "🙂".encode()[:2]], ("xy",))) == "x"


def test_a_stop_string_split_across_tokens_is_never_seen() -> None:
    assert shown([b"one ", b"EN", b"D", b" two"], ("END",)) == ["one ", "", ""]


def test_what_only_looked_like_a_stop_string_comes_out() -> None:
    assert "".join(shown([b"EN", b"EN", b"DO"], ("ENDS",))) == "ENENDO"
    assert "".join(shown([b"xEN"], ("END",))) == "xEN"


def test_the_earliest_of_several_ends_the_text() -> None:
    assert "".join(shown([b"a b c d"], ("c", "b"))) == "a "


@given(
    st.text(alphabet="ab🙂", max_size=30),
    st.lists(st.text(alphabet="ab🙂", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_any_split_gives_the_text_up_to_the_first_stop(text: str, stop: list[str], data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=10)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    got = "".join(shown(pieces, tuple(stop)))
    ends = [text.find(s) for s in stop if s in text]
    if not ends:
        assert got == text
    else:
        # tokens come one by one: the stop string that is whole first ends the text
        assert text.startswith(got)
        assert not any(s in got for s in stop)
        assert any(text[len(got) :].startswith(s) for s in stop)


# --- log-probabilities


def with_logprobs(pieces: list[bytes], stop: tuple[str, ...] = ()) -> list[tuple[str, list[bytes]]]:
    """What each token made visible: text, and the tokens of log-probabilities."""
    out, logprobs = TextOutput(stop), LogprobOutput()
    seen = []
    for number, piece in enumerate(pieces):
        rival = TokenLogprob(b"rival", -2.0)
        logprobs.push(out, ChosenLogprob(TokenLogprob(piece, -1.0), (TokenLogprob(piece, -1.0), rival)))
        text = out.push(piece)
        last = out.stopped or number == len(pieces) - 1
        if last and not out.stopped:
            text += out.flush()
        entries = logprobs.rest(out.shown) if last else logprobs.release(out.shown)
        assert all(e.top == (e.chosen, rival) for e in entries)
        seen.append((text, [e.chosen.token for e in entries]))
        if last:
            break
    return seen


def cuts(data: bytes, *at: int) -> list[bytes]:
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


def test_logprobs_wait_until_all_of_their_text_is_shown() -> None:
    assert with_logprobs([b"one E", b"N", b"X"], ("END",)) == [("one ", []), ("", []), ("ENX", [b"one E", b"N", b"X"])]


def test_a_stop_string_leaks_through_no_logprob() -> None:
    assert with_logprobs([b"on", b"e E", b"ND two"], ("END",)) == [("on", [b"on"]), ("e ", []), ("", [b"e "])]
    assert with_logprobs([b"END", b"x"], ("END",)) == [("", [])]


def test_the_tokens_of_a_character_come_with_it_and_those_of_a_cut_one_never() -> None:
    smile = "🙂".encode()
    assert with_logprobs(cuts(smile, 1, 3)) == [("", []), ("", []), ("🙂", cuts(smile, 1, 3))]
    assert with_logprobs([b"a" + smile[:2], smile[2:3]]) == [("a", []), ("", [b"a"])]
    assert with_logprobs([smile[:2], smile[2:] + b"b" + smile[:1]]) == [
        ("", []),
        ("🙂b", [smile[:2], smile[2:] + b"b"]),
    ]


@given(
    st.text(alphabet="ab🙂é", max_size=30),
    st.lists(st.text(alphabet="ab🙂", min_size=1, max_size=4), max_size=3),
    st.integers(0, 3),
    st.data(),
)
def test_the_tokens_of_logprobs_are_the_text_whatever_cuts_it(
    text: str, stop: list[str], cut: int, data: st.DataObject
) -> None:
    raw = text.encode()
    raw = raw[: len(raw) - cut] or b"a"
    at = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=10)))
    whole, tokens = "", b""
    for shown, entries in with_logprobs(cuts(raw, *at), tuple(stop)):
        whole += shown
        tokens += b"".join(entries)
        assert whole.encode().startswith(tokens)
    assert whole.encode() == tokens
