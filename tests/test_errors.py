"""Bad input: the argument, what it got, what it wanted, before any work."""

from fractions import Fraction

import pytest
import torch

import ms_kernels
from ms_kernels import Mining, NTXent, Weighting, multi_similarity_loss

X, Y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)

CASES = [
    ((X[0], Y), {}, ValueError, r"embeddings: expected shape \(N, D\), got \(3,\)"),
    ((X[None], Y), {}, ValueError, r"embeddings: expected shape \(N, D\), got \(1, 4, 3\)"),
    ((X.long(), Y), {}, TypeError, r"embeddings: expected float16.*got torch.int64; use .float"),
    ((X + 1j, Y), {}, TypeError, "embeddings: expected float16.*got torch.complex64"),
    ((X.to_sparse(), Y), {}, TypeError, "embeddings: expected a dense tensor.*sparse_coo"),
    (([[0.0]], Y), {}, TypeError, "embeddings: expected a tensor, got list"),
    ((X, Y[:3]), {}, ValueError, r"labels: expected shape \(4,\) to match.*got \(3,\)"),
    (
        (X, Y[:, None]),
        {},
        ValueError,
        r"labels: expected shape \(4,\) to match.*got \(4, 1\); use labels.squeeze",
    ),
    ((X, X.long()), {}, ValueError, r"labels: expected shape.*got \(4, 3\); use labels.bool"),
    ((X, Y), {"ids": X.long()}, ValueError, r"ids: expected shape \(4,\) to.*got \(4, 3\)$"),
    ((X, Y.float()), {}, TypeError, "labels: expected an integer dtype, got torch.float32"),
    ((X, Y.bool()), {}, TypeError, "labels: expected an integer dtype, got torch.bool"),
    ((X, Y.to_sparse()), {}, TypeError, "labels: expected a dense tensor.*use .to_dense"),
    ((X, Y), {"ids": Y.to_sparse()}, TypeError, "ids: expected a dense tensor"),
    ((X, [0, 0, 1, 1]), {}, TypeError, "labels: expected a tensor, got list"),
    (
        (X, Y, (Y, Y, Y, Y)),
        {},
        TypeError,
        "ref_emb: expected a tensor, got tuple; mining is inside",
    ),
    ((X, Y, X), {}, ValueError, "ref_labels: expected a tensor because ref_emb was given"),
    ((X, Y, None, Y), {}, ValueError, "ref_emb: expected a tensor because ref_labels was given"),
    ((X, Y, X[:, :2], Y), {}, ValueError, r"ref_emb: expected shape \(M, 3\).*got \(4, 2\)"),
    ((X, Y, X.double(), Y), {}, TypeError, "ref_emb: expected dtype torch.float32.*float64"),
    ((X, Y, X, Y[:2]), {}, ValueError, r"ref_labels: expected shape \(4,\).*got \(2,\)"),
    ((X, Y, X.to("meta"), Y), {}, ValueError, "ref_emb: expected device cpu.*got meta"),
    ((X, Y.to("meta")), {}, ValueError, "labels: expected device cpu.*got meta"),
    ((X, Y), {"ids": Y.float()}, TypeError, "ids: expected an integer dtype"),
    ((X, Y), {"ref_ids": Y}, ValueError, "ref_ids: expected None without ref_emb"),
    ((X, Y, X, Y), {"ids": Y}, ValueError, "ref_ids: expected a tensor because ids was given"),
    ((X, Y, X, Y), {"ref_ids": Y}, ValueError, "ids: expected a tensor because ref_ids was given"),
    ((X, Y), {"alpha": 0}, ValueError, "alpha: expected a finite number above 0, got 0"),
    ((X, Y), {"beta": -1.0}, ValueError, "beta: expected a finite number above 0, got -1.0"),
    ((X, Y), {"base": float("nan")}, ValueError, "base: expected a finite number, got nan"),
    ((X, Y), {"epsilon": float("inf")}, ValueError, "epsilon: expected a finite number or None"),
    (
        (X, Y),
        {"alpha": 10**400},
        ValueError,
        "alpha: expected a finite number above 0, got one of 1329 bits$",
    ),
    ((X, Y), {"alpha": "2"}, TypeError, "alpha: expected a finite number above 0, got '2'"),
    ((X, Y), {"normalize": 1}, TypeError, "normalize: expected True or False, got 1"),
    ((X, Y), {"reduction": "avg"}, ValueError, "reduction: expected one of 'mean'.*got 'avg'"),
    ((X, Y), {"backend": "gpu"}, ValueError, "backend: expected one of 'auto'.*got 'gpu'"),
    ((X.to("meta"), Y.to("meta")), {"backend": "cpu"}, ValueError, "expected tensors on cpu"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), CASES)
def test_bad_input_is_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        multi_similarity_loss(*arguments, **options)


