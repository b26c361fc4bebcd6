"""The packed step: a forward and backward of the upper half alone, from trunk states, that serves every pair of a context.

Exact: the same loss and gradient as DPO on the full model with one row per completion, up to rounding. What makes it cheap is
what it leaves out: the layers below the vector, the second copy of the prompt, and the reference pass of every step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from taskmem.config import PhaseTwoSettings
from taskmem.phase_two.halves import UpperHalf
from taskmem.phase_two.loss import LogProbabilities, dpo_losses
from taskmem.phase_two.trunk import PackedRows, Tokens, Trunk, pack_trunks

TOKENS_AT_ONCE = 16384
"""Tokens of a forward, padding included; a single context may be longer."""
HEAD_TOKENS = 2048
"""Completion tokens whose logits over the whole vocabulary are held at once."""


@dataclass(frozen=True)
class Example:
    """A pair: the number of its context, and the tokens of its two completions."""

    context: int
    chosen: Tokens
    rejected: Tokens


@dataclass(frozen=True)
class Step:
    """Of the pairs asked for, in their order: log-probabilities and losses [pairs], and `gradients`.

    Those are [pairs, H], one per pair, or [1, H], their mean.
    """

    logps: LogProbabilities
    losses: torch.Tensor
    gradients: torch.Tensor


@dataclass(frozen=True)
class _Part:
    """A batch of rows: the pairs in it (numbers of the call), their contexts, and each row's completions."""

    pairs: list[int]
    contexts: list[int]
    completions: list[list[Tokens]]


