"""Whether the compiled CUDA module runs on a GPU with its driver; else why not, and the way out."""

# Earlier GPUs have no bfloat16 and no asynchronous copies.
LEAST_CAPABILITY = 80
# The first drivers that run a major version of CUDA, by NVIDIA's release notes.
LEAST_DRIVER = {11: "450.80", 12: "525.60", 13: "580.65"}
REBUILD = "MSK_CUDA=ON pip install -v --no-deps . in the source folder"


def unfit(capability: tuple[int, int], architectures: str, driver: int, runtime: int) -> str | None:
    """None when a module built for those CMake architectures runs on such a GPU, else why not.

    driver: the latest CUDA that it serves, 12040 for 12.4, 0 for none; runtime: the module's own.
    """
    code = _code_for(capability, architectures)
    if code is None:
        number = capability[0] * 10 + capability[1]
        has = f"this GPU has compute capability {capability[0]}.{capability[1]}"
        if number < LEAST_CAPABILITY:
            return f"{has}, the kernels need 8.0 or newer; use backend='panels'"
        return (
            f"{has}, the module is built for {architectures}; use backend='triton' or 'panels', or "
            f"build with CMAKE_CUDA_ARCHITECTURES={number}: {REBUILD}"
        )
    return _driver_too_old(driver, runtime, code)


def _code_for(capability: tuple[int, int], architectures: str) -> str | None:
    """What of the module such a GPU runs: a cubin ("real"), PTX ("virtual") or nothing."""
    found = capability[0] * 10 + capability[1]
    code = None
    for entry in architectures.split(","):
        number, _, kind = entry.partition("-")
        if not number[0].isdigit():
            return "real"  # "all", "native": CMake chose
        built = int(number.rstrip("af"))
        # A cubin runs on later minors of its major; PTX is compiled for anything later.
        if found >= built and kind != "virtual" and found // 10 == built // 10:
            return "real"
        if found >= built and kind != "real":
            code = "virtual"
    return code


def _driver_too_old(driver: int, runtime: int, code: str) -> str | None:
    """None when the driver serves that runtime: a later one does, and one of the same major version
    does too, but for PTX, which only a driver as new as the nvcc that wrote it can compile."""
    major = runtime // 1000
    if driver >= runtime or (driver // 1000 == major and code == "real"):
        return None
    serves = f"the driver serves CUDA {_version(driver)}" if driver else "there is no CUDA driver"
    reason = f"the module's CUDA runtime is {_version(runtime)}, {serves}"
    least = LEAST_DRIVER.get(major, f"one for CUDA {major}")
    if driver // 1000 == major:
        return (
            f"{reason}, and this GPU has only PTX in the module, which an older driver cannot "
            f"compile; update the driver, or build for this GPU: {REBUILD}"
        )
    return (
        f"{reason}; update the driver (to {least} or later), or build with an older nvcc: "
        f"CUDACXX=/path/to/nvcc {REBUILD}"
    )


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
