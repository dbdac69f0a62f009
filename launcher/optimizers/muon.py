"""Muon for matrices, with AdamW for what it cannot take."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from launcher.core.errors import ConfigError


class Muon(Optimizer):
    """torch.optim.Muon for the hidden matrices and torch.optim.AdamW for everything else, as one optimizer.

    Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024),
    https://kellerjordan.github.io/posts/muon/. Hidden are the 2-d weights, except those of embeddings and of
    the output layer (the last 2-d weight of the model). Convolutions go to AdamW.
    The groups are the same dicts that the two optimizers inside step with, so a scheduler acts on both.

    Args:
        params: ParamsT, or groups of them.
        lr: As momentum, nesterov, ns_steps and adjust_lr_fn, of the matrices; see conf/optimizer/muon.yaml.
        adamw_lr: As betas, eps and fused, of the rest. None for lr.
        weight_decay: Decoupled, of both.
        model: Tells which matrices are hidden. None: all of them.

    Raises:
        ConfigError: Nothing is left for Muon.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
        ns_steps: int,
        adjust_lr_fn: str | None,
        betas: tuple[float, float],
        eps: float,
        adamw_lr: float | None = None,
        fused: bool | None = None,
        model: nn.Module | None = None,
    ):
        kept = set() if model is None else _input_and_output(model)
        entries: list[Any] = list(params)
        groups = entries if isinstance(entries[0], dict) else [{"params": entries}]
        hidden_groups: list[dict[str, Any]] = []
        other_groups: list[dict[str, Any]] = []
        for group in groups:
            hidden = [p for p in group["params"] if p.dim() == 2 and id(p) not in kept]
            others = [p for p in group["params"] if p.dim() != 2 or id(p) in kept]
            hidden_groups += [{**group, "params": hidden}] if hidden else []
            other_groups += [{**group, "params": others}] if others else []
        if not hidden_groups:
            raise ConfigError(
                "optimizer=muon: the model has no hidden 2-d weight (embeddings, the output layer and "
                "convolutions are AdamW's), so nothing is left for Muon. Take optimizer=adamw."
            )
        rest = adamw_lr if adamw_lr is not None else lr
        self.inner: list[Optimizer] = [
            torch.optim.Muon(
                hidden_groups,
                lr=lr,
                momentum=momentum,
                nesterov=nesterov,
                weight_decay=weight_decay,
                ns_steps=ns_steps,
                adjust_lr_fn=adjust_lr_fn,
            )
        ]
        if other_groups:
            self.inner.append(
                torch.optim.AdamW(other_groups, lr=rest, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)
            )
        super().__init__([group for optimizer in self.inner for group in optimizer.param_groups], {})
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters once; `closure` computes the loss again and returns it, where given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.inner:
            optimizer.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state. Torch replaces the groups by new dicts, which the two inside share again."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        start = 0
        for optimizer in self.inner:
            end = start + len(optimizer.param_groups)
            optimizer.param_groups, optimizer.state, start = self.param_groups[start:end], self.state, end


def _input_and_output(model: nn.Module) -> set[int]:
    """Ids of the 2-d weights that are not hidden: embeddings, and the last one, the output layer's."""
    kept = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    # An output layer that is tied to the embedding comes first as that and last as itself.
    matrices = [id(p) for _, p in model.named_parameters(remove_duplicate=False) if p.dim() == 2]
    return kept | set(matrices[-1:])
