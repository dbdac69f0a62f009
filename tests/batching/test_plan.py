import math

import pytest

from launcher.batching.plan import plan_batch, scale_learning_rate
from launcher.core.errors import ConfigError


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("cap", [None, 1, 3, 100])
@pytest.mark.parametrize(("samples", "size"), [(97, 10), (97, 97), (64, 16), (1000, 33), (20, 200)])
def test_shares_and_micro_batches_cover_every_sample_of_every_step_once(samples, size, world, cap):
    plan = plan_batch(samples, size, world, cap)
    assert sum(plan.size_of(i) for i in range(plan.steps_per_epoch)) == samples
    for position in range(plan.steps_per_epoch):
        batch = plan.size_of(position)
        shares = [plan.share(rank, batch) for rank in range(world)]
        covered = [i for first, last in shares for i in range(first, last)]
        assert covered == list(range(batch))
        counts = set()
        for rank, (first, last) in enumerate(shares):
            sizes = plan.micro_sizes(rank, batch)
            counts.add(len(sizes))
            assert sum(sizes) == last - first
            assert max(sizes) <= (cap or math.inf) and max(sizes) <= plan.micro_size
        assert len(counts) == 1, "ranks meet at each micro-batch, so all have as many"


def test_the_plan_in_numbers():
    plan = plan_batch(samples=1000, global_size=96, world_size=3, max_per_device=10)
    assert (plan.per_device_size, plan.accumulation_steps, plan.micro_size) == (32, 4, 8)
    assert plan.steps_per_epoch == 11 and plan.size_of(10) == 40
    assert [plan.samples_seen(step) for step in (0, 1, 11, 12)] == [0, 96, 1000, 1096]
    assert "96 samples per update = 3 devices x 4 micro-batches of 8" in str(plan)


def test_a_batch_smaller_than_the_devices_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"batch\.global_size=2.*3 devices.*global_size=3"):
        plan_batch(100, 2, 3, None)
    with pytest.raises(ConfigError, match="training part has 2 samples"):
        plan_batch(2, 64, 3, None)


def test_learning_rate_rules():
    assert scale_learning_rate("none", 512, 64) == 1
    assert scale_learning_rate("linear", 512, 64) == 8
    assert scale_learning_rate("sqrt", 256, 64) == 2
