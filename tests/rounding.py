"""What rounding alone may add to a result: the floor of every error budget, in closed form.

One rounding errs by at most u relative to its result, 2^-24 of float32 and 2^-53 of float64, up as
likely as down. Uniform within half an ulp and of any mantissa, its standard deviation is 0.425 u:
the unit of the variances below. Half rows are exact float32 numbers and their u is float32's. Such
errors are independent and small, so they go through the formulas of a loss to first order.

**A sum** of n terms passes partial sums that grow as k / n: V(n) times the square of the sum, where
V(n) = n / 3 of one chain, L / (3 c) + c / 3 of c chains of L whose totals are added one by one. Our
kernels have chains of 128, the float32 products of torch's libraries up to 256, their float64
products, which the oracle takes, a single one; torch adds the losses of rows in cascades of 16.
Terms of either sign make it a random walk: 3/2 V(n) times the sum of their squares.

**A similarity** is such a sum of D products, of rows whose elements are rounded and whose length is
half a sum (V(D) / 4), a square root and a division:
    var S_ij = (3/2 V(D) + 4) (S_ij^2 + sum_k x_ik^2 r_jk^2); rows as they are: 1 instead of 4

**An exponent** a (S - b) rounds difference and product, or a b in advance; whatever its scale a, in
units of similarity that is
    var T_ij = var S_ij + 2 (S_ij - b)^2 + b^2

**A log-sum-exp** of K exponents z_j with shares p_j, their softmax:
    var lse_i = a^2 sum_j p_j^2 var T_ij + a^2 (V(D) / 4 + 2) (sum_j p_j S_ij)^2 + E_i
    E_i = V(K) + 4 + (sum_j p_j |z_j|)^2
The second term is the rounded length of the anchor, which all its pairs share; E the sum, its
exponentials and its logarithm, which is as large as they are.

**A row loss** with weights w = dl/dS has w for a p above; of each sum of exponentials E times the
square of its part sum_j |w_ij| / a; 3 l^2, and V(K) l^2 if it is itself a sum of K terms. Reduced,
rows add up as independent, but for the lengths of candidates, which all rows share.

**A weight** w_ij = a exp(z_ij) / (1 + sum_k exp(z_ik)), whose part q_ij = w_ij / a of its sum is
what it errs less by where one pair holds everything:
    dw_ij / w_ij = a (dT_ij - sum_k q_ik dT_ik) + one error of the sum, of (sum_k q_ik)^2 E_i
                 + 6 roundings: of exponential, quotient, products, weight of its row
Where both kinds of pairs meet in one sum, what a kind does not hold of it, 1 - sum_k q_ik, errs
with the log-sum-exp of the other.

**A hinge** weighs 0 or 1 alike where 6 deviations of T reach its corner.

**A gradient** g_i = sum_j w_ij r_j passes these on as sum_j a w_ij dT_ij (r_j - sum_k q_ik r_k),
and rounds a sum of as many products. Its part along the row is taken out, one more sum of D
products, and the rest divided by the row's length.

A floor is 6 standard deviations and one rounding to the dtype of the result: of 60,000 such errors
the largest exceeds 4.3 every other time, 6 once in 8,000. Of float64 results the oracle errs too.
"""

import functools
import math
from typing import NamedTuple

import torch
from exponent_forms import flips, form_of, moves

from ms_kernels import reference
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh

CHAIN = {torch.float64: math.inf, torch.float32: 256}
CASCADE = 16
HALF_WEIGHTS = ("cuda", "triton")
DEVIATIONS = 6
ONE_ROUNDING = 0.425


def sum_variance(n, chain):
    """V(n), of a number or of each row."""
    n = torch.as_tensor(n, dtype=torch.float64)
    chains = (n / chain).ceil().clamp(min=1)
    return n.clamp(max=chain) / (3 * chains) + torch.where(chains > 1, chains / 3, 0)


def terms(values, u):
    """How many terms of each row's sum round it: those below its last bit change no partial sum."""
    values = values.abs()
    return (values > u * values.sum(1, keepdim=True)).sum(1)


class Side(NamedTuple):
    """The kept positives, or the kept negatives."""

    kept: torch.Tensor
    slope: float
    total: torch.Tensor  # of the weights of each row
    held: torch.Tensor  # q
    of_sum: torch.Tensor  # V(K) + 4 + z^2 of each row
    log_sum: torch.Tensor  # variance of the log-sum-exp


