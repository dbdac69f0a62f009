"""Where torch's deterministic mode is lifted, and that it comes back."""

import pytest
import torch

from launcher.core.kernels import in_any_order


@pytest.mark.parametrize("mode", ["default", "warn", "error"])
def test_the_mode_is_lifted_and_comes_back(mode):
    torch.set_deterministic_debug_mode(mode)
    before = torch.get_deterministic_debug_mode()
    with pytest.raises(KeyError), in_any_order():
        assert torch.get_deterministic_debug_mode() == 0
        raise KeyError
    assert torch.get_deterministic_debug_mode() == before
    torch.set_deterministic_debug_mode("default")
