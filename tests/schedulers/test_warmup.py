"""Lengths of the warmup."""

import pytest

from launcher.core.errors import ConfigError
from launcher.schedulers.warmup import parse_warmup

PARSED = {None: 0, 0: 0, 7: 7, 99: 99, 0.1: 10, 0.005: 0, "2epochs": 20, "1 epoch": 10, "0.5epochs": 5, "12steps": 12}
REFUSED = [100, "100steps", "10epochs", 1.0, -1, -0.1, True, "soon", "5", "1.5steps", [1]]


@pytest.mark.parametrize(("text", "steps"), [*PARSED.items(), *((text, None) for text in REFUSED)])
def test_warmup_is_parsed(text, steps):
    if steps is None:
        with pytest.raises(ConfigError, match=r"scheduler\.warmup is "):
            parse_warmup(text, 100, 10)
    else:
        assert parse_warmup(text, 100, 10) == steps
