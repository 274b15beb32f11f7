"""The runner on the real small model: sampling, prefixes, copies between slots, text."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf_writer as gguf
import pytest

from llmd.daemon.engine.llama import runner as runner_module
from llmd.daemon.engine.llama import vocabulary as vocabulary_module
from llmd.daemon.engine.llama.passes import BLOCK, Call
from llmd.daemon.engine.llama.runner import LlamaRunner
from llmd.daemon.engine.llama.sampling import Sampling
from llmd.daemon.engine.llama.vocabulary import of_file
from llmd.daemon.engine.prompts import Prompts, terms
from llmd.daemon.engine.rendering import Rendering
from llmd.daemon.engine.scheduler import Scheduler
from llmd.daemon.engine.types import Request, SamplingParams, Token
from llmd.daemon.errors import ModelInvalid
from llmd.daemon.models.checking import trial
from llmd.daemon.wire.work import Chat, ChatMessage
from llmd.quantize import footprint


def texts(
    runner: LlamaRunner, requests: list[Request], scheduler: Scheduler | None = None
) -> dict[tuple[int, int], list[Token]]:
    s = scheduler or Scheduler(runner.info, batch=256, chunk=64)
    for request in requests:
        s.add(request)
    out: dict[tuple[int, int], list[Token]] = {}
    while s.busy:
        plan = s.plan()
        runner.launch(plan)
        for samples in runner.collect():
            for token in s.apply(plan, samples):
                out.setdefault((token.sequence.request.id, token.sequence.choice), []).append(token)
    return out


def ids(tokens: list[Token]) -> list[int]:
    return [t.sample.token for t in tokens]


def ask(runner: LlamaRunner, id_: int, text: str, *, owner: str = "a", choices: int = 1, **params: Any) -> Request:
    prompt = tuple(runner.vocabulary.tokenize(text, add_special=True, parse_special=True))
    params = {"max_tokens": 16, "temperature": 0.0, "ignore_eos": True, **params}
    return Request(id_, owner, prompt, SamplingParams(**params), choices)


FRANCE = "The capital of France is"
LONG = (
    "Once upon a time there was a small house at the edge of a forest, and in it lived an old man who collected "
    "clocks. " * 6
)


def test_greedy_text_is_the_models(runner: LlamaRunner) -> None:
    out = texts(runner, [ask(runner, 1, FRANCE)])
    assert runner.vocabulary.detokenize(ids(out[1, 0])).startswith(" Paris")


def test_the_same_seed_gives_the_same_text_alone_in_company_and_on_a_shared_prefix(runner: LlamaRunner) -> None:
    alone = texts(runner, [ask(runner, 1, LONG, temperature=0.9, seed=42)])[1, 0]
    crowd = [ask(runner, i, f"{i} {LONG}", owner="b", temperature=0.9) for i in range(2, 5)]
    scheduler = Scheduler(runner.info, batch=256, chunk=64)
    company = texts(runner, [ask(runner, 1, LONG, temperature=0.9, seed=42), *crowd], scheduler)[1, 0]
    again = texts(runner, [ask(runner, 9, LONG, temperature=0.9, seed=42)], scheduler)[9, 0]
    assert again[0].sequence.cached > 50
    assert ids(alone) == ids(company) == ids(again)
    other = texts(runner, [ask(runner, 1, LONG, temperature=0.9, seed=43)])[1, 0]
    assert ids(other) != ids(alone)


def test_choices_share_the_prompt_and_differ(runner: LlamaRunner) -> None:
    out = texts(runner, [ask(runner, 1, LONG, choices=4, temperature=1.0, seed=7)])
    assert len({tuple(ids(tokens)) for tokens in out.values()}) == 4
    assert [out[1, c][0].sequence.cached > 50 for c in range(4)] == [False, True, True, True]


def test_greedy_choices_after_a_copy_equal_the_original(runner: LlamaRunner) -> None:
    out = texts(runner, [ask(runner, 1, LONG, choices=4)])
    assert len({tuple(ids(tokens)) for tokens in out.values()}) == 1


def test_sampling_in_threads_gives_what_sampling_in_turn_gives(
    runner: LlamaRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say() -> list[list[int]]:
        out = texts(runner, [ask(runner, i, f"{i} {FRANCE}", temperature=1.0, seed=i) for i in range(4)])
        return [ids(out[i, 0]) for i in range(4)]

    monkeypatch.setattr(runner, "_sampling", Sampling(runner.info.slots))
    in_turn = say()
    monkeypatch.setattr(runner, "_sampling", Sampling(runner.info.slots, 4))
    assert say() == in_turn


def test_a_token_that_a_mask_does_not_name_is_not_sampled(runner: LlamaRunner) -> None:
    s = Scheduler(runner.info, batch=256, chunk=64)
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


def test_prompts_that_are_filled_up_for_a_gpu_say_what_they_would_say(
    runner: LlamaRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU gets them: calls of one pass, with filling that is cut off again."""
    asked = [ask(runner, i, f"{FRANCE}{' and' * i} of", owner=str(i), max_tokens=4) for i in range(3)]
    alone = [ids(texts(runner, [one])[one.id, 0]) for one in asked]
    calls: list[list[int]] = []
    decode = runner._decode

    def noted(call: Call) -> list[tuple[int, int]]:
        calls.append([call.filling.get(chunk.slot, 0) for chunk in call.chunks])
        return decode(call)

    monkeypatch.setattr(runner, "_gpu", True)
    monkeypatch.setattr(runner, "info", replace(runner.info, exact_block=0, overlaps=True))
    monkeypatch.setattr(runner, "_decode", noted)
    together = texts(runner, asked)
    assert [ids(together[one.id, 0]) for one in asked] == alone
    lengths = [len(one.prompt) for one in asked]
    assert calls[0] == [max(lengths) - n for n in lengths], "one call, filled up"
    assert calls[1:] == [[0, 0, 0]] * 3


