"""Diffusion under FSDP: each rank keeps its part of the weights, of their gradients and of Adam's moments. The losses
are those of one process, since noise is counted by its place in the global batch.

torchrun --nproc_per_node 2 examples/sharded_diffusion.py [STEPS] [PICTURE]
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import pyfastgan as pf

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 500
picture = Path(sys.argv[2] if len(sys.argv) > 2 else "sharded_diffusion.png")
batch_size, seed = 64, 0

if "RANK" in os.environ:  # torchrun
    dist.init_process_group()
else:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
rank, ranks = dist.get_rank(), dist.get_world_size()
kind = "cuda" if dist.get_backend().endswith("nccl") else "cpu"
device = (
    torch.device(kind, rank % torch.cuda.device_count()) if kind == "cuda" else torch.device("cpu")
)
if kind == "cuda":
    torch.cuda.set_device(device)


def new_model():
    process = pf.diffusion.make_process("diffusion", schedule="cosine")
    network = pf.diffusion.UNet(
        1, 16, width=32, multipliers=(1, 2), blocks=1, time_scale=process.time_scale
    )
    return pf.diffusion.DiffusionModel(network, process, (1, 16, 16))


torch.manual_seed(seed)
# FSDP takes no channels-last weights.
model = new_model().to(device, memory_format=torch.contiguous_format)
mesh = init_device_mesh(kind, (ranks,))
for layer in list(model.modules()):  # each is gathered for its own forward and backward pass
    if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
        fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.Adam(model.parameters(), 2e-4)

images = pf.data.load("digits", size=16).tensors[0]
for step in range(1, steps + 1):
    places = torch.Generator().manual_seed(step)
    rows = torch.randint(len(images), (batch_size,), generator=places)
    mine = images[rows.chunk(ranks)[rank]].to(device)
    loss = model(mine, seed=seed, stream=step, sample_offset=rank * len(mine))["loss"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    if rank == 0 and (step % 50 == 0 or steps < 50):
        print(f"step {step}: loss {mean.item() / ranks:.6f}")

whole = get_model_state_dict(
    model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
)
if rank == 0:
    sampled = new_model()
    sampled.load_state_dict(whole)
    pf.training.save_samples(sampled.sample(16, seed, sampler="ddim", steps=20), picture)
    print(picture)
dist.barrier()
dist.destroy_process_group()
