"""What several processes under torchrun do differently, and one does not notice."""

import os
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from examples.retrieval.refusal import Refusal, plain


class Processes:
    """rank of world, and the device of this process."""

    def __init__(self, device: str = "auto") -> None:
        launched = dist.is_available() and dist.is_torchelastic_launched()
        has_gpu = torch.cuda.is_available()
        if device == "cuda" and not has_gpu:
            raise Refusal("--device: expected a GPU for cuda, got none that torch sees")
        on_gpu = has_gpu if device == "auto" else device == "cuda"
        self.device = torch.device("cpu")
        if on_gpu:
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        if launched and not dist.is_initialized():
            dist.init_process_group("nccl" if on_gpu else "gloo")
        self.rank = dist.get_rank() if launched else 0
        self.world = dist.get_world_size() if launched else 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wrapped(self, model: nn.Module) -> nn.Module:
        """Its gradients are then means over processes."""
        if self.world == 1:
            return model
        # Buffers of frozen normalisation never change, and others have none. A newer torch warns of
        # the older name.
        newer = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
        options: Any = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
        return DistributedDataParallel(model, **options)

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        if self.world == 1:
            return flag
        told = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told)

    def of_each(self, value: Any) -> list[Any]:
        """By rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def of_first(self, value: Any) -> Any:
        """The value of the first process."""
        return self.of_each(value)[0]

    def told(self, failure: Exception | None) -> str:
        """What has failed, in whichever process, told in all of them."""
        found = self.of_each(None if failure is None else plain(failure))
        told = [(rank, text) for rank, text in enumerate(found) if text is not None]
        if len(told) == self.world and len({text for _, text in told}) == 1:
            return str(told[0][1])
        return "; ".join(f"process {rank}: {text}" for rank, text in told)

    def wait(self) -> None:
        """Until all are here."""
        self.any(False)

    def summed(self, x: Tensor) -> Tensor:
        if self.world > 1:
            dist.all_reduce(x)
        return x

    def end(self) -> None:
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()
