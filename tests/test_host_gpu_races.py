"""Two accesses to global memory, one of them a write, with no barrier between: the machine of
tests/host_gpu sees them whatever order the threads happen to take."""

import ctypes

import pytest
from host_gpu import build

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))

NOTHING, BLOCK, GRID = range(3)
OF_GRID, OF_BLOCK = "no barrier of the grid between", "no barrier of the block between"

# Kernel of races.cu, what lies between its two accesses, and what the machine says.
RACES = [
    *[
        (name, between, OF_GRID if between != GRID else "")
        for name in (
            "other_block_reads",
            "other_block_reads_before",
            "other_block_writes",
            "all_read_and_one_writes",
            "other_block_copies",
            "a_flag_is_read",
            "a_flag_is_lowered",
        )
        for between in (NOTHING, BLOCK, GRID)
    ],
    ("other_thread_reads", NOTHING, OF_BLOCK),
    ("other_thread_reads", BLOCK, ""),
    ("copy_arrives_late", GRID, OF_GRID),
    ("all_raise_a_flag", NOTHING, ""),
    ("neighbours_write", NOTHING, ""),
    ("shared_memory_past_its_functions", NOTHING, "past load_shared"),
]


@pytest.fixture(scope="module")
def race():
    function = ctypes.CDLL(str(build.races())).race
    function.restype = ctypes.c_char_p
    return lambda name, between=NOTHING, ordinary=False: function(
        name.encode(), between, ordinary
    ).decode()


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_small_kernels(race, monkeypatch, backwards):
    if backwards:
        monkeypatch.setenv("HOST_GPU_BACKWARDS", "1")
    for name, between, wanted in RACES:
        said = race(name, between)
        assert wanted in said if wanted else not said, f"{name}, {between}: {said}"


def test_blocks_that_never_meet_race_too(race):
    assert OF_GRID in race("all_read_and_one_writes", ordinary=True)
    assert not race("neighbours_write", ordinary=True)


def test_the_message_names_kernel_threads_address_and_places(race):
    said = race("other_block_reads")
    assert said.startswith("other_block_reads: block 1, thread 0: a read of what was written by ")
    assert "block 0, thread 0, of global memory at 0x" in said
    first, then = said.split("; first at ")[1].split(", then at ")
    assert first.startswith("races.cu:") and then.startswith("races.cu:")
