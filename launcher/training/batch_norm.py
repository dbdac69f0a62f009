"""Where BatchNorm cannot do what the settings ask for: found before a run."""

import copy

from torch import Tensor, nn

from launcher.batching.plan import BatchPlan, plan_batch
from launcher.batching.stream import first_sample
from launcher.core.compat import tree_map_only
from launcher.core.errors import ConfigError
from launcher.data.source import Data


def check_exact(model: nn.Module) -> None:
    """Raise ConfigError for a model that normalises over the batch: its bits depend on the number of devices."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"exact_across_devices: {name} is a {type(module).__name__}, whose statistics depend on who saw which "
                "samples. Use GroupNorm or LayerNorm."
            )


def check_alone(model: nn.Module, data: Data, plan: BatchPlan, most: int | str | None, steps: int) -> None:
    """Raise ConfigError for a BatchNorm with a single value per channel, where some device sees one sample alone.

    A copy of the model without memory is shown the first sample. `most` is the setting batch.max_per_device.
    """
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    alone, at = plan.smallest(steps)
    if alone > 1 or not any(isinstance(module, norms) and module.training for module in model.modules()):
        return
    inputs = tree_map_only(Tensor, lambda one: one.to("meta"), first_sample(data.train)[0])
    try:
        copy.deepcopy(model).to("meta")(inputs)
    except Exception as error:  # anything else is not for here: not every model works without memory
        if "more than 1 value per channel" not in str(error):
            return
        where = f"{'the last update of an epoch' if at else 'each update'}, whose size is {plan.size_of(at)}"
        change = _without_alone(plan, most, steps)
        raise ConfigError(
            f"batch.global_size={plan.global_size}, batch.max_per_device={most or 'null'}: in {where}, a device sees "
            "one sample alone, in which BatchNorm has nothing to take a variance of. "
            + (f"Use {change}, or" if change else "Use")
            + " a model without BatchNorm (of timm and torchvision: model.norm=group)."
        ) from error


def _without_alone(plan: BatchPlan, most: int | str | None, steps: int) -> str | None:
    """The nearest settings with which no device sees one sample alone; None where none were found."""
    for larger in range(plan.micro_size + 1, plan.per_device_size + 1):
        if plan.capped(larger).smallest(steps)[0] > 1:
            return f"batch.max_per_device={larger}"
    for cap in dict.fromkeys((most, None)):
        for size in (plan.global_size + sign * apart for apart in range(1, 1000) for sign in (1, -1)):
            if plan.world_size <= size <= plan.samples:
                other = plan_batch(plan.samples, size, plan.world_size, cap)
                if other.smallest(other.steps_per_epoch)[0] > 1:
                    return f"batch.global_size={size}{' batch.max_per_device=null' if cap != most else ''}"
    return None
