"""Which evaluation is the best; tests/runs/ has what early stopping makes of them."""

import math

from launcher.training.progress import Progress


def test_the_first_figure_that_is_a_number_is_better_than_none():
    progress = Progress()
    for step, figure in ((1, math.nan), (2, 0.5), (3, math.nan), (4, 0.4), (5, 0.6)):
        progress.step = step
        progress.note({"eval/r2": figure}, metric="eval/r2", mode="max")
        assert progress.best_step == {1: 1, 2: 2, 3: 2, 4: 2, 5: 5}[step]