class Rounding:
    """Floors of all results of one batch, each of its result's shape.

    x (N, D), y (N,), or with candidates r (M, D), z (M,): their dtype is that of the results.
    """

    def __init__(self, batch, weighting, mining, *, normalize=True, cap=None, backend=""):
        x, y, r, z = (*batch, None, None)[:4]
        self.self_mode, self.normalize = r is None, normalize
        r, z = (x, y) if self.self_mode else (r, z)
        half = x.dtype in (torch.bfloat16, torch.float16)
        compute = torch.float32 if half else x.dtype
        self.chain, self.u = CHAIN[compute], torch.finfo(compute).eps / 2 + 2.0**-53
        # A half result is one of the two neighbours of the exact number.
        self.out = torch.finfo(x.dtype).eps / (1 if half else 2)
        self.least = torch.finfo(x.dtype).smallest_normal * self.out
        # Tensor cores take weights of half rows in half, and exponentials may be kept in it.
        self.operand = 2 * (self.out / self.u / 2) ** 2 if half and backend in HALF_WEIGHTS else 0.0
        x, r = x.double(), r.double()
        self.rows, self.candidates = map(reference.unit_rows, (x, r)) if normalize else (x, r)
        self.norms = [v.norm(dim=1, keepdim=True).clamp(min=1e-12) for v in (x, r)]
        self.depth = self._of_sum(x.shape[1])
        self.length = self.depth / 4 + 2 if normalize else 0.0
        self._similarities(y, z, mining, cap)
        self._weights(weighting)

    def _of_sum(self, n):
        return sum_variance(n, self.chain)

    def _similarities(self, y, z, mining, cap):
        ids = torch.arange(len(y), device=y.device) if self.self_mode else None
        self.sim, positive, negative = reference.labelled_similarities(
            *(self.rows, y, self.candidates, z),
            **dict(ids=ids, ref_ids=ids, max_positive_similarity=cap, normalize=False),
        )
        squares = self.sim**2 + self.rows**2 @ (self.candidates**2).T
        self.variance = (1.5 * self.depth + (4 if self.normalize else 1)) * squares
        least, most = reference.hardest(self.sim, positive, negative)
        found = [
            self._floor(at.amax(1) if at.numel() else s[:, 0] * 0, s[:, 0], self.u)
            for at, s in (
                (torch.where(wanted & (self.sim == s), self.variance, 0), s)
                for wanted, s in ((positive, least), (negative, most))
            )
        ]
        self.hardest_positive, self.hardest_negative = found
        self.kept = mining.keep(self.sim, positive, negative)

    def _weights(self, weighting):
        form = form_of(weighting, self.sim)
        leaf = self.sim.clone().requires_grad_()
        losses = weighting.row_loss(leaf, *self.kept)
        (self.w,) = torch.autograd.grad(losses.sum(), leaf)
        self.losses, self.size = losses.detach(), self.w.abs()
        part = self.size
        if isinstance(weighting, weigh.SupCon):  # a share less what is the same for all positives
            count = self.kept[0].sum(1, keepdim=True).clamp(min=1)
            same = self.kept[0] / (weighting.temperature * count)
            part, self.size = (self.w + same).abs(), self.size + same
        self.exponent = self.variance + 2 * (self.sim - form.base) ** 2 + form.base**2
        self.sides = [self._side(form, part, k) for k in (0, 1)]
        self.moves = moves(weighting, form, self.sim, self.kept, part)
        deviation = DEVIATIONS * ONE_ROUNDING * self.u
        self.flips = flips(weighting, self.sim, self.kept, deviation * self.exponent.sqrt())
        self.flips /= deviation
        self.joint = form.joint
        self.of_losses = 3.0
        if form.summed:
            self.of_losses = self._of_sum(terms(self.w, self.u)) + 3

    def _side(self, form, part, k):
        kept, a = self.kept[k], form.slopes[k]
        part = torch.where(kept, part, 0)
        held = (part / form.whole[k]).nan_to_num() if form.whole else torch.zeros_like(part)
        share = (part / part.sum(1, keepdim=True)).nan_to_num()
        size = a * (self.sim - form.base).abs() if form.sizes is None else form.sizes[k]
        of_sum = self._of_sum(terms(part, self.u)) + 4 + (share * size).sum(1) ** 2
        spread = (share**2 * self.exponent).sum(1) + self.length * (share * self.sim).sum(1) ** 2
        log_sum = torch.where(kept.any(1), a**2 * spread + of_sum, 0)
        return Side(kept, a, part.sum(1), held, of_sum, log_sum)

    def _floor(self, variance, value, out=None):
        out = self.out if out is None else out
        deviation = ONE_ROUNDING * self.u * variance.sqrt()
        return DEVIATIONS * deviation + out * value.abs().nan_to_num(0, 0, 0) + self.least

    def statistics(self, exact):
        """Of both hardest and both log-sum-exps, in their order; of their exact values."""
        floors = [self.hardest_positive, self.hardest_negative]
        for side, value in zip(self.sides, exact[2:4], strict=True):
            floors.append(self._floor(side.log_sum, value, self.u))
        return floors

    def _incoming(self, reduction):
        """The derivative of a reduced loss by each row loss."""
        n, kept = len(self.losses), self.kept[0] | self.kept[1]
        count = {"mean": n, "mean_valid": int(kept.any(1).sum())}.get(reduction, 1)
        return self.losses.new_full((n, 1), 1 / max(1, count))

    def loss(self, reduction):
        found = (self.w**2 * self.exponent).sum(1) + self.of_losses * self.losses**2
        found += self.length * (self.w * self.sim).sum(1) ** 2
        for side in self.sides:
            if side.slope:
                found += side.of_sum * (side.total / side.slope) ** 2
        if reduction == "none":
            return self._floor(found, self.losses)
        d = self._incoming(reduction)
        total = (d[:, 0] * self.losses).sum()
        found = (1 + self.self_mode) * (d[:, 0] ** 2 * found).sum()
        found += self.length * ((d * self.w * self.sim).sum(0) ** 2).sum()
        return self._floor(found + (min(len(d), CASCADE) / 3 + 1) * total**2, total)

    def step(self, reduction, incoming=1.0):
        """Of a loss and its gradients."""
        return [self.loss(reduction), *self.gradients(reduction, incoming)]

    def gradients(self, reduction, incoming=1.0):
        """By embeddings and, if there are any, candidates, of sum(incoming * reduced loss)."""
        # A column, unlike a number, is not taken to the device of what it is multiplied by.
        incoming = torch.as_tensor(incoming, dtype=torch.float64, device=self.w.device)
        d = self._incoming(reduction) * incoming.reshape(-1, 1)
        weight, moves = d * self.w, d.abs() * self.moves
        alone = (d * self.size) ** 2 * (6 + self.operand) + (d * self.flips) ** 2
        mirrored, moved, parts = alone, torch.zeros_like(weight), []
        for side, other in (self.sides, self.sides[::-1]):
            q, part = side.held, torch.where(side.kept, weight, 0)
            of_all = q.sum(1, keepdim=True)
            shared = of_all**2 * side.of_sum[:, None]
            if self.joint:
                shared = shared + (1 - of_all) ** 2 * other.log_sum[:, None]
            spread = torch.where(side.kept, moves**2, 0)
            others = (q**2 * self.exponent).sum(1, keepdim=True) - q**2 * self.exponent
            mirrored = mirrored + spread * (others + (1 - q) ** 2 * self.exponent)
            mirrored = mirrored + shared * part**2
            centred = self.sim - (q * self.sim).sum(1, keepdim=True)
            moved += torch.where(side.kept, moves * weight.sign() * centred, 0)
            parts.append((spread * self.exponent, q, shared, part))
        mirrored = mirrored + self.length * moved**2
        if not self.self_mode:
            by_rows = self._sum(weight, alone, moved, parts, self.candidates)
            by_candidates = self._sum(weight.T, mirrored.T, moved.T, [], self.rows)
            return [
                self._through_length(*by_rows, self.rows, self.norms[0]),
                self._through_length(*by_candidates, self.candidates, self.norms[1]),
            ]
        # S_ij and S_ji err alike: their effects add up before they are squared.
        alike = moves * (1 - sum(s.held for s in self.sides))
        each = alone + mirrored.T + 2 * alike * alike.T * self.exponent
        found = self._sum(weight + weight.T, each, moved + moved.T, parts, self.rows)
        return [self._through_length(*found, self.rows, self.norms[0])]

    def _sum(self, weight, each, moved, parts, rows):
        """Variance and value of sum_j weight_ij row_j.

        each: variance of a weight for itself; moved: its change by the length of row i; parts: what
        an anchor's own weights have in common, of either side.
        """
        value, squares = weight @ rows, rows**2
        of_sum = self._of_sum(terms(weight, self.u))[:, None]
        found = each @ squares + of_sum * value**2 + (1.5 * of_sum + 3) * (weight**2 @ squares)
        found += self.length * (moved @ rows) ** 2
        for spread, q, shared, part in parts:
            centre = q @ rows  # sum_j spread_ij (row_j - centre_i)^2
            found += (
                spread @ squares
                - 2 * centre * (spread @ rows)
                + centre**2 * spread.sum(1, keepdim=True)
            ).clamp(min=0)
            found += shared * (part @ rows) ** 2
        return found, value

    def _through_length(self, variance, value, rows, norms):
        if not self.normalize:
            return self._floor(variance, value)
        along = (value * rows).sum(1, keepdim=True)
        of_along = (rows**2 * variance).sum(1, keepdim=True) + self.depth * along**2
        of_along += (1.5 * self.depth + 1) * (value**2 * rows**2).sum(1, keepdim=True)
        variance = variance + rows**2 * of_along + 3 * (value**2 + along**2 * rows**2)
        return self._floor(variance / norms**2, (value - along * rows) / norms)


@functools.lru_cache(maxsize=8)  # for one batch after the other, on every backend
def of_spec(batch, spec, backend=""):
    """Floors of the Multi-Similarity loss."""
    return Rounding(
        batch,
        weigh.MultiSimilarity(spec.alpha, spec.beta, spec.base),
        mine.mining_of(spec.epsilon),
        normalize=spec.normalize,
        cap=spec.max_positive_similarity,
        backend=backend,
    )
