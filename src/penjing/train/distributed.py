"""Many processes, one run: who holds what, and the few sums they need of each other.

The order in which a model is treated is torchtitan's: pipeline, tensor parallel, activation checkpointing, compile, FSDP2.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import nn

from penjing.errors import ConfigError, fault
from penjing.train.config import ParallelConfig, TrainConfig

WAIT = timedelta(minutes=10)
"""How long a process waits for another before it gives up."""


@dataclass(frozen=True)
class World:
    """This process's place among those that train together."""

    rank: int
    size: int
    device: torch.device
    parallel: ParallelConfig
    mesh: Any = None
    """DeviceMesh over (pipeline, replicate, shard, tensor), context folded into shard; None for one process."""
    save_group: Any = None
    """Process group that saving uses beside training."""
    context_group: Any = None
    """The processes that hold the other parts of this one's rows."""
    ends_group: Any = None
    """For the first and the last process of a pipeline: the two of them."""

    @property
    def is_main(self) -> bool:
        """The process that writes what is written once."""
        return self.rank == 0

    @property
    def data_ranks(self) -> int:
        """Parts a batch is cut into."""
        return self.parallel.replicate * self.parallel.shard

    @property
    def data_rank(self) -> int:
        """Which of them is this process's."""
        return (self.rank // (self.parallel.tensor * self.parallel.context)) % self.data_ranks

    @property
    def context_rank(self) -> int:
        """Which part of its rows this process has."""
        return (self.rank // self.parallel.tensor) % self.parallel.context

    @property
    def copies(self) -> int:
        """Processes that share each stage's gradients: those with other rows, and those with other parts of the same rows."""
        return self.data_ranks * self.parallel.context

    @property
    def stages(self) -> int:
        """Stretches of layers over all processes."""
        return self.parallel.pipeline * self.parallel.pipeline_chunks

    @property
    def is_last_stage(self) -> bool:
        """Whether this process makes the loss."""
        return self.pipeline_rank == self.parallel.pipeline - 1

    @property
    def pipeline_rank(self) -> int:
        """This process's place in the pipeline."""
        return self.rank // (self.parallel.tensor * self.copies)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sums over all parts of the batch, in float64, equal on every process."""
        if self.size == 1:
            return values
        tensor = torch.from_numpy(values.astype(np.float64)).to(self.device)
        torch.distributed.all_reduce(tensor)
        return tensor.cpu().numpy() / self.parallel.tensor

    def join_norms(self, norm: torch.Tensor) -> torch.Tensor:
        """The norm over all stages of a pipeline from each stage's, equal on every process."""
        if self.parallel.pipeline == 1:
            return norm
        squared = norm.square().to(self.device)
        torch.distributed.all_reduce(squared, group=self.mesh["pipeline"].get_group())
        return squared.sqrt()

    def agree(self, value: str, *, what: str) -> None:
        """ConfigError on every process unless all were given the same value."""
        if self.size == 1:
            return
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value)
        if len(set(found)) > 1:
            first = next(rank for rank, other in enumerate(found) if other != found[0])
            raise ConfigError(fault(f"the processes do not agree on {what}", where=f"rank {first}",
                                    fix="start all of them with the same settings, inputs and version"))

    def from_main(self, value: str) -> str:
        """What the main process says, on every process."""
        if self.size == 1:
            return value
        said: list[Any] = [value]
        torch.distributed.broadcast_object_list(said, src=0, group=self.save_group)
        return str(said[0])

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            torch.distributed.barrier()

    def end(self) -> None:
        """Leave the group."""
        if self.size > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def start(parallel: ParallelConfig, *, wait: timedelta = WAIT) -> World:
    """Join the other processes as torchrun's environment says; ConfigError when their number is not the layout's, or when they do
    not come in time."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if parallel.world != size:
        raise ConfigError(fault("the layout does not fit the number of processes", where="parallel",
                                found=f"{parallel.world} = replicate {parallel.replicate} x shard {parallel.shard} x context "
                                f"{parallel.context} x tensor {parallel.tensor} x pipeline {parallel.pipeline}",
                                expected=f"{size} (WORLD_SIZE)",
                                fix=f"start with torchrun --nproc-per-node {parallel.world}"))
    gpu = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # parts of many sizes leave no holes
        torch.cuda.set_device(device)
    if size == 1:
        return World(0, 1, device, parallel)
    from torch.distributed.device_mesh import init_device_mesh

    if not torch.distributed.is_initialized():
        try:
            torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=wait)
        except torch.distributed.DistError as error:
            meeting = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
            raise ConfigError(fault("the other processes did not come", where=f"rank {rank}", found=f"nobody at {meeting} for "
                                    f"{wait.total_seconds():g} s", expected=f"{size} processes (WORLD_SIZE)", fix="see why they "
                                    "ended, and that all were given the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE")) from error
    World(rank, size, device, parallel).agree(parallel.model_dump_json(), what="parallel")  # else the meshes would hang
    mesh = init_device_mesh(device.type, (parallel.pipeline, parallel.replicate, parallel.shard * parallel.context, parallel.tensor),
                            mesh_dim_names=("pipeline", "replicate", "shard", "tensor"))
    save = torch.distributed.new_group(backend="gloo")
    contexts, ends = None, None
    if parallel.context > 1:
        outer = size // (parallel.context * parallel.tensor)
        contexts = init_device_mesh(device.type, (outer, parallel.context, parallel.tensor),
                                    mesh_dim_names=("outer", "context", "tensor"))["context"].get_group()
    if parallel.pipeline > 1:
        width = size // parallel.pipeline
        for place in range(width):  # every process takes part in making every group
            pair = [place, size - width + place]
            group = torch.distributed.new_group(pair)
            ends = group if rank in pair else ends
    return World(rank, size, device, parallel, mesh, save, contexts, ends)


def be_deterministic(*, compiled: bool) -> None:
    """Ask for kernels that give the same bits every time. Before anything is multiplied on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  a property of a module made of one
    if compiled:
        import torch._inductor.config as inductor

        inductor.deterministic = True  # which of two kernels is faster must not decide how sums are rounded


def die_with_parent() -> None:
    """Let the kernel kill this process when the one that started it dies: a killed launcher must not leave workers behind."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died in between
            os.kill(os.getpid(), signal.SIGKILL)


def layers_of(model: Any) -> list[nn.Module]:
    """The repeated layers of a model, encoder's first."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in kinds]
    return found or [layer for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 1
                     for layer in module]


def speed_up(model: nn.Module, config: TrainConfig) -> None:
    """Activation checkpointing of every layer, then, where `config` is settled so, compile of all layers and of the norms outside."""
    layers = layers_of(model)
    compiles = config.compile is True
    for layer in layers:
        if config.recompute != "none":
            layer.forward = _recomputed(layer.forward, selective=config.recompute == "selective", compiled=compiles)
        if compiles:
            layer.compile()
    if compiles:
        import torch._dynamo.config as dynamo

        # Layouts with and without prefixes, training and evaluation: beyond the default of 8, layers would run uncompiled.
        dynamo.recompile_limit = max(dynamo.recompile_limit, 64)
        inside = {id(module) for layer in layers for module in layer.modules()}
        for module in model.modules():
            if type(module).__name__.lower().endswith("norm") and id(module) not in inside:
                module.compile()


def shard(model: nn.Module, root: nn.Module, world: World, config: TrainConfig, product: torch.dtype | None, *,
          placement: Callable[[nn.Parameter], Any]) -> None:
    """FSDP2 over every layer and then the rest; with copies (HSDP) where `replicate` says so."""
    if world.copies == 1:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = world.mesh["replicate", "shard"] if world.parallel.replicate > 1 else world.mesh["shard"]
    policy = MixedPrecisionPolicy(param_dtype=product, reduce_dtype=torch.float32)
    again = world.parallel.reshard_after_forward
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=again, shard_placement_fn=placement)
    fully_shard(root, mesh=mesh, mp_policy=policy, reshard_after_forward=False, shard_placement_fn=placement)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A parameter of any layout as one plain tensor on the processor; all processes must call it."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().to("cpu")


def _recomputed(forward: Callable[..., Any], *, selective: bool, compiled: bool) -> Callable[..., Any]:
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    kept = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.penjing.isolated.default,
            torch.ops.penjing.varlen.default}

    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if selective and op in kept else CheckpointPolicy.PREFER_RECOMPUTE

    options: Mapping[str, Any] = {}
    if selective or compiled:  # torch 2.11's plain marks do not reach into autograd functions, whose products it would keep
        options = {"context_fn": lambda: create_selective_checkpoint_contexts(policy)}

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **options, **kwargs)

    return run
