"""Tokens to text: whole characters, and never a part of a stop string."""

from hypothesis import given
from hypothesis import strategies as st

from llmd.daemon.engine.output import TextOutput


def shown(pieces: list[bytes], stop: tuple[str, ...] = ()) -> list[str]:
    out = TextOutput(stop)
    texts = []
    for piece in pieces:
        texts.append(out.push(piece))
        if out.finished:
            return texts
    return [*texts, out.flush()]


def test_a_character_split_across_tokens_comes_whole() -> None:
    smile = "🙂".encode()
    assert shown([b"a", smile[:1], smile[1:3], smile[3:], b"b"]) == ["a", "", "", "🙂", "b", ""]


def test_bytes_that_are_no_character_become_the_replacement_character() -> None:
    assert "".join(shown([b"a\xff", b"b", b"\xe2\x82"])) == "a\ufffdb\ufffd"


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
