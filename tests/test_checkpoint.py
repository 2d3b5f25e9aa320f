"""Losses within torch.utils.checkpoint, which computes what was saved for backward once."""

import pytest
import torch
from cases import EACH_BACKEND
from family import WEIGHTINGS, few, name_of
from torch.utils.checkpoint import checkpoint

from ms_kernels import pair_loss


@EACH_BACKEND
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name_of)
def test_gradients_are_those_without(backend, weighting, reduction):
    x, y = few()

    def loss(x):
        return pair_loss(x * 2, y, weighting=weighting, reduction=reduction, backend=backend) * 3

    found = []
    for run in (loss, lambda x: checkpoint(loss, x, use_reentrant=False)):
        leaf = x.clone().requires_grad_()
        run(leaf).sum().backward()
        found.append(leaf.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name_of)
def test_a_batch_of_incoming_gradients(weighting):
    x, y = few()
    x.requires_grad_()

    def loss(x):
        return pair_loss(x, y, weighting=weighting, reduction="none", backend="panels")

    incoming = torch.eye(len(x), dtype=x.dtype)[:2]
    want = [torch.autograd.grad(loss(x), x, one)[0] for one in incoming]
    rows = checkpoint(loss, x, use_reentrant=False)
    (got,) = torch.autograd.grad(rows, x, incoming, is_grads_batched=True)
    torch.testing.assert_close(got, torch.stack(want))
