"""Several processes, one run: what they share out, what they add up, and how the frozen model is sharded.

Every process makes the same global batch of a step and takes its own rows of it; the loss of a part is a sum over its
labels divided by the labels of the whole, so the adapters' gradients need only be added up. They are all that travels:
one all-reduce an adapter and step, its gradients and its loss in one fp32 buffer. The optimizers then do the same
everywhere, so what is saved does not depend on how many processes there were.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import NumLLMError, TrainError

if TYPE_CHECKING:
    from .trainer import Trainer


class World:
    """The processes of a run, seen from one of them. `World()` is a process by itself.

    rank 0..size−1; device: of this process; sent: bytes given to the adapters' all-reduces so far.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: str | torch.device = "cpu") -> None:
        self.rank, self.size, self.device = rank, size, torch.device(device)
        self.sent = 0

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def add_up(self, parameters: Sequence[nn.Parameter], loss: Tensor | None) -> Tensor:
        """Sums the parameters' gradients and the loss over all processes, in one buffer; the summed loss.

        What a process has nothing of, having had no rows, counts as zero. The sum is the same to the bit in all.
        """
        if self.size == 1:
            return loss
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        own = torch.zeros(1, device=self.device) if loss is None else loss.float().reshape(1)
        flat = torch.cat([*(part.reshape(-1).float() for part in parts), own])
        with _peers():
            dist.all_reduce(flat)
        self.sent += flat.numel() * flat.element_size()
        for parameter, total in zip(parameters, flat[:-1].split([part.numel() for part in parts]), strict=True):
            parameter.grad = total.view_as(parameter).to(parameter.dtype)
        return flat[-1]

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        if self.size == 1:
            return flag
        seen = torch.tensor(int(flag), device=self.device)
        with _peers():
            dist.all_reduce(seen, dist.ReduceOp.MAX)
        return bool(seen)

    def wait(self) -> None:
        """Returns when every process has come here."""
        self.any(False)

    def check_same(self, marks: Mapping[str, Any]) -> None:
        """TrainError, naming what differs, unless every process has the same marks."""
        if self.size == 1:
            return
        everyone: list[Any] = [None] * self.size
        with _peers():
            dist.all_gather_object(everyone, dict(marks))
        for rank, other in enumerate(everyone):
            different = sorted(key for key in marks if other.get(key) != everyone[0].get(key))
            if different:
                raise TrainError(f"processes 0 and {rank} read other inputs: the {', '.join(different)} differ")

    def follow(self, trainer: Trainer) -> None:
        """Brings every process's trainer to where that of the first stands."""
        if self.size == 1:
            return
        names = trainer.config.adapters
        told = [None]
        if self.first:
            told = [{
                "state": trainer.state(),
                "optimizers": {name: _on_cpu(trainer.optimizers[name].state_dict()["state"]) for name in names},
                "adapters": {name: [p.detach().cpu() for p in trainer.adapters.parameters(name)] for name in names},
            }]
        with _peers():
            dist.broadcast_object_list(told, src=0, device=self.device)
        if self.first:
            return
        (found,) = told
        with torch.no_grad():
            for name in names:
                for own, other in zip(trainer.adapters.parameters(name), found["adapters"][name], strict=True):
                    own.copy_(other)
                optimizer = trainer.optimizers[name]
                optimizer.load_state_dict(optimizer.state_dict() | {"state": found["optimizers"][name]})
        trainer.stand(found["state"])

    def check_equal(self, parameters: Sequence[Tensor]) -> None:
        """TrainError unless every process holds the same bits."""
        if self.size == 1:
            return
        with torch.no_grad():
            own = torch.stack([p.contiguous().view(torch.int32).sum(dtype=torch.int64) for p in parameters])
            least, most = own.clone(), own.clone()
            with _peers():
                dist.all_reduce(least, dist.ReduceOp.MIN)
                dist.all_reduce(most, dist.ReduceOp.MAX)
        if not torch.equal(least, most):
            raise TrainError(
                f"the adapters differ between the {self.size} processes; go on from the last checkpoint with --resume"
            )

    def sharder(self) -> Callable[[nn.Module], None]:
        """What shards the frozen weights of a block over the processes (FSDP2), when called with it.

        Before a block is used its weights are gathered, and let go of afterwards. Adapters put on it later are not
        sharded.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        if self.size == 1:
            raise TrainError("shard needs several processes; start it with torchrun, or drop --shard")
        mesh = init_device_mesh(self.device.type, (self.size,))

        def shard(block: nn.Module) -> None:
            fully_shard(block, mesh=mesh)

        return shard


def _on_cpu(state: dict[int, dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
    return {index: {key: value.cpu() for key, value in own.items()} for index, own in state.items()}


class PeerError(TrainError):
    """Another process of the run ended."""


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerError("another process of the run ended; this one ends too") from error


class Meeting:
    """Where the processes that torchrun started meet: a store they share, before any group of them is made."""

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size

    @classmethod
    def from_environment(cls) -> Meeting | None:
        """None for a process by itself."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return None
        try:
            return cls(*next(dist.rendezvous("env://")))
        except (RuntimeError, ValueError) as error:
            raise NumLLMError(f"the processes could not meet: {str(error).splitlines()[0]}") from error

    @functools.cached_property
    def first_to_fail(self) -> bool:
        """Asked by a process that failed: whether no other has asked before, so that this one's error is to be told."""
        with contextlib.suppress(RuntimeError):  # the store went with the process that failed first
            return self.store.add("numllm/failed", 1) == 1
        return False


@contextlib.contextmanager
def joined(device: str = "cpu", meeting: Meeting | None = None) -> Iterator[World]:
    """The world of the processes that met, by default those that torchrun started, or a process by itself.

    Where torch.distributed is set up already, its default group is used and left as it is. device "cuda" becomes the
    GPU of the process's local rank.
    """
    own = torch.device(device)
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    if dist.is_available() and dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size(), own)
        return
    meeting = meeting or Meeting.from_environment()
    if meeting is None:
        yield World(device=own)
        return
    backend = "nccl" if own.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, store=meeting.store, rank=meeting.rank, world_size=meeting.size)
    except (RuntimeError, ValueError) as error:
        raise NumLLMError(f"the {meeting.size} processes could not meet: {str(error).splitlines()[0]}") from error
    try:
        yield World(meeting.rank, meeting.size, own)
        # None leaves while another is in their last exchange: its thread may need the interpreter once more.
        with contextlib.suppress(RuntimeError):  # a process that failed tells so itself
            dist.barrier()
    except Exception:
        _ = meeting.first_to_fail  # asked before the others see that this process goes
        raise
    finally:
        dist.destroy_process_group()