def test_scalars_of_numpy_are_numbers():
    np = pytest.importorskip("numpy")
    x, y = torch.randn(12, 4, requires_grad=True), torch.arange(12) // 3
    for number in (np.float16, np.float32, np.float64, np.int8, np.int64, np.uint16, Fraction):
        options = {"alpha": number(2), "beta": number(40), "base": number(1), "epsilon": number(0)}
        for backend in ("auto", "panels", "reference"):
            given = {**options, "max_positive_similarity": number(1), "backend": backend}
            plain = {k: v if isinstance(v, str) else float(v) for k, v in given.items()}
            loss = multi_similarity_loss(x, y, **given)
            assert torch.equal(loss, multi_similarity_loss(x, y, **plain))
            rules = {"weighting": ms_kernels.BinomialDeviance(number(2), number(9), number(0))}
            rules["mining"] = ms_kernels.SemiHardMining(number(1))
            loss = ms_kernels.pair_loss(x, y, **rules, backend=backend)
            rules = {"weighting": ms_kernels.BinomialDeviance(2, 9, 0)}
            rules["mining"] = ms_kernels.SemiHardMining(1)
            assert torch.equal(loss, ms_kernels.pair_loss(x, y, **rules, backend=backend))
            torch.autograd.grad(loss, x)
        assert type(ms_kernels.MultiSimilarityLoss(**options).weighting.alpha) in (int, float)
        ms_kernels.mined_pairs(x, y, epsilon=number(0))
    assert ms_kernels.Histogram(np.int32(20)) == ms_kernels.Histogram(20)
    ms_kernels.options.workspace_bytes = np.int64(1 << 20)
    ms_kernels.options.skip_below = np.float32(0)
    for bad in (np.float32("nan"), np.float64("inf"), Fraction(10**400)):
        with pytest.raises(ValueError, match="alpha: expected a finite number above 0"):
            multi_similarity_loss(x, y, alpha=bad)
    for bad in (np.bool_(True), np.complex64(2), np.ones(1), True):
        with pytest.raises(TypeError, match="alpha: expected a finite number above 0"):
            multi_similarity_loss(x, y, alpha=bad)
    with pytest.raises(TypeError, match="Histogram.bins: .*got 20.0"):
        ms_kernels.Histogram(np.float32(20))


def test_the_reference_names_missing_labels():
    with pytest.raises(ValueError, match="ref_labels: expected a tensor because ref_emb was given"):
        ms_kernels.reference.multi_similarity_loss(X, Y, X)


@pytest.mark.parametrize("function", [ms_kernels.row_statistics, ms_kernels.mined_pairs])
def test_other_functions_check_too(function):
    with pytest.raises(ValueError, match=r"labels: expected shape \(4,\)"):
        function(X, Y[:3])
    with pytest.raises(ValueError, match="epsilon: expected a finite number or None"):
        function(X, Y, epsilon=float("nan"))


def test_module_checks_when_it_is_made():
    with pytest.raises(ValueError, match="alpha: expected a finite number above 0, got -2"):
        ms_kernels.MultiSimilarityLoss(alpha=-2)
    with pytest.raises(ValueError, match="reduction: expected one of"):
        ms_kernels.MultiSimilarityLoss(reduction="avg")
    with pytest.raises(ValueError, match="backend: expected one of"):
        ms_kernels.MultiSimilarityLoss(backend="gpu")


def test_second_derivative_names_the_way_out(backend):
    x = torch.randn(8, 4, requires_grad=True)
    for reduction in ("mean", "none"):
        loss = multi_similarity_loss(x, torch.arange(8) // 2, reduction=reduction, backend=backend)
        with pytest.raises(RuntimeError, match="backend='reference'"):
            torch.autograd.grad(loss.sum(), x, create_graph=True)


def jvp_of(x, **options):
    tangent = torch.ones_like(x)
    return torch.func.jvp(lambda v: multi_similarity_loss(v, Y, **options), (x,), (tangent,))[1]


def dual_of(x, **options):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        loss = multi_similarity_loss(x, Y, dual, Y, **options)
        return torch.autograd.forward_ad.unpack_dual(loss).tangent


@pytest.mark.parametrize("derivative", [jvp_of, dual_of])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("with_gradient", [False, True])
def test_forward_mode_names_the_way_out(backend, derivative, reduction, with_gradient):
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=with_gradient)
    with pytest.raises(RuntimeError, match="no forward-mode.*backend='reference'"):
        derivative(x, reduction=reduction, backend=backend)
    assert derivative(x, epsilon=None, backend="reference") is not None


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.jacrev])
def test_transforms_name_the_way_out(backend, transform):
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    given = x if transform is torch.func.vmap else x[0]

    def run(name):
        return transform(lambda v: multi_similarity_loss(v, Y, epsilon=None, backend=name))(given)

    with pytest.raises(RuntimeError, match="takes no part.*backend='reference'"):
        run(backend)
    run("reference").sum().backward()
    assert x.grad is not None


