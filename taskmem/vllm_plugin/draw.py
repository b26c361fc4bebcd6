"""The shared draw inside vLLM: a request's tokens are those that transformers would draw for the same context, n and seed.

Serve with `--logits-processors taskmem.vllm_plugin.draw:SharedDraw`. A request asks for it in `vllm_xargs` (taskmem_seed,
taskmem_rows), and its `seed` is the first of its rows: vLLM counts it up for each of `n`. Temperature, top_k and top_p are the
request's own. Tokens with a `logit_bias` are the forbidden ones, whatever the bias: one that makes them certain shows a server
where nobody draws.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from taskmem.config import Sampling
from taskmem.policy.completion import MOST_ROWS, ROWS_ARGUMENT, SEED_ARGUMENT
from taskmem.policy.draw import Drawing, Noise

OURS = "taskmem_"
KEPT = 4096  # places in the noise of contexts that are being written; 5 KB each on a CPU


@dataclass(frozen=True)
class Row:
    """One completion being drawn: `row` of the noise of `rows` from `seed`; `written` is vLLM's own list, which grows."""

    drawing: Drawing
    seed: int
    rows: int
    row: int
    written: Sequence[int]


def _whole(value: Any, name: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r:.40}; give a whole number from {least} to {most}")
    return value


def row_of(params: Any, _: Sequence[int] | None, written: Sequence[int]) -> Row | None:
    """What vLLM's SamplingParams ask for, None if no shared draw; ValueError if they ask for one that cannot be."""
    given = {name: value for name, value in (params.extra_args or {}).items() if name.startswith(OURS)}
    if not given:
        return None
    if set(given) != {SEED_ARGUMENT, ROWS_ARGUMENT}:
        raise ValueError(
            f"vllm_xargs holds {sorted(given)!r:.100}; a shared draw takes {SEED_ARGUMENT} and {ROWS_ARGUMENT}"
        )
    rows = _whole(given[ROWS_ARGUMENT], ROWS_ARGUMENT, 1, MOST_ROWS)
    if params.temperature <= 0:
        raise ValueError("temperature is 0; a shared draw needs one above it")
    if params.n > rows:
        raise ValueError(f"n is {params.n}; a shared draw of {rows} rows writes {rows} at most")
    return Row(
        Drawing(
            Sampling(temperature=params.temperature, top_p=params.top_p, top_k=max(0, params.top_k)),
            tuple(sorted(params.logit_bias or ())),
        ),
        _whole(given[SEED_ARGUMENT], SEED_ARGUMENT, 0, (1 << 63) - 1),
        rows,
        _whole(params.seed, "seed (the first row of a shared draw)", 0, rows - params.n),
        written,
    )


class SharedDraw(LogitsProcessor):
    """Leaves the requests that ask for the shared draw one token each to choose: the one that is drawn.

    What is drawn depends on nothing but the request, its logits and how many tokens it has: not on the others in the batch, and
    not on whether it was read in pieces, put off or read again.
    """

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """ValueError, which becomes the request's 400, as `row_of`."""
        row_of(sampling_params, None, ())

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, Row] = {}  # by place in the batch
        self._noise: OrderedDict[tuple[int, int, int], Noise] = OrderedDict()  # by seed, rows and next step

    def is_argmax_invariant(self) -> bool:
        """No."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests through the batch."""
        process_dict_updates(self._rows, batch_update, row_of)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits [B, V] of the batch, in the drawn rows 0 at the drawn token and -inf elsewhere."""
        alike: dict[Drawing, dict[tuple[int, int, int], list[int]]] = defaultdict(lambda: defaultdict(list))
        for place, row in self._rows.items():
            alike[row.drawing][row.seed, row.rows, len(row.written)].append(place)
        for drawing, contexts in alike.items():
            noise = [
                self._noise_at(*context, logits)[[self._rows[place].row for place in places]]
                for context, places in contexts.items()
            ]
            of_all = torch.tensor([place for places in contexts.values() for place in places], device=logits.device)
            tokens = drawing.tokens(logits[of_all], torch.cat(noise))
            logits[of_all] = -torch.inf
            logits[of_all, tokens] = 0.0
        return logits

    def _noise_at(self, seed: int, rows: int, step: int, logits: torch.Tensor) -> torch.Tensor:
        """The noise of one step of a context, [rows, V]; cheap for the step after one that was had before."""
        noise = self._noise.pop((seed, rows, step), None) or Noise(seed, rows, logits.shape[-1], logits.device)
        # a request that comes back, or a row that is behind the others: the steps before go by unused
        while noise.step < step:
            noise.next()
        made = noise.next()
        self._noise[seed, rows, noise.step] = noise
        if len(self._noise) > KEPT:
            self._noise.popitem(last=False)
        return made
