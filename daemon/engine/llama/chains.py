"""llama.cpp's own samplers, for what `sampling.py` cannot choose."""

import weakref
from collections.abc import Sequence

import llama_cpp.llama_cpp as lib

from llmd.daemon.engine.types import SamplingParams

# penalties look back this far for `repeat_penalty`, as llama.cpp's own default does
REPEAT_WINDOW = 64


class Chain:
    """Those of one sequence, in llama.cpp's own order: logit bias, penalties, then greedy or top-k, top-p, min-p,
    temperature. They are freed with it. `address` is what llama.cpp knows them by."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], seed: int, vocab: int, context: int) -> None:
        config = lib.llama_sampler_chain_default_params()
        config.no_perf = True
        self.address = chain = lib.llama_sampler_chain_init(config)
        weakref.finalize(self, lib.llama_sampler_free, chain)
        if params.logit_bias:
            bias = (lib.llama_logit_bias * len(params.logit_bias))(*params.logit_bias)
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_logit_bias(vocab, len(bias), bias))
        if params.repeat_penalty != 1.0:
            repeat = lib.llama_sampler_init_penalties(vocab, REPEAT_WINDOW, params.repeat_penalty, 0.0, 0.0)
            for token in prompt[-REPEAT_WINDOW:]:
                lib.llama_sampler_accept(repeat, token)
            lib.llama_sampler_chain_add(chain, repeat)
        if params.presence_penalty or params.frequency_penalty:
            # over everything generated, not the prompt: what OpenAI's parameters mean
            lib.llama_sampler_chain_add(
                chain,
                lib.llama_sampler_init_penalties(
                    vocab, context, 1.0, params.frequency_penalty, params.presence_penalty
                ),
            )
        if params.temperature <= 0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
            return
        if params.top_k > 0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(params.top_k))
        if params.top_p < 1.0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(params.top_p, 1))
        if params.min_p > 0.0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_min_p(params.min_p, 1))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(params.temperature))
        # 2^32 - 1 means "draw one" to llama.cpp
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(seed % 0xFFFFFFFF))