def test_a_freed_storage_is_not_read():
    pytest.importorskip("ms_kernels._cpu")
    x, y = torch.randn(4, 3), Y.clone()
    y.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="rows, labels: expected a storage of 32 bytes, got 0"):
        multi_similarity_loss(x, y, backend="cpu")
    x.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="rows: expected a storage of 48 bytes, got 0"):
        multi_similarity_loss(x, Y, backend="cpu")


def test_the_way_out_of_the_second_derivative_works():
    x = torch.randn(8, 4, dtype=torch.float64, requires_grad=True)
    y = torch.arange(8) // 2
    assert torch.autograd.gradgradcheck(
        lambda x: multi_similarity_loss(x, y, epsilon=None, backend="reference"), x
    )


def test_options_are_checked():
    for name in ("workspace_bytes", "panel_bytes"):
        with pytest.raises(ValueError, match=f"options.{name}: expected at least"):
            setattr(ms_kernels.options, name, -1)
        with pytest.raises(TypeError, match=f"options.{name}: expected a number of bytes"):
            setattr(ms_kernels.options, name, 1.5)
        with pytest.raises(ValueError, match=f"options.{name}: expected at most"):
            setattr(ms_kernels.options, name, 2**70)
    with pytest.raises(AttributeError, match="options.work: expected workspace_bytes, panel"):
        ms_kernels.options.work = 1


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"weighting": "x"},
            r"weighting: expected a SummedWeighting rule, such as NTXent.*got 'x'",
        ),
        ({"weighting": NTXent}, r"weighting: expected a rule, got its class; use NTXent\(\)"),
        ({"weighting": Weighting()}, r"weighting: expected a SummedWeighting rule.*got Weighting"),
        ({"mining": 3}, r"mining: expected a BoundedMining rule, such as NoMining\(\).*got 3"),
        ({"mining": Mining()}, r"mining: expected a BoundedMining rule.*got Mining\(\)"),
    ],
)
def test_a_spec_is_of_rules_of_this_package(rules, message):
    with pytest.raises(TypeError, match=message):
        ms_kernels.PairSpec(**rules)


@pytest.mark.parametrize(
    ("call", "way_out"),
    [
        (lambda: ms_kernels.ContrastiveLoss(neg_margin=0.3), "positive_margin and negative_margin"),
        (lambda: ms_kernels.MultiSimilarityLoss(miner=None), "mining=MultiSimilarityMining"),
        (lambda: ms_kernels.PairLoss(ms_kernels.NTXent(), reducer=None), "reduction= is"),
        (lambda: ms_kernels.TripletLoss(miner=None), "compat.pytorch_metric_learning has classes"),
        (
            lambda: ms_kernels.NTXentLoss()(X, Y, indices_tuple=()),
            "mining=MultiSimilarityMining",
        ),
    ],
)
def test_arguments_of_other_libraries_name_the_way(call, way_out):
    with pytest.raises(TypeError, match=r"expected options among .*, got \w+; ") as found:
        call()
    assert way_out in str(found.value)


def test_no_pairs_of_another_library_are_no_argument():
    """As its training loops pass None."""
    x, y = torch.randn(6, 4), torch.arange(6) // 2
    loss = ms_kernels.MultiSimilarityLoss()
    assert torch.equal(loss(x, y, indices_tuple=None), loss(x, y))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_batch_as_its_own_candidates_is_the_batch(reduction, backend):
    """A row is no pair of its own; of equal tensors that are others nobody knows it."""
    x, y = torch.randn(12, 4, requires_grad=True), torch.arange(12) // 3
    found = []
    for refs in ((), (x, y), (x.clone(), y)):
        options = {"reduction": reduction, "backend": backend, "epsilon": None}
        loss = ms_kernels.multi_similarity_loss(x, y, *refs, **options).sum()
        found.append((loss.detach(), *torch.autograd.grad(loss, x)))
    assert all(map(torch.equal, found[0], found[1]))
    assert not torch.equal(found[0][0], found[2][0])
    stats = ms_kernels.row_statistics(x, y, x, y, backend=backend)
    assert all(map(torch.equal, stats, ms_kernels.row_statistics(x, y, backend=backend)))


def test_packages_of_the_package_and_names_that_it_has_elsewhere():
    for name in ("compat", "distributed", "tools"):
        assert getattr(ms_kernels, name).__name__ == f"ms_kernels.{name}"
    with pytest.raises(AttributeError, match="it is ms_kernels.distributed.DistributedLoss"):
        ms_kernels.DistributedLoss  # noqa: B018
    with pytest.raises(AttributeError, match="it is ms_kernels.compat.pytorch_metric_learning.los"):
        ms_kernels.losses  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'nothing'$"):
        ms_kernels.nothing  # noqa: B018
