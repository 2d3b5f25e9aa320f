"""How much a training step asks of a GPU: launches of ours, and of torch's own kernels."""

import pytest
import torch
from steps import cost_of, step

import ms_kernels
from ms_kernels.backends.triton import driver, played, tape
from ms_kernels.rules.mining import SemiHardMining
from ms_kernels.rules.weighting import NTXent, Triplet

PAIRS = ms_kernels.pair_loss
# A step -> launches of ours, launches of torch. A change that needs fewer writes them down.
COUNTS = {
    "rows held whole": (step(1500, 40), 10, 2),
    "at N 2,048": (step(2048, 128), 10, 2),
    "kept exponentials": (step(1500, 512), 12, 2),
    "sorted": (step(16384, 128), 9, 3),
    "sorted, kept exponentials": (step(16384, 512), 12, 3),
    "panels": (step(1500, 512, torch.float32), 11, 2),
    "given ids": (step(1500, 40, ids=True), 10, 2),
    "each row's loss": (step(1500, 40, reduction="none"), 14, 4),
    "counted by weights": (step(1500, 40, sample_weight=torch.ones(1500)), 10, 28),
    "counted, kept exponentials": (step(1500, 512, sample_weight=torch.ones(1500)), 12, 28),
    "refs that learn": (step(1500, 40, m=1300, learn_refs=True), 16, 3),
    "another loss": (step(1500, 40, loss=PAIRS, weighting=NTXent()), 10, 2),
    "triplets": (
        step(1500, 40, loss=PAIRS, weighting=Triplet(), mining=SemiHardMining()),
        11,
        13,
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_launches_of_a_step(stand_in, name):
    run, ours, of_torch = COUNTS[name]
    cost = cost_of(stand_in, run)
    assert len(cost.kernels) <= ours and len(cost.torch_ops) <= of_torch, cost


@pytest.mark.parametrize("name", COUNTS)
def test_a_step_from_a_tape_launches_the_same(stand_in, name):
    """By Triton's launcher, then taken down, then played: what the driver is handed."""
    run, *_ = COUNTS[name]
    tape.forget()
    found = []
    for _ in range(4):
        stand_in.forget()
        run()
        assert not stand_in.refused
        found.append([launch._replace(parameters=0) for launch in stand_in.launches])
    assert found[0] and all(launches == found[0] for launches in found[1:])
    assert None not in tape._tapes.values() and (len(tape._tapes) > 0 or name == "triplets")


@pytest.mark.parametrize("name", [name for name in COUNTS if name != "triplets"])
def test_the_driver_gets_from_a_tape_what_it_gets_from_tritons_launcher(stand_in, name):
    """To the bits of every parameter, for tensors that lie anywhere."""
    run, *_ = COUNTS[name]
    run(), run()
    for taken in tape._tapes.values():
        assert taken.native is not None
        launches = [launch for e in taken.entries if isinstance(e, list) for launch in e]
        bases = [4096 * (k + 1) for k in range(40)]
        stand_in.forget()
        assert taken.native.play(0, len(launches), bases, 7) == (len(launches), 0)
        got = stand_in.launches
        stand_in.forget()
        for launch in launches:
            played._launch_again(launch, [], bases, 7)
        assert got == stand_in.launches and len(got) == len(taken.native) > 0
        assert not stand_in.refused


def test_who_watches_launches_sees_those_of_a_tape(stand_in, monkeypatch):
    from triton import knobs

    run, seen = step(33, 40), []
    run(), run()
    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", lambda *_: seen.append(0))
    stand_in.forget()
    run()
    assert len(seen) == len(stand_in.launches) > 0


@pytest.mark.parametrize("why", ("sizes", "refused", "not built"))
def test_what_the_driver_does_not_take_goes_by_tritons_launcher(stand_in, why, monkeypatch):
    run = step(33, 40)
    run(), run(), stand_in.forget(), run()
    want = [launch._replace(parameters=0) for launch in stand_in.launches]
    tape.forget()
    if why == "sizes":  # of which one is another than the signature says
        monkeypatch.setitem(driver._CODES, "i32", "q")
    elif why == "not built":
        monkeypatch.setattr(driver, "_module", lambda: None)
    run(), run()
    (taken,) = tape._tapes.values()
    assert (taken.native is None) == (why != "refused")
    if why == "refused":  # at the fourth, as by a thread without a context
        stand_in.driver.stand_in_refuse(3)
    stand_in.forget()
    run()
    assert [launch._replace(parameters=0) for launch in stand_in.launches] == want


def read_a_number(x, y):
    return float(x.sum())


def choose_rows(x, y):
    return x[y > 3]


def write_rows(x, y):
    x[y > 3] = x[0].clone()


@pytest.mark.parametrize("wait", (read_a_number, choose_rows, write_rows))
def test_a_wait_shows(stand_in, wait, monkeypatch):
    """Planted in the backend itself, below the op that torch sees."""
    from ms_kernels.backends import triton as backend

    real = backend.reduced_loss_and_gradient

    def waits(anchors, *rest, **options):
        wait(anchors.embeddings.detach().clone(), anchors.labels)
        return real(anchors, *rest, **options)

    monkeypatch.setattr(backend, "reduced_loss_and_gradient", waits)
    assert cost_of(stand_in, step(33, 40)).waits
    monkeypatch.undo()
    assert not cost_of(stand_in, step(33, 40)).waits
