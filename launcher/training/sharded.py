"""Training with a part of the model on each device: FSDP2, `strategy=fsdp`.

Every rank keeps a share of each parameter, gradient and optimizer state (Rajbhandari et al., ZeRO, 2020,
https://arxiv.org/abs/1910.02054; Zhao et al., PyTorch FSDP, 2023, https://arxiv.org/abs/2304.11277). The parameters of
one block are gathered for its forward and again for its backward; its gradients are summed over the ranks on their way
to who keeps them. torch's fully_shard does that. What is here: which blocks, an optimizer that sees its own share as
plain tensors, and checkpoints in the format of every other run.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launcher.batching.stream import Batch, CanonicalStream, Stream
from launcher.core.compat import own_tensors
from launcher.core.errors import ConfigError
from launcher.distributed.collectives import from_rank_0, sum_over_ranks
from launcher.distributed.ranks import Ranks
from launcher.tasks.task import Task
from launcher.training.exact import ExactTrainer
from launcher.training.saver import own_copy
from launcher.training.trainer import Carrier, Trainer

if TYPE_CHECKING:  # half a second that only a sharded run pays
    from torch.distributed.device_mesh import DeviceMesh

log = logging.getLogger("launcher")

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


@dataclass(frozen=True)
class Sharding:
    """How a model is cut."""

    units: list[str]  # names of the modules whose parameters are gathered together; what is left is one more
    reshard_after_forward: bool  # gathered parameters are given up until the backward
    accumulate_whole: bool  # micro-batches add up whole gradients, which then travel once
    meta_init: bool  # rank 0 alone has the weights, and the others a model on the meta device


def build_model(strategy: Mapping[str, Any], ranks: Ranks, make: Callable[[], nn.Module]) -> nn.Module:
    """Build a model: on rank 0 as ever; elsewhere without memory, if its parts will come from there.

    Raises:
        ConfigError: The model cannot be built without memory. Every rank finds that out, so that none waits for others.
    """
    if strategy["name"] != "fsdp" or not strategy["meta_init"] or ranks.world_size == 1:
        return make()
    model = make() if ranks.rank == 0 else None
    try:
        with torch.device("meta"):
            empty = make()
        return empty if model is None else model
    except (NotImplementedError, RuntimeError) as error:  # a constructor that looks at a number
        raise ConfigError(
            f"strategy.meta_init=true: this model cannot be built on torch's meta device ({error}). "
            "Use strategy.meta_init=false."
        ) from error


def plan_sharding(strategy: Mapping[str, Any], model: nn.Module, ranks: Ranks) -> Sharding | None:
    """How conf/strategy has the bare model cut; None where a device holds all of it. Raises as `find_units`."""
    if strategy["name"] != "fsdp":
        return None
    units = find_units(model, strategy["block"])
    if ranks.world_size == 1:
        return None
    return Sharding(units, strategy["reshard_after_forward"], strategy["accumulate_whole"], strategy["meta_init"])


def find_units(model: nn.Module, block: str | None) -> list[str]:
    """Names of the repeated blocks of a model, none inside of another.

    They are those of the class `block`, or modules of one class that stand side by side in a Sequential or ModuleList.

    Raises:
        ConfigError: There is no such class, a parameter belongs to two blocks, or a parameter has no dimension.
    """
    modules = {name: module for name, module in model.named_modules() if name and list(module.parameters())}
    if block is not None:
        found = [name for name, module in modules.items() if type(module).__name__ == block]
        if not found:
            known = ", ".join(sorted({type(module).__name__ for module in modules.values()}))
            raise ConfigError(f"strategy.block={block}: the model has no such module. It has: {known}.")
    else:
        found = []
        for name, module in model.named_modules():
            if isinstance(module, nn.Sequential | nn.ModuleList):
                children = [f"{name}.{key}" if name else key for key, _ in module.named_children()]
                children = [child for child in children if child in modules]
                kinds = Counter(type(modules[child]) for child in children)
                found += [child for child in children if kinds[type(modules[child])] > 1]
    found = [name for name in found if not isinstance(modules[name], nn.ModuleList | nn.ModuleDict)]
    units = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    owners: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = next((unit for unit in units if name.startswith(f"{unit}.")), "the rest of the model")
        if owners.setdefault(parameter, owner) != owner:
            raise ConfigError(
                f"strategy=fsdp: {name} is shared by {owners[parameter]} and {owner}, which are gathered at different "
                "times. Name another strategy.block, or use strategy=ddp."
            )
        if parameter.dim() == 0:
            raise ConfigError(f"strategy=fsdp: {name} has no dimension to cut. Give it the shape [1].")
    return units


def choose_trainer(sharding: Sharding | None, exact: bool) -> Callable[..., Trainer]:
    """What makes the trainer that settings ask for, of Trainer's arguments; a model to shard may be on the CPU."""
    if sharding is not None:
        return partial(ShardedTrainer, sharding)
    return ExactTrainer if exact else Trainer


