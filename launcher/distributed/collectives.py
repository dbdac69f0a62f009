"""What the ranks of a process group tell each other: sums in a fixed order, and anything that pickles."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def sum_over_ranks(tensors: list["torch.Tensor"], world_size: int) -> list["torch.Tensor"]:
    """Sum each tensor over the ranks, in the order of the ranks: the same bits however the group cuts its work."""
    return sum_over_shards([tensor[None] for tensor in tensors], world_size) if world_size > 1 else tensors


def sum_over_shards(tensors: list["torch.Tensor"], world_size: int) -> list["torch.Tensor"]:
    """Sum each tensor [shards of this rank, ...] over the shards of all ranks, in their order.

    Every rank has equally many shards.
    """
    import torch
    import torch.distributed as dist

    summed = []
    for tensor in tensors:
        every = [tensor]
        if world_size > 1:
            tensor = tensor.contiguous()
            every = [torch.empty_like(tensor) for _ in range(world_size)]
            dist.all_gather(every, tensor)
        first, *others = torch.cat(every).unbind()
        for other in others:
            first = first + other
        summed.append(first)
    return summed


def from_rank_0(thing: Any, world_size: int) -> Any:
    """What rank 0 holds, on every rank. Anything that pickles."""
    if world_size == 1:
        return thing
    import torch.distributed as dist

    box = [thing]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def at_every_rank(thing: Any, world_size: int) -> list[Any]:
    """What every rank holds, in the order of ranks, on every rank. Anything that pickles."""
    if world_size == 1:
        return [thing]
    import torch.distributed as dist

    things: list[Any] = [None] * world_size
    dist.all_gather_object(things, thing)
    return things


def at_rank_0(thing: Any, world_size: int, rank: int) -> list[Any] | None:
    """What every rank holds, in the order of ranks, on rank 0; None elsewhere."""
    if world_size == 1:
        return [thing]
    import torch.distributed as dist

    things: list[Any] | None = [None] * world_size if rank == 0 else None
    dist.gather_object(thing, things, dst=0)
    return things
