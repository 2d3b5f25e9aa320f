"""What every backend's ops must pass: PyTorch's own check of an op, and a graph without a break."""

import torch
from cases import SPECS, make_batch
from torch import library

from ms_kernels import multi_similarity_loss
from ms_kernels.backends import dispatch
from ms_kernels.engine import ops

X, Y = make_batch(48, None, 48, SPECS["default"], torch.float32)[:2]
R, Z = make_batch(97, None, 48, SPECS["default"], torch.float32)[:2]
PACKED = SPECS["default"].spec.pack()


def pairs(refs, with_ids):
    ids = torch.arange(48) if with_ids else None
    if not refs:
        return X, Y, ids, None, None, None
    return X, Y, ids, R, Z, torch.arange(97) if with_ids else None


def check_ops(backend, refs, with_ids):
    given = pairs(refs, with_ids)
    library.opcheck(ops.row_statistics, (*given, PACKED, backend, None))
    library.opcheck(ops.loss_and_gradient, (*given, True, refs, PACKED, backend, None))
    library.opcheck(ops.loss_and_gradient, (*given, False, False, PACKED, backend, None))
    for reduction, wide in (("mean", False), ("sum", True), ("mean_valid", False)):
        library.opcheck(ops.reduced_loss, (*given, reduction, wide, True, refs, PACKED, backend))
    stats = ops.row_statistics(*given, PACKED, backend, None)
    library.opcheck(ops.row_loss_of, (list(stats), given[0], given[3], PACKED, backend, None))
    term = [*stats, torch.ones(48)]
    column_term = [] if refs else term
    library.opcheck(ops.embedding_gradient, (*given, term, column_term, PACKED, backend))
    for need, worth in ((True, None), (True, torch.linspace(1, 2, 48)), (False, None)):
        needs = need, need and refs, False
        library.opcheck(ops.counted_loss, (*given, *needs, PACKED, backend, worth, None))
    if dispatch.learns(backend, SPECS["default"].spec):
        options = torch.tensor([2.0, 10.0, 0.4])
        library.opcheck(ops.row_statistics, (*given, PACKED, backend, options))
        library.opcheck(ops.row_loss_of, (list(stats), X, given[3], PACKED, backend, options))
        for need, learns in ((True, True), (False, True), (True, False), (False, False)):
            how = options, need, need and refs, PACKED, backend
            library.opcheck(ops.learned_gradient, (*given, term, *how))
            counted = need, need and refs, learns, PACKED, backend, None, options
            library.opcheck(ops.counted_loss, (*given, *counted))


def check_graph(backend, reduction, refs, dtype):
    torch._dynamo.reset()

    def step(x, y, r, z):
        loss = multi_similarity_loss(x * 2, y, r, z, reduction=reduction, backend=backend)
        return (loss * 3).sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for function in (step, compiled):
        x, r = (v.to(dtype, copy=True).requires_grad_() for v in (X, R))
        loss = function(x, Y, r if refs else None, Z if refs else None)
        loss.backward()
        results.append([loss.detach(), x.grad, *([r.grad] if refs else [])])
    for eager, got in zip(*results, strict=True):
        assert torch.equal(eager, got)
