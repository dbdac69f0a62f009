"""The model that settings name, as everything calls it: in training, in an evaluation, and where a run is read back."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from launcher.config import components
from launcher.models.keywords import take_keywords


def build_model(settings: Mapping[str, Any], facts: Mapping[str, Any]) -> nn.Module:
    """Build the model that conf/model describes, with initial weights.

    Args:
        settings: The group; a file of weights in it is left aside.
        facts: What its constructor may ask for by name.

    Raises:
        ConfigError: As for `components.build`.
    """
    model: nn.Module = components.build("model", without_file(settings), **facts)
    return take_keywords(model)


def without_file(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a model without the file that its weights begin with, which training/finetune.py reads."""
    ours = str(settings.get("_target_")).startswith("launcher.models.")
    return {key: value for key, value in settings.items() if key != "checkpoint" or not ours}
