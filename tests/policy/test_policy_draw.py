"""The draw's arithmetic, which every back end shares: noise from a seed, and a token for each row."""

import pytest
import torch

from taskmem.config import Sampling
from taskmem.policy.draw import Drawing, Draws, Noise

CPU = torch.device("cpu")
ROWS, SIZE = 6, 200
SAMPLINGS = [
    Sampling(temperature=1.0, top_p=1.0, top_k=0),
    Sampling(temperature=0.6, top_p=0.95, top_k=20),
    Sampling(temperature=2.0, top_p=0.5, top_k=0),
]


def logits(rows: int = ROWS) -> torch.Tensor:
    return torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(1)) * 3


def test_a_seed_makes_the_same_noise_each_time_and_other_noise_at_each_step() -> None:
    first, again, other = Noise(5, ROWS, SIZE, CPU), Noise(5, ROWS, SIZE, CPU), Noise(6, ROWS, SIZE, CPU)
    steps = [first.next() for _ in range(3)]
    assert first.step == 3
    assert all(torch.equal(step, again.next()) for step in steps)
    assert not torch.equal(steps[0], steps[1])
    assert not torch.equal(steps[0], other.next())


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_a_row_drawn_alone_gets_the_token_that_it_gets_among_others(sampling: Sampling) -> None:
    drawing, noise = Drawing(sampling, (3, 4)), Noise(7, ROWS, SIZE, CPU).next()
    together = drawing.tokens(logits(), noise)
    alone = [drawing.tokens(logits()[[row]], noise[[row]]) for row in range(ROWS)]
    assert torch.equal(torch.cat(alone), together)
    assert len(set(together.tolist())) > 1


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_what_is_forbidden_is_not_drawn_however_likely(sampling: Sampling) -> None:
    drawing, noise = Drawing(sampling, (3, 4)), Noise(8, 64, SIZE, CPU)
    plain, certain = logits(64), logits(64)
    certain[:, [3, 4]] += 100.0
    for _ in range(20):
        step = noise.next()
        assert torch.equal(drawing.tokens(certain.clone(), step), drawing.tokens(plain.clone(), step))


def test_contexts_side_by_side_draw_as_each_alone() -> None:
    drawing = Drawing(SAMPLINGS[0], ())
    both, first, second = (Draws(drawing, seeds, 2) for seeds in ([1, 2], [1], [2]))
    for _ in range(5):
        rows = logits(4)
        assert torch.equal(both(rows.clone()), torch.cat([first(rows[:2].clone()), second(rows[2:].clone())]))
