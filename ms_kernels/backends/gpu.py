"""Whether torch can use a GPU in this process; else why not, and the way out."""

import warnings

import torch


def unusable() -> str | None:
    """None when torch has a CUDA device that answers.

    RuntimeError, in torch's words, in a process that was forked after its parent used CUDA, or
    whose CUDA context a failed kernel has broken.
    """
    with warnings.catch_warnings(record=True) as remarks:  # torch says there why the driver fails
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available and torch.version.cuda is None and torch.version.hip is None:
        return (
            f"this torch, {torch.__version__}, is built without CUDA and sees no CUDA device; "
            "install a CUDA build"
        )
    if not available:
        told = [str(remark.message).partition("\n")[0].rstrip(".") for remark in remarks[:1]]
        remark = "".join(f" ({line})" for line in told)
        return (
            f"torch {torch.__version__} sees no CUDA device{remark}; see that nvidia-smi lists a "
            "GPU, that CUDA_VISIBLE_DEVICES does not hide it, and that the driver is new enough"
        )
    torch.cuda.get_device_capability()
    # Waits for nothing, is legal while a graph is captured, and tells an earlier kernel's failure.
    torch.cuda.is_current_stream_capturing()
    return None
