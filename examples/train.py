"""A training loop: python examples/train.py"""

import torch

from ms_kernels import MultiSimilarityLoss

torch.manual_seed(0)
centres = torch.randn(20, 64)
net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 32))
criterion = MultiSimilarityLoss()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

for step in range(100):
    labels = torch.randint(20, (256,))
    samples = centres[labels] + 1.5 * torch.randn(256, 64)
    loss = criterion(net(samples), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0 or step == 99:
        print(f"step {step:3}  loss {loss.item():.4f}")
