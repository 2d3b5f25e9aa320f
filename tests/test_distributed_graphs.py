"""Losses of several processes under torch.compile are what they are without, to the bit."""

import re

import graph_ranks
import pytest
import ranks
import torch
import torch.distributed as dist

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return ranks.run(2, tmp_path_factory.mktemp("graphs"), graph_ranks.main)


NAMES = [*graph_ranks.whole(), *graph_ranks.broken()]
NAMES += ["ring", "inductor", "bfloat16", "no rows", "group"]


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_changes_nothing(found, name):
    """Loss, gradients and statistics; of those in `broken` the graph ends before the loss."""
    for mine in found:
        plain, in_graph = mine[name]
        assert len(plain) == len(in_graph) >= 3
        for want, got in zip(plain, in_graph, strict=True):
            assert got.dtype == want.dtype and torch.equal(got, want)


def test_there_is_something_to_compare(found):
    assert all(mine["mean"][0][0] > 0 for mine in found)
    assert all(mine["mean"][0][2].any() for mine in found)
    assert len(found[0]["counted"][1]) == 3 + 7 and len(found[0]["learned"][1]) == 4


def test_a_step_runs_the_op_once_with_a_gradient_and_once_without(found):
    assert [mine["calls"] for mine in found] == [2, 2]


def test_what_no_graph_holds_is_refused_by_the_compiler_before_anything_is_sent(found):
    for mine in found:
        assert re.match("Unsupported: .*_outside", mine["refused"], re.S), mine["refused"]


def test_an_error_is_heard_by_all(found):
    wanted = r"RuntimeError: DistributedLoss: rank 1: ValueError: labels: expected shape \(4,\)"
    for mine in found:
        assert re.match(wanted, mine["labels"]), mine["labels"]
