"""The counted operations against what torch counts, and against the mask itself."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration
from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeVisionConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeVisionBlock

from benchmarks.flops import Decoder, Rows, vision
from benchmarks.phase_two_30b import TEXT_TINY
from taskmem.policy.packing import tail_mask

TOKENS = 40


def test_a_packed_row_sees_as_many_tokens_as_its_mask_shows() -> None:
    prompt, lengths = 7, [3, 5, 1]
    block = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths, 1)])[None]
    of_tail = tail_mask(torch.ones(1, prompt, dtype=torch.bool), block)
    of_prompt = torch.ones(prompt, prompt, dtype=torch.bool).tril()
    row = Rows.packed(prompt, lengths)
    assert row.seen == int(of_tail.sum() + of_prompt.sum())
    assert row.tokens == prompt + sum(lengths)
    assert row.times(3) == Rows(3 * row.tokens, 3 * row.seen)


def test_a_frozen_layers_forward_and_backward_count_as_torch_counts_them() -> None:
    config = Qwen3VLMoeConfig(text_config={**TEXT_TINY, "num_hidden_layers": 1})
    model = Qwen3VLMoeForConditionalGeneration(config).eval().requires_grad_(False)
    model.set_experts_implementation("eager")  # torch does not count grouped products
    model.set_attn_implementation("eager")
    decoder = Decoder.of(config.text_config)
    # without a mask left out, every token looks at every other
    rows = Rows(TOKENS, TOKENS * TOKENS)
    states = torch.randn(1, TOKENS, decoder.hidden, requires_grad=True)
    positions = torch.arange(TOKENS).expand(3, 1, -1)
    decoder_layer = model.model.language_model.layers[0]
    embedded = model.model.language_model.rotary_emb(states, positions)
    counter = FlopCounterMode(display=False)
    with counter:
        out = decoder_layer(states, position_embeddings=embedded, attention_mask=None)
    assert counter.get_total_flops() == decoder.forward(1, rows)
    with counter:
        out.sum().backward()
    router = 2 * TOKENS * decoder.hidden * decoder.experts
    assert abs(counter.get_total_flops() - decoder.backward(1, rows)) <= router


def test_a_vision_block_counts_as_torch_counts_it() -> None:
    config = Qwen3VLMoeVisionConfig(depth=1, hidden_size=64, intermediate_size=128, num_heads=2)
    config._attn_implementation = "sdpa"
    block = Qwen3VLMoeVisionBlock(config)
    frame, frames = 16, 3
    states = torch.randn(frame * frames, 64)
    ends = torch.arange(frames + 1, dtype=torch.int32) * frame
    rotary = torch.randn(frame * frames, 32)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        block(states, cu_seqlens=ends, position_embeddings=(rotary.cos(), rotary.sin()))
    assert counter.get_total_flops() == vision(config, frame * frames, frame)


def test_the_head_counts_as_torch_counts_it() -> None:
    decoder = Decoder.of(Qwen3VLMoeConfig(text_config=TEXT_TINY).text_config)
    head = torch.nn.Linear(decoder.hidden, decoder.vocabulary, bias=False)
    counter = FlopCounterMode(display=False)
    with counter:
        head(torch.randn(TOKENS, decoder.hidden))
    assert counter.get_total_flops() == decoder.head(TOKENS)
