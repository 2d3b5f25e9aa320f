"""Stand-ins of NVIDIA's tools for a rehearsal: they run what they are given and print what the
tools print, so that their command lines and what reads their output are tried."""

import os
import sys
from pathlib import Path

SMI = """#!{python}
import sys
query = [word for word in sys.argv if word.startswith("--query-gpu=")]
if query:
    names = query[0].split("=")[1].split(",")
    known = {"name": "stand-in", "driver_version": "580.00"}
    print(", ".join(known.get(name, "1000 MHz") for name in names))
else:
    print("nvidia-smi: a stand-in")
"""

NCU = """#!{python}
import subprocess, sys
words = sys.argv[1:]
if words == ["--version"]:
    sys.exit(print("Version 0 (a stand-in)"))
at = words.index(sys.executable)
options = words[:at]
for needed in ("--csv", "--profile-from-start", "--clock-control"):
    assert needed in options, needed
print("==PROF== Connected to process 1", flush=True)
done = subprocess.run(words[at:])
head = ["ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream",
        "Block Size", "Grid Size", "Device", "CC", "gpu__time_duration.sum",
        "sm__throughput.avg.pct_of_peak_sustained_elapsed",
        "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
        "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",
        "smsp__average_warps_issue_stalled_wait_per_issue_active.ratio"]
rows = [head, [""] * 11 + ["usecond", "%", "%", "inst", "inst"]]
for number, name in enumerate(["void msk::gpu::batch_kernel", "void at::native::fill"]):
    rows.append([str(number), "1", "python3", "127.0.0.1", name, "1", "7", "(256, 1, 1)",
                 "(132, 1, 1)", "0", "9.0", "1,021.5", "41.2", "n/a", "1.5", "0.5"])
for row in rows:
    print(",".join('"' + cell + '"' for cell in row))
print("==PROF== Disconnected from process 1")
sys.exit(done.returncode)
"""

SANITIZER = """#!{python}
import subprocess, sys
words = sys.argv[1:]
if words == ["--version"]:
    sys.exit(print("Version 0 (a stand-in)"))
assert words[0] == "--tool" and "--error-exitcode" in words, words
assert ("--kernel-name" in words) == (words[1] != "initcheck"), words
at = words.index(sys.executable)
print("========= COMPUTE-SANITIZER", flush=True)
done = subprocess.run(words[at:])
if words[1] == "racecheck":
    print("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)")
else:
    print("========= ERROR SUMMARY: 0 errors")
sys.exit(done.returncode)
"""
TOOLS = {"nvidia-smi": SMI, "ncu": NCU, "compute-sanitizer": SANITIZER}


def write(folder: Path) -> Path:
    """A folder of them, for the front of PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in TOOLS.items():
        path = folder / name
        path.write_text(text.replace("{python}", sys.executable))
        os.chmod(path, 0o755)
    return folder
