"""The middle that Triton's longer rows start from: a median of some rows, column by column."""

import pytest
import torch
from torch.nn.functional import normalize

pytest.importorskip("triton")
triton_backend = pytest.importorskip("ms_kernels.backends.triton")
if triton_backend.missing() is not None:
    pytest.skip(triton_backend.missing(), allow_module_level=True)

from ms_kernels.backends.interface import Side  # noqa: E402
from ms_kernels.backends.triton.launch_longer import MIDDLE, _middle  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("unit", [True, False], ids=["unit", "raw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "depth"), [(1, 4), (3, 5), (40, 2), (32, 8), (200, 64), (70, 300)])
def test_medians_of_rows_at_equal_steps(n, depth, dtype, unit):
    numbers = torch.Generator().manual_seed(n)
    x = (torch.randn(n, depth, generator=numbers) + 1).to(dtype).to(DEVICE)
    got = _middle(Side(x, torch.zeros(n, dtype=torch.int64, device=DEVICE), None), unit)
    sampled = MIDDLE["SAMPLED"]
    wide = x.double()
    if unit:
        wide = normalize(wide[:: max(1, n // sampled)][:sampled])
    some = wide[torch.arange(sampled, device=DEVICE) * len(wide) // sampled]
    want = some.sort(0).values[(sampled - 1) // 2]
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-6)
