"""The tiny policy as a Hugging Face checkpoint: tokenizer, processor, chat template and a random Qwen3-VL-MoE.

Attention heads have size 32, the least that vLLM's CPU build serves.
"""

import random
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from taskmem.policy.grammar import CLOSE, OPEN, completion_for
from taskmem.policy.renderer import clock
from taskmem.world.facts import TYPES, describe, sample_facts
from taskmem.world.questions import question_text

CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VOCABULARY = 448

# Qwen3-VL-Thinking's layout: the generation prompt opens <think>
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type in ('video', 'video_url') -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type in ('image', 'image_url') -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
<think>
{% endif -%}"""


def _corpus(lines: int = 3000) -> list[str]:
    """What prompts and answers look like, for the tokenizer to learn from; the same each time."""
    rng = random.Random(0)
    text = []
    for _ in range(lines):
        memory = describe(sample_facts(rng), rng.sample(TYPES, rng.randint(1, len(TYPES))))
        seconds = rng.randrange(3000)
        text += [completion_for(memory), f"memory:\n[{clock(seconds)}] {memory}\n", f"<{seconds / 10:.1f} seconds>"]
        text += [question_text(rng.choice(TYPES), seconds), "user\n", "assistant\n"]
    return text


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with Qwen's control tokens; digits stand alone, as Qwen's do."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2, special_tokens=list(CONTROL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(CONTROL[1:]),
        padding_side="left",
    )
    fast.add_tokens([OPEN, CLOSE])
    return fast


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    """Patches of 8 pixels and two frames, merged 2 x 2: 16 tokens for two 64 x 64 frames."""
    shape = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
    video = Qwen3VLVideoProcessor(
        **shape,
        size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64 * 64},
        min_frames=2,
        max_frames=64,
        do_sample_frames=False,
        cap_pixels_per_frame=False,
    )
    image = Qwen2VLImageProcessor(**shape, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64})
    return Qwen3VLProcessor(
        image_processor=image, tokenizer=tokenizer, video_processor=video, chat_template=CHAT_TEMPLATE
    )


def _text_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "moe_intermediate_size": 96,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "router_aux_loss_coef": 0.001,
    }


def _vision_config() -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 96,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3VLMoeForConditionalGeneration:
    """A randomly initialised Qwen3VLMoeForConditionalGeneration of about 0.8 M parameters."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in CONTROL}
    config = Qwen3VLMoeConfig(
        text_config=_text_config(tokenizer),
        vision_config=_vision_config(),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3VLMoeForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model