def test_a_prefix_of_another_owner_is_read_anew(runner: LlamaRunner) -> None:
    scheduler = Scheduler(runner.info, batch=256, chunk=64)
    texts(runner, [ask(runner, 1, LONG)], scheduler)
    out = texts(runner, [ask(runner, 2, LONG, owner="b")], scheduler)
    assert out[2, 0][0].sequence.cached == 0


def test_logit_bias_forces_and_forbids(runner: LlamaRunner) -> None:
    word = runner.vocabulary.tokenize(" blue", add_special=False, parse_special=False)[0]
    forced = texts(runner, [ask(runner, 1, FRANCE, logit_bias=((word, 100.0),), max_tokens=3)])[1, 0]
    assert ids(forced) == [word] * 3
    paris = texts(runner, [ask(runner, 1, FRANCE, max_tokens=1)])[1, 0][0].sample.token
    without = texts(runner, [ask(runner, 1, FRANCE, logit_bias=((paris, -100.0),), max_tokens=1)])[1, 0]
    assert ids(without) != [paris]


@pytest.mark.parametrize("penalty", [{"repeat_penalty": 1.5}, {"frequency_penalty": 2.0}, {"presence_penalty": 2.0}])
def test_penalties_stop_repetition(runner: LlamaRunner, penalty: dict[str, Any]) -> None:
    prompt = FRANCE  # which it continues by saying one sentence over and over
    plain = texts(runner, [ask(runner, 1, prompt, max_tokens=64)])[1, 0]
    less = texts(runner, [ask(runner, 1, prompt, max_tokens=64, **penalty)])[1, 0]
    assert len(set(ids(less))) > len(set(ids(plain)))


def test_no_prompt_ends_with_the_token_that_ends_texts(tmp_path: Path) -> None:
    """Whatever a file for training asks for."""
    seen = []
    for wanted in (False, True):
        file = gguf.tiny()
        file.keys["tokenizer.ggml.add_eos_token"] = (gguf.BOOL, wanted)
        path = tmp_path / f"{wanted}.gguf"
        path.write_bytes(file.bytes())
        vocabulary = of_file(str(path))
        seen.append(vocabulary.tokenize("aa", add_special=True, parse_special=True))
        assert vocabulary.tokenize("a</s>", add_special=True, parse_special=True)[-1] in vocabulary.ends
    assert seen[0] == seen[1] and seen[0][0] == 1


