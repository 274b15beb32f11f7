"""A runner on the real small model: sampling, prefixes, copies, text. Whatever computes it: `torch_side/interpreter.py`
has them run over torch's too."""

import math
from typing import Any

from saying import FRANCE, LONG, ask, ids, scheduler, texts

from llmd.daemon.engine.prompts import Prompts, terms
from llmd.daemon.engine.protocols import Runner
from llmd.daemon.engine.rendering import Rendering


def test_greedy_text_is_the_models(runner: Runner) -> None:
    out = texts(runner, [ask(runner, 1, FRANCE)])
    assert runner.vocabulary.detokenize(ids(out[1, 0])).startswith(" Paris")


def test_the_same_seed_gives_the_same_text_alone_in_company_and_on_a_shared_prefix(runner: Runner) -> None:
    alone = texts(runner, [ask(runner, 1, LONG, temperature=0.9, seed=42)])[1, 0]
    crowd = [ask(runner, i, f"{i} {LONG}", owner="b", temperature=0.9) for i in range(2, 5)]
    shared = scheduler(runner)
    company = texts(runner, [ask(runner, 1, LONG, temperature=0.9, seed=42), *crowd], shared)[1, 0]
    again = texts(runner, [ask(runner, 9, LONG, temperature=0.9, seed=42)], shared)[9, 0]
    assert again[0].sequence.cached > 50
    assert ids(alone) == ids(company) == ids(again)
    other = texts(runner, [ask(runner, 1, LONG, temperature=0.9, seed=43)])[1, 0]
    assert ids(other) != ids(alone)


def test_choices_share_the_prompt_and_differ(runner: Runner) -> None:
    out = texts(runner, [ask(runner, 1, LONG, choices=4, temperature=1.0, seed=7)])
    assert len({tuple(ids(tokens)) for tokens in out.values()}) == 4
    assert [out[1, c][0].sequence.cached > 50 for c in range(4)] == [False, True, True, True]


def test_greedy_choices_after_a_copy_equal_the_original(runner: Runner) -> None:
    out = texts(runner, [ask(runner, 1, LONG, choices=4)])
    assert len({tuple(ids(tokens)) for tokens in out.values()}) == 1


def test_a_token_that_a_mask_does_not_name_is_not_sampled(runner: Runner) -> None:
    s = scheduler(runner)
    s.add(ask(runner, 1, FRANCE))
    s.add(ask(runner, 2, FRANCE, owner="b", temperature=1.0))
    s.add(ask(runner, 3, FRANCE, owner="c", repeat_penalty=1.1))
    allowed = runner.vocabulary.tokenize(" blue", add_special=False, parse_special=False)[0]
    words = [0] * -(-runner.info.vocab // 32)
    words[allowed // 32] = 1 << allowed % 32
    while s.busy:
        plan = s.plan()
        runner.launch(plan)
        for samples in runner.collect({c.slot: words for c in plan.chunks if c.sample}):
            assert {sample.token for sample in samples} <= {allowed}
            s.apply(plan, samples)


def test_a_prefix_of_another_owner_is_read_anew(runner: Runner) -> None:
    shared = scheduler(runner)
    texts(runner, [ask(runner, 1, LONG)], shared)
    out = texts(runner, [ask(runner, 2, LONG, owner="b")], shared)
    assert out[2, 0][0].sequence.cached == 0


def test_logit_bias_forces_and_forbids(runner: Runner) -> None:
    word = runner.vocabulary.tokenize(" blue", add_special=False, parse_special=False)[0]
    forced = texts(runner, [ask(runner, 1, FRANCE, logit_bias=((word, 100.0),), max_tokens=3)])[1, 0]
    assert ids(forced) == [word] * 3
    paris = texts(runner, [ask(runner, 1, FRANCE, max_tokens=1)])[1, 0][0].sample.token
    without = texts(runner, [ask(runner, 1, FRANCE, logit_bias=((paris, -100.0),), max_tokens=1)])[1, 0]
    assert ids(without) != [paris]


def test_penalties_stop_repetition(runner: Runner) -> None:
    prompt = FRANCE  # which it continues by saying one sentence over and over
    penalties: list[dict[str, Any]] = [
        {}, {"repeat_penalty": 1.5}, {"frequency_penalty": 2.0}, {"presence_penalty": 2.0},
    ]  # fmt: skip
    out = texts(runner, [ask(runner, at, prompt, max_tokens=64, **one) for at, one in enumerate(penalties)])
    plain, *less = (len(set(ids(out[at, 0]))) for at in range(len(penalties)))
    assert min(less) > plain


def test_logprobs_are_a_distribution_with_the_chosen_token_in_it(runner: Runner) -> None:
    token = texts(runner, [ask(runner, 1, FRANCE, logprobs=5, max_tokens=1)])[1, 0][0]
    logprob = token.sample.logprob
    assert logprob is not None and logprob.top[0] == (logprob.token, logprob.logprob)
    values = [p for _, p in logprob.top]
    assert values == sorted(values, reverse=True) and sum(map(math.exp, values)) < 1
    assert texts(runner, [ask(runner, 1, FRANCE, max_tokens=1)])[1, 0][0].sample.logprob is None


def test_tokens_and_text_round_trip(runner: Runner) -> None:
    for text in ("hello world", "ünïcödé 🙂", "  spaces  \n\n tabs\t", ""):
        tokens = runner.vocabulary.tokenize(text, add_special=False, parse_special=False)
        assert runner.vocabulary.detokenize(tokens) == text
        assert b"".join(map(runner.vocabulary.piece, tokens)).decode() == text


def test_special_text_is_a_token_only_when_asked(runner: Runner) -> None:
    assert len(runner.vocabulary.tokenize("<|im_end|>", add_special=False, parse_special=True)) == 1
    assert len(runner.vocabulary.tokenize("<|im_end|>", add_special=False, parse_special=False)) > 1
    assert "<|im_end|>" in runner.vocabulary.special_texts()


def test_a_text_that_begins_as_texts_begin_does_so_once(runner: Runner) -> None:
    prompts = Prompts(runner.vocabulary, Rendering(terms(runner.vocabulary, 64)))
    bos = runner.vocabulary.bos_text
    first = runner.vocabulary.tokenize(bos, add_special=False, parse_special=True)
    assert len(first) == 1 and prompts.from_text(f"{bos}Hello")[:2].count(first[0]) == 1
