"""Candidates from past batches (cross-batch memory): python examples/memory_bank.py

`ids` name samples: what the memory holds of an anchor itself is no positive of it.
"""

import torch

from ms_kernels import CrossBatchMemory, MultiSimilarityLoss

torch.manual_seed(0)
SAMPLES, BATCH = 4000, 128
data = torch.randn(SAMPLES, 64)
labels = torch.randint(200, (SAMPLES,))
data += 2 * torch.randn(200, 64)[labels]
net = torch.nn.Linear(64, 32)
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
memory = CrossBatchMemory(MultiSimilarityLoss(), embedding_dim=32, size=2048, batch_weight=0.0)

for step in range(200):
    ids = torch.randint(SAMPLES, (BATCH,))
    loss = memory(net(data[ids]), labels[ids], ids)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step >= 16 and step % 20 == 19:  # full
        print(f"step {step:3}  candidates {len(memory)}  loss {loss.item():.4f}")
