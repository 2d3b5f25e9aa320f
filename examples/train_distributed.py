"""The loss of the global batch on several processes, here of CPUs:

    torchrun --nproc-per-node 2 examples/train_distributed.py

prints the losses of `python examples/train_distributed.py`, which is one process.
"""

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel

from ms_kernels import MultiSimilarityLoss
from ms_kernels.distributed import DistributedLoss

BATCH = 256

several = dist.is_torchelastic_launched()
if several:
    dist.init_process_group("gloo")  # "nccl" on GPUs
rank = dist.get_rank() if several else 0
world = dist.get_world_size() if several else 1
torch.set_num_threads(1)

torch.manual_seed(0)  # the same network, and the same batches, everywhere
images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16
net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 32))
model = DistributedDataParallel(net) if several else net
criterion = DistributedLoss(MultiSimilarityLoss())
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

for step in range(61):
    chosen = torch.randint(len(images), (BATCH,))
    mine = chosen[rank::world]
    loss = criterion(model(images[mine]), labels[mine])
    optimizer.zero_grad()
    # DistributedDataParallel divides gradients by the number of processes.
    (loss * world).backward()
    optimizer.step()
    if step % 20 == 0 and rank == 0:
        print(f"step {step:3}  loss {loss.item():.4f}")

if several:
    dist.destroy_process_group()