class PairEngine:
    """Log-probabilities and gradients of pairs with respect to the steer vector.

    `trunks` holds each context's trunk by the number that `examples` name it by. The vector is float32 (or float64, in a model of
    that dtype); gradients are summed over the positions in that precision, whatever the model's.
    """

    def __init__(
        self, upper: UpperHalf, trunks: Sequence[Trunk], examples: Sequence[Example], at_once: int = TOKENS_AT_ONCE
    ) -> None:
        self._upper = upper
        self._trunks = trunks
        self._examples = examples
        self._at_once = at_once
        weight = upper.head.weight
        self.device = weight.device
        self.hidden_size = int(weight.shape[1])
        self.dtype = torch.promote_types(weight.dtype, torch.float32)
        # the reference is the model with a zero vector, and never changes
        self._reference = self._both(torch.zeros(self.hidden_size, device=self.device), range(len(examples)))

    @torch.no_grad()
    def _both(self, vector: torch.Tensor, pairs: Sequence[int]) -> torch.Tensor:
        """Log-probabilities of the chosen and the rejected completions, [2, pairs]."""
        logps = torch.zeros(2, len(pairs), dtype=self.dtype, device=self.device)
        for part in self._parts(pairs):
            packed = self._packed(part)
            logps[:, part.pairs] = self._logps(part, packed, packed.hidden + vector.to(packed.hidden), pairs)
        return logps

    def logps(self, vector: torch.Tensor, pairs: Sequence[int]) -> LogProbabilities:
        """Log-probabilities of `pairs` (numbers of examples) under `vector` [H], without gradients."""
        return self._with_reference(self._both(vector, pairs), pairs)

    def step(self, vector: torch.Tensor, pairs: Sequence[int], settings: PhaseTwoSettings, *, per_pair: bool) -> Step:
        """Losses and gradients of `pairs` (numbers of examples) at `vector` [H].

        With `per_pair` every pair's own gradient is given. That costs nothing as long as a context has one pair, else one
        backward per pair or per completion of a context, whichever are fewer.
        """
        logps = torch.zeros(2, len(pairs), dtype=self.dtype, device=self.device)
        losses = torch.zeros(len(pairs), dtype=self.dtype, device=self.device)
        rows = len(pairs) if per_pair else 1
        gradients = torch.zeros(rows, self.hidden_size, dtype=self.dtype, device=self.device)
        for part in self._parts(pairs):
            packed = self._packed(part)
            steered = (packed.hidden + vector.to(packed.hidden)).requires_grad_()
            found = self._logps(part, packed, steered, pairs)
            compared = self._with_reference(found, [pairs[i] for i in part.pairs])
            of_part = dpo_losses(compared, settings.beta, settings.loss, settings.label_smoothing)
            if per_pair:
                gradients[part.pairs] = self._each(part, pairs, found, of_part, steered)
            else:
                gradients += self._summed(of_part.sum(), steered).sum(0) / len(pairs)
            logps[:, part.pairs], losses[part.pairs] = found.detach(), of_part.detach()
        return Step(self._with_reference(logps, pairs), losses, gradients)

    def _each(
        self, part: _Part, pairs: Sequence[int], found: torch.Tensor, losses: torch.Tensor, steered: torch.Tensor
    ) -> torch.Tensor:
        """The gradient of each pair of a part, [pairs of the part, H]: a row's is its pair's if it has only one."""
        rows = [part.contexts.index(self._examples[pairs[i]].context) for i in part.pairs]
        # the n-th pair of every row shares one backward
        turn = [rows[:i].count(row) for i, row in enumerate(rows)]
        if max(len(group) for group in part.completions) < max(turn) + 1:
            return self._of_completions(part, pairs, rows, found, losses, steered)
        gradients = torch.zeros(len(rows), self.hidden_size, dtype=self.dtype, device=self.device)
        for now in range(max(turn) + 1):
            chosen = [i for i, of in enumerate(turn) if of == now]
            by_row = self._summed(losses[chosen].sum(), steered, again=now < max(turn))
            gradients[chosen] = by_row[[rows[i] for i in chosen]]
        return gradients

    def _of_completions(
        self,
        part: _Part,
        pairs: Sequence[int],
        rows: Sequence[int],
        found: torch.Tensor,
        losses: torch.Tensor,
        steered: torch.Tensor,
    ) -> torch.Tensor:
        """The same by the chain rule: a pair's gradient is a weighted sum of its two completions' log-probabilities'."""
        (weight,) = torch.autograd.grad(losses.sum(), found, retain_graph=True)
        place = [{tokens: n for n, tokens in enumerate(group)} for group in part.completions]
        examples = [self._examples[pairs[i]] for i in part.pairs]
        of_pair = [[place[row][e.chosen], place[row][e.rejected]] for row, e in zip(rows, examples, strict=True)]
        # one entry of `found` for the n-th completion of each row
        shown = {(rows[i], n): (side, i) for i, two in enumerate(of_pair) for side, n in enumerate(two)}
        most = max(len(group) for group in part.completions)
        each = torch.zeros(len(place), most, self.hidden_size, dtype=self.dtype, device=self.device)
        for n in range(most):
            entries = [found[shown[row, n]] for row in range(len(place)) if (row, n) in shown]
            each[:, n] = self._summed(torch.stack(entries).sum(), steered, again=n + 1 < most)
        chosen, rejected = (each[list(rows), [two[side] for two in of_pair]] for side in (0, 1))
        return weight[0, :, None] * chosen + weight[1, :, None] * rejected

    def _summed(self, loss: torch.Tensor, steered: torch.Tensor, again: bool = False) -> torch.Tensor:
        """The gradient with respect to a vector added to all of a row, [B, H]: that of the states, summed over positions."""
        (gradient,) = torch.autograd.grad(loss, steered, retain_graph=again)
        return gradient.sum(1, dtype=self.dtype)

    def _with_reference(self, logps: torch.Tensor, pairs: Sequence[int]) -> LogProbabilities:
        return LogProbabilities(*logps, *self._reference[:, list(pairs)])

    def _packed(self, part: _Part) -> PackedRows:
        trunks = [self._trunks[context] for context in part.contexts]
        states = [[t.completions[c] for c in row] for t, row in zip(trunks, part.completions, strict=True)]
        return pack_trunks([t.prompt for t in trunks], states, self._upper.first - 1, self.device)

    def _logps(self, part: _Part, packed: PackedRows, hidden: torch.Tensor, pairs: Sequence[int]) -> torch.Tensor:
        """Log-probabilities of the part's pairs, chosen and rejected, [2, pairs of the part]."""
        out = self._upper.run(hidden, packed.layout, packed.visual, packed.deepstack)
        row, place = (packed.layout.block > 0).nonzero(as_tuple=True)
        states = out[row, packed.layout.before[row, place]]
        flat = [tokens for group in part.completions for tokens in group]
        ids = torch.tensor([token for tokens in flat for token in tokens], device=self.device)
        lengths = [len(tokens) for tokens in flat]
        of_each = [tokens.sum() for tokens in self._token_logps(states, ids).split(lengths)]
        number = {
            (context, tokens): i
            for i, (context, tokens) in enumerate(
                (context, tokens)
                for context, group in zip(part.contexts, part.completions, strict=True)
                for tokens in group
            )
        }
        examples = [self._examples[pairs[i]] for i in part.pairs]
        chosen = [of_each[number[e.context, e.chosen]] for e in examples]
        rejected = [of_each[number[e.context, e.rejected]] for e in examples]
        return torch.stack([torch.stack(chosen), torch.stack(rejected)])

    def _token_logps(self, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Log-probability of each token, [M]; the logits of long completions are made piece by piece, and again backward."""
        if len(ids) <= HEAD_TOKENS:
            return self._head(states, ids)
        pieces = zip(states.split(HEAD_TOKENS), ids.split(HEAD_TOKENS), strict=True)
        return torch.cat([checkpoint(self._head, part, of, use_reentrant=False) for part, of in pieces])

    def _head(self, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        logits = self._upper.head(states).to(self.dtype)
        of_tokens: torch.Tensor = logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1)
        return of_tokens

    def _parts(self, pairs: Sequence[int]) -> Iterator[_Part]:
        """The pairs by context, as batches of rows; every context's pairs stay together."""
        by_context: dict[int, list[int]] = {}
        for i, pair in enumerate(pairs):
            by_context.setdefault(self._examples[pair].context, []).append(i)
        part, longest = _Part([], [], []), 0
        for context, members in by_context.items():
            examples = [self._examples[pairs[i]] for i in members]
            completions = list(dict.fromkeys(tokens for e in examples for tokens in (e.chosen, e.rejected)))
            length = len(self._trunks[context].prompt.hidden) + sum(map(len, completions))
            if part.pairs and max(longest, length) * (len(part.contexts) + 1) > self._at_once:
                yield part
                part, longest = _Part([], [], []), 0
            part.pairs.extend(members)
            part.contexts.append(context)
            part.completions.append(completions)
            longest = max(longest, length)
        if part.pairs:
            yield part
