"""python -m ms_kernels info | demo | explain | tune"""

import argparse
import importlib
import platform

import torch

import ms_kernels


def info() -> None:
    """What is installed, and which backends can run."""
    print(f"ms_kernels {ms_kernels.__version__}, torch {torch.__version__}, ", end="")
    print(f"Python {platform.python_version()}, {torch.get_num_threads()} threads")
    for name, state in ms_kernels.backends().items():
        note = state.note
        if name == "cpu" and state.available:
            module = importlib.import_module("ms_kernels._cpu")
            note += f" ({module.instruction_set()})"
        print(f"  {name:10} {'yes' if state.available else 'no':4} {note}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ms_kernels", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, backends, and why one is missing")
    demo = commands.add_parser("demo", help="train on handwritten digits and draw demo.png")
    demo.add_argument("--steps", default=200, help="training steps of each run")
    demo.add_argument("--output", default="demo.png", help="where the picture goes")
    explain = commands.add_parser("explain", help="draw how losses weigh pairs: explain.png")
    explain.add_argument("--steps", default=200, help="training steps")
    explain.add_argument("--output", default="explain.png", help="where the picture goes")
    tune = commands.add_parser("tune", help="find this GPU's fastest tiles and keep them")
    tune.add_argument("--show", action="store_true", help="only print the tiles in use")
    tune.add_argument("--modes", nargs="+", metavar="MODE", help="half, tf32x3, tf32, float64")
    tune.add_argument("--seconds", type=float, default=120.0, help="of all modes; default 120")
    arguments = parser.parse_args()
    if arguments.command == "info":
        info()
    elif arguments.command == "tune":
        from ms_kernels.tools import tune as tuner

        tuner.run(arguments.show, arguments.modes, arguments.seconds)
    elif arguments.command == "explain":
        from ms_kernels.tools import explain as explainer

        explainer.run(arguments.steps, arguments.output)
    else:
        from ms_kernels.tools.demo import run

        run(arguments.steps, arguments.output)


if __name__ == "__main__":
    main()