class Sharded(Carrier):
    """A sharded model in the place where DDP would be; `carried` holds what the ranks tell each other in a step."""

    model: Any

    def __init__(self, model: nn.Module, task: Task, accumulate_whole: bool) -> None:
        super().__init__(model, task)
        self.accumulate_whole = accumulate_whole

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Add up the gradients of micro-batches."""
        if not self.accumulate_whole:  # each travels and is added to the rank's part: no whole gradient is kept
            yield
            return
        self.model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.model.set_requires_gradient_sync(True)


def mesh_of_all(device_type: str) -> "DeviceMesh":
    """All ranks as a mesh of one dimension, over the process group that there is.

    torch's init_device_mesh makes another group beside one of gloo wherever torch sees a GPU, in older releases one of
    NCCL ("mesh_default" in torch/distributed/device_mesh.py), which refuses ranks that share a GPU.
    """
    from torch.distributed.device_mesh import DeviceMesh

    group = dist.group.WORLD
    assert group is not None
    return DeviceMesh.from_group(group, device_type)


class ShardedTrainer(Trainer):
    """Updates of a model of which every rank has a part.

    The optimizer, the moving average and clipping work on a rank's own part as plain tensors: element by element they
    do what they do on the whole. Optimizers for which that is not so (Muon, Adafactor) are refused with the settings.
    """

    def __init__(self, sharding: Sharding, *arguments: Any) -> None:
        self.sharding = sharding
        super().__init__(*arguments)
        if sharding.meta_init:  # what was read from a file is known where it was read
            self.base = from_rank_0(self.base, self.ranks.world_size)

    def _wrap(self, model: Any) -> Any:
        mesh = mesh_of_all(self.device.type)
        optimizer, trained = self.optimizer, [parameter.requires_grad for parameter in model.parameters()]
        # By number meanwhile: whoever holds a whole parameter keeps it in memory.
        number = {parameter: i for i, parameter in enumerate(model.parameters())}
        groups = [[number[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
        states = {number[parameter]: optimizer.state.pop(parameter) for parameter in list(optimizer.state)}
        if states and self.sharding.meta_init:  # Adagrad's, made in its constructor
            states = from_rank_0(states, self.ranks.world_size)
        for group in optimizer.param_groups:
            group["params"] = []
        number.clear()
        self._parameters, self._averaged = [], []
        parts = self._shard(model, mesh, self.sharding.reshard_after_forward)
        own = [_own(part) for part in parts]
        for group, numbers in zip(optimizer.param_groups, groups, strict=True):
            group["params"] = [own[i] for i in numbers]
        for i, state in states.items():
            optimizer.state[own[i]] = {name: self._cut(value, parts[i]) for name, value in state.items()}
        self._parts = [part for part, is_trained in zip(parts, trained, strict=True) if is_trained]
        self._parameters = [mine for mine, is_trained in zip(own, trained, strict=True) if is_trained]
        if self.eval_model is not model:
            averaged = self._shard(self.eval_model, mesh, True)
            self._averaged = [_own(part) for part, is_trained in zip(averaged, trained, strict=True) if is_trained]
        log.info("sharded    %d blocks and the rest, over %d devices", len(self.sharding.units), self.ranks.world_size)
        self._wrapped = True
        wrapper = Sharded(model, self.task, self.sharding.accumulate_whole)
        wrapper.carried.data = wrapper.carried.to(self.device)
        self.reduction.carried = wrapper.carried
        return self.accelerator.prepare_model(wrapper, device_placement=False, evaluation_mode=True)

    def _shard(self, model: nn.Module, mesh: "DeviceMesh", reshard_after_forward: bool) -> list[Any]:
        """Cut a model in place; its parameters, as DTensors.

        In bf16 they are gathered in it, and autocast has nothing left to convert: of a float32 weight it would make a
        copy, which autograd keeps from the forward to the backward, when what was gathered has long been given up.
        Gradients travel and are kept in float32. Inputs are left to autocast, which converts them as under DDP.
        """
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        half = self.accelerator.mixed_precision == "bf16"
        policy, whole = MixedPrecisionPolicy(), MixedPrecisionPolicy()
        if half:
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)

        def shard(module: nn.Module, **how: Any) -> None:
            self._fetch(module)
            for inner in module.modules() if half else ():
                if inner is not module and _keeps_statistics(inner) and not isinstance(inner, FSDPModule):
                    fully_shard(inner, mesh=mesh, reshard_after_forward=reshard_after_forward, mp_policy=whole)
            fully_shard(module, mesh=mesh, mp_policy=whole if _keeps_statistics(module) else policy, **how)

        for module in model.modules() if half else ():
            if isinstance(module, NORMS):
                module.register_forward_pre_hook(_meet)
        try:
            for name in self.sharding.units:
                shard(model.get_submodule(name), reshard_after_forward=reshard_after_forward)
            shard(model)
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(f"strategy=fsdp: {error}") from error
        if dist.get_backend() == "gloo":
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.set_force_sum_reduction_for_comms(True)  # gloo does not average
        return list(model.parameters())

    def _fetch(self, module: nn.Module) -> None:
        """Put rank 0's parameters and buffers, those that are not cut yet, in the place of the ones without memory."""
        if not self.sharding.meta_init:
            return
        fetched: dict[int, tuple[Tensor, Tensor]] = {}  # a tied parameter comes up again
        for owner in module.modules():
            for place in own_tensors(owner):
                for name, tensor in place.items():
                    if tensor is None or hasattr(tensor, "full_tensor"):
                        continue
                    if id(tensor) not in fetched:
                        here = torch.empty_like(tensor, device=self.device) if tensor.is_meta else tensor.detach()
                        here = here.to(self.device)
                        dist.broadcast(here, src=0)
                        if isinstance(tensor, nn.Parameter):
                            here = nn.Parameter(here, tensor.requires_grad)
                        fetched[id(tensor)] = tensor, here
                    place[name] = fetched[id(tensor)][1]

    def _cut(self, value: Any, part: Any) -> Any:
        """This rank's part of a whole tensor that belongs to a parameter; anything else as it is."""
        if not isinstance(value, Tensor) or value.dim() == 0 or value.shape != part.shape:
            return value
        rows = -(-len(value) // self.ranks.world_size)
        first = self.ranks.rank * rows
        return value[first : first + rows].clone()

    def _whole(self, tensor: Any) -> Tensor:
        """A tensor put together from all ranks, on the host of rank 0; nothing elsewhere."""
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        return own_copy(whole) if self.ranks.rank == 0 else whole.new_empty(0)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """As for any Trainer; on ranks other than 0 without content."""
        return {name: self._whole(tensor) for name, tensor in super().weights(model).items()}

    @torch.no_grad()
    def load_weights(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """As for any Trainer, from whole tensors on every rank."""
        mine: Any
        for name, mine in super().weights(model).items():
            if hasattr(mine, "full_tensor"):
                mine.to_local().copy_(self._cut(weights[name], mine))
            else:
                mine.copy_(weights[name])

    def optimizer_state(self) -> dict[str, Any]:
        """As for any Trainer; on ranks other than 0 without content."""
        from torch.distributed.tensor import DTensor

        saved = self.optimizer.state_dict()

        def whole(value: Any, part: Any) -> Any:
            if not isinstance(value, Tensor) or value.dim() == 0 or value.shape != part.to_local().shape:
                return value
            how = {"run_check": False, "shape": part.shape, "stride": part.stride()}
            return self._whole(DTensor.from_local(value, part.device_mesh, part.placements, **how))

        return saved | {"state": self._of_each(saved["state"], whole)}

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        """As for any Trainer, from whole tensors on every rank."""
        super().load_optimizer_state({**state, "state": self._of_each(state["state"], self._cut)})

    def _of_each(self, state: Mapping[int, Any], change: Callable[[Any, Any], Any]) -> dict[int, dict[str, Any]]:
        """Each value of an optimizer's state, changed given the part of the parameter that it belongs to."""
        part_of = dict(zip(self._parameters, self._parts, strict=True))
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return {
            i: {name: change(value, part_of[parameters[i]]) for name, value in values.items()}
            for i, values in state.items()
        }

    def sync_ema_buffers(self) -> None:
        """Bring the moving average's buffers up to date, and let go of what its last forward has gathered."""
        super().sync_ema_buffers()
        if self.settings.ema_decay is not None:
            self.eval_model.reshard()  # type: ignore[operator]

    def operations(self, samples: Stream | CanonicalStream, precision: str) -> tuple[float | None, float | None]:
        """Not counted: the counter does not see through the gathering."""
        return None, None

    def _backward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        found = super()._backward(batch)
        with torch.no_grad():
            for mine, part in zip(self._parameters, self._parts, strict=True):
                mine.grad = None if part.grad is None else part.grad.to_local()
                part.grad = None
        return found

    def _differentiate(
        self, values: Tensor, factor: float, carrying: Tensor | None = None, payload: Tensor | None = None
    ) -> None:
        """As for any Trainer; with a payload, its mean over the ranks: gradients of parts have no place for it."""
        if payload is None or self.reduction.carried is None:
            return super()._differentiate(values, factor)
        together = payload / self.ranks.world_size
        reduction = dist.all_reduce(together, async_op=True)
        super()._differentiate(values, factor)
        reduction.wait()
        self.reduction.carried.grad = together

    def _norm(self) -> Tensor:
        (squares,) = sum_over_ranks([super()._norm().square()], self.ranks.world_size)
        return squares.sqrt()

    def _healthy(self) -> bool:
        sick = torch.tensor(float(not super()._healthy()), device=self.device)
        return not sum_over_ranks([sick], self.ranks.world_size)[0].item()


def _keeps_statistics(module: nn.Module) -> bool:
    """Whether a module has weights and running statistics, which stay float32 and whose kernels want both alike."""
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.affine and module.track_running_stats


def _meet(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Hook that gives a normalisation of bf16 weights its inputs in bf16.

    Where they are float32, as a sum with a position buffer is, a CPU's kernels refuse the two together, and its
    autocast leaves them as they are; on a GPU that computes either in float32.
    """
    if not isinstance(module.weight, Tensor) or module.weight.dtype != torch.bfloat16:
        return inputs
    return tuple(one.to(module.weight.dtype) if isinstance(one, Tensor) else one for one in inputs)


def _own(part: Any) -> nn.Parameter:
    """A rank's own part of a parameter, in the same memory."""
    with torch.no_grad():
        return nn.Parameter(part.to_local().detach(), requires_grad=part.requires_grad)
