"""Token ids to a completion, the same for every back end; without torch."""

from collections.abc import Sequence
from typing import Any

from taskmem.files import sha256_bytes
from taskmem.policy.grammar import CLOSE, parse
from taskmem.policy.protocols import Completion

# what a request to vLLM holds in `vllm_xargs` (vllm_plugin/draw.py): the context's seed, and how many rows its noise has
SEED_ARGUMENT, ROWS_ARGUMENT = "taskmem_seed", "taskmem_rows"
MOST_ROWS = 64  # completions of one context by way of a server, whose noise takes 4 bytes x rows x vocabulary


def seed_of(*parts: object) -> int:
    """A 63-bit seed from anything that prints the same each time."""
    return int(sha256_bytes(":".join(map(str, parts)))[:16], 16) >> 1


def completion_of(tokens: Sequence[int], tokenizer: Any) -> Completion:
    """Sampled token ids, parsed by the output grammar; `tokenizer` is the checkpoint's."""
    body = tokens[:-1] if tokens and tokens[-1] == tokenizer.eos_token_id else tokens
    text = tokenizer.decode(body, skip_special_tokens=False)
    memory = parse(text).memory
    close_id = tokenizer.convert_tokens_to_ids(CLOSE)
    return Completion(
        text=text,
        tokens=tuple(tokens),
        think_tokens=body.index(close_id) if close_id in body else len(body),
        memory=memory,
        memory_tokens=len(tokenizer(memory, add_special_tokens=False).input_ids) if memory else 0,
    )
