"""Lion."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from launcher.core.compat import foreach_add_, foreach_mul, foreach_mul_, foreach_sign_


class Lion(Optimizer):
    """Step of the sign of an interpolated momentum, with decoupled weight decay.

    Chen et al., Symbolic Discovery of Optimization Algorithms (2023), https://arxiv.org/abs/2302.06675:
    `p <- p - lr * (sign(b1 m + (1 - b1) g) + weight_decay p)`, then `m <- b2 m + (1 - b2) g`.
    Every element moves by lr: a good lr is 3 to 10 times smaller than AdamW's, weight_decay as much larger.
    """

    def __init__(self, params: ParamsT, lr: float, betas: tuple[float, float], weight_decay: float):
        if not lr >= 0:
            raise ValueError(f"lr is {lr}: it must be >= 0")
        if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
            raise ValueError(f"betas are {betas}: they must be two numbers in [0, 1)")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay is {weight_decay}: it must be >= 0")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters once; `closure` computes the loss again and returns it, where given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            momenta = []
            for p in params:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                momenta.append(state["momentum"])
            lr, (b1, b2) = group["lr"], group["betas"]
            # One kernel for all tensors where torch has it; one tensor after the other elsewhere.
            update = foreach_mul(momenta, b1)
            foreach_add_(update, grads, alpha=1 - b1)
            foreach_sign_(update)
            if group["weight_decay"]:
                foreach_mul_(params, 1 - lr * group["weight_decay"])
            foreach_add_(params, update, alpha=-lr)
            foreach_mul_(momenta, b2)
            foreach_add_(momenta, grads, alpha=1 - b2)
        return loss