def test_what_is_escaped_has_no_blank_before_it(tmp_path: Path) -> None:
    """SentencePiece puts one before a text, and a message with the text of a special token comes in several."""
    file = gguf.tiny()
    file.keys["tokenizer.chat_template"] = (gguf.STR, "{{ messages[0].content }}")
    path = tmp_path / "x.gguf"
    path.write_bytes(file.bytes())
    runner = LlamaRunner(str(path), slots=1, context=64)
    assert runner.vocabulary._blank
    prompts = Prompts(runner.vocabulary, Rendering(terms(runner.vocabulary, 64)))
    tokens, _ = prompts.from_chat(Chat((ChatMessage("user", "a</s>a"),)))
    assert runner.vocabulary.detokenize(tokens) == "<s>▁a</s>a"
    assert not runner.info.eos & set(tokens)
    runner.close()


def test_a_text_may_be_more_tokens_than_bytes(tmp_path: Path) -> None:
    """Where a vocabulary has no blank, each is the three bytes that stand for it."""
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf.tiny().bytes())
    runner = LlamaRunner(str(path), slots=1, context=64)
    tokens = runner.vocabulary.tokenize(" " * 40, add_special=False, parse_special=False)
    assert len(tokens) == 3 * 41 and set(runner.vocabulary.detokenize(tokens)) == {"▁"}
    runner.close()


def test_a_text_that_begins_as_texts_begin_does_so_once(runner: LlamaRunner) -> None:
    prompts = Prompts(runner.vocabulary, Rendering(terms(runner.vocabulary, 64)))
    bos = runner.vocabulary.bos_text
    first = runner.vocabulary.tokenize(bos, add_special=False, parse_special=True)
    assert len(first) == 1 and prompts.from_text(f"{bos}Hello")[:2].count(first[0]) == 1


def test_the_memory_arithmetic_knows_how_long_a_pass_may_be() -> None:
    assert footprint.BEYOND == 2 * BLOCK


def test_logprobs_are_a_distribution_with_the_chosen_token_in_it(runner: LlamaRunner) -> None:
    token = texts(runner, [ask(runner, 1, FRANCE, logprobs=5, max_tokens=1)])[1, 0][0]
    logprob = token.sample.logprob
    assert logprob is not None and logprob.top[0] == (logprob.token, logprob.logprob)
    values = [p for _, p in logprob.top]
    assert values == sorted(values, reverse=True) and sum(map(math.exp, values)) < 1
    assert texts(runner, [ask(runner, 1, FRANCE, max_tokens=1)])[1, 0][0].sample.logprob is None


def test_tokens_and_text_round_trip(runner: LlamaRunner) -> None:
    for text in ("hello world", "ünïcödé 🙂", "  spaces  \n\n tabs\t", ""):
        tokens = runner.vocabulary.tokenize(text, add_special=False, parse_special=False)
        assert runner.vocabulary.detokenize(tokens) == text
        assert b"".join(map(runner.vocabulary.piece, tokens)).decode() == text


def test_special_text_is_a_token_only_when_asked(runner: LlamaRunner) -> None:
    assert len(runner.vocabulary.tokenize("<|im_end|>", add_special=False, parse_special=True)) == 1
    assert len(runner.vocabulary.tokenize("<|im_end|>", add_special=False, parse_special=False)) > 1
    assert "<|im_end|>" in runner.vocabulary.special_texts()


@pytest.mark.parametrize("reorder", [True, False])
def test_who_computes_one_token_leaves_the_weights_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reorder: bool
) -> None:
    """Gigabytes are copied otherwise, by one thread, and held beside the file."""
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf.tiny().bytes())
    orders: list[bool] = []

    def load(path: str, params: Any) -> Any:
        orders.append(params.use_extra_bufts)
        return vocabulary_module.load(path, params)

    monkeypatch.setattr(runner_module, "load", load)
    LlamaRunner(str(path), slots=1, context=64, reorder=reorder).close()
    assert orders == [reorder]


async def test_a_model_that_embeds_texts_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for causal in (True, False):
        file = gguf.tiny()
        file.keys["llama.attention.causal"] = (gguf.BOOL, causal)
        path.write_bytes(file.bytes())
        assert of_file(str(path)).samples is causal
    with pytest.raises(ModelInvalid, match="gives no text"):
        await trial(path, path.stat().st_size)


def test_a_file_that_is_no_model_is_refused_without_its_path(tmp_path: Any) -> None:
    file = tmp_path / "secret-name.gguf"
    file.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ModelInvalid) as e:
        LlamaRunner(str(file), slots=1)
    assert "secret-name" not in e.value.message
