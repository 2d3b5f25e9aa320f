"""Types of the compiled module; csrc/module_cpu.cpp says what the integers are."""

from enum import Enum

class DType(Enum):
    float16 = 0
    bfloat16 = 1
    float32 = 2
    float64 = 3

class Job(Enum):
    statistics = 0
    gradient = 1
    loss_and_gradient = 2

class Call:
    def __init__(
        self,
        job: Job,
        dtype: DType,
        depth: int,
        rows: tuple[int, ...],
        columns: tuple[int, ...] | None,
        options: tuple[float, ...],
    ) -> None: ...
    def write_statistics(self, out: list[int]) -> None: ...
    def write_loss(self, row_loss: int, kept: int) -> None: ...
    def read_terms(
        self, row_term: tuple[int, ...] | None, column_term: tuple[int, ...] | None
    ) -> None: ...
    def write_gradients(self, d_rows: int, d_columns: int) -> None: ...
    def plan(self, threads: int, budget: int) -> int: ...
    def run(self, workspace: int) -> None: ...

def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def use_instruction_set(name: str) -> None: ...
def row_loss(
    dtype: DType, options: tuple[float, ...], pos_lse: int, neg_lse: int, out: int, count: int
) -> None: ...
def exp(dtype: DType, from_address: int, to_address: int, count: int) -> None: ...
