"""compute-sanitizer python tests/sanitize_kernels.py: every GPU kernel once, on ragged shapes."""

import torch

import ms_kernels
from ms_kernels import multi_similarity_loss, options

# (N, M or None, D): one row, primes, a tile and its edges, several tiles, depths past any owner.
SHAPES = [(1, None, 3), (67, None, 33), (193, None, 200), (131, 259, 96), (257, None, 521)]
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    budget = options.workspace_bytes
    for backend in ("triton", "cuda"):
        if backend not in ms_kernels.dispatch.built():
            print(f"{backend} left out: {ms_kernels.backends()[backend].note}")
            continue
        options.workspace_bytes = budget
        for n, m, d in SHAPES:
            for dtype in DTYPES:
                run(n, m, d, dtype, device, backend)
                print(f"{backend} N={n} M={m} D={d} {dtype}", flush=True)
        options.workspace_bytes = 1 << 16  # several launches of the scan and several panels
        run(523, None, 300, torch.bfloat16, device, backend)
        run(1500, 1100, 40, torch.float32, device, backend)  # by tiles
        run(8501, None, 16, torch.bfloat16, device, backend)  # labels are sorted, not counted
    print("done")


def run(n: int, m: int | None, d: int, dtype: torch.dtype, device: str, backend: str) -> None:
    torch.manual_seed(n)
    x = torch.randn(n, d, device=device).to(dtype).requires_grad_()
    y = torch.randint(max(1, n // 6), (n,), device=device)
    refs: tuple[torch.Tensor, ...] = ()
    if m is not None:
        r = torch.randn(m, d, device=device).to(dtype).requires_grad_()
        refs = (r, torch.randint(max(1, n // 6), (m,), device=device))
    for chosen in ({}, {"epsilon": None}, {"normalize": False, "beta": 3.0}):
        for reduction in ("mean", "none"):
            loss = multi_similarity_loss(
                x, y, *refs, reduction=reduction, backend=backend, **chosen
            )
            loss.sum().backward()
    ms_kernels.row_statistics(x, y, *refs, backend=backend)
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
