"""Candidates from a memory of past batches (cross-batch memory): python examples/memory_bank.py

`ids` name samples: the copy of an anchor that the memory holds is no positive of its own.
"""

import torch

from ms_kernels import multi_similarity_loss

torch.manual_seed(0)
SAMPLES, MEMORY, BATCH = 4000, 2048, 128
data = torch.randn(SAMPLES, 64)
labels = torch.randint(200, (SAMPLES,))
data += 2 * torch.randn(200, 64)[labels]
net = torch.nn.Linear(64, 32)
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)

memory = torch.zeros(MEMORY, 32)
memory_ids = torch.full((MEMORY,), -1)
filled = 0
for step in range(200):
    ids = torch.randint(SAMPLES, (BATCH,))
    embeddings = net(data[ids])
    place = step * BATCH % MEMORY  # the oldest batch makes room
    memory[place : place + BATCH] = embeddings.detach()
    memory_ids[place : place + BATCH] = ids
    filled = min(MEMORY, filled + BATCH)
    loss = multi_similarity_loss(
        embeddings,
        labels[ids],
        memory[:filled],
        labels[memory_ids[:filled]],
        ids=ids,
        ref_ids=memory_ids[:filled],
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if filled == MEMORY and step % 20 == 19:
        print(f"step {step:3}  candidates {filled:4}  loss {loss.item():.4f}")
