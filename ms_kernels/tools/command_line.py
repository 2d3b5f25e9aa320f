"""What a command was given is checked before any work, and refused in one line."""

import errno
import sys
from pathlib import Path

from ms_kernels.checks import shown

MOST = 2**62


def check_count(command: str, option: str, got: object, least: int = 1, most: int = MOST) -> int:
    """A whole number, also as text; exits with what was wanted."""
    wanted = f"{command}: {option}: expected a whole number, at least {least}"
    number = got
    if isinstance(got, str):
        digits = got.removeprefix("-")
        if not digits.isdecimal():
            sys.exit(f"{wanted}, got {got:.40}")
        # Of thousands of digits Python makes no number.
        long = len(digits.lstrip("0")) > len(str(most))
        number = (-MOST if got[0] == "-" else 2 * MOST) if long else int(got)
    if not isinstance(number, int) or number < least:
        sys.exit(f"{wanted}, got {shown(got):.40}")
    if number > most:
        sys.exit(f"{wanted} and at most {most}, got {shown(got):.40}")
    return number


def check_output(command: str, option: str, output: str | Path) -> None:
    """A file that can be written: it is opened, and is left as it was."""
    path = Path(output)
    if not path.absolute().parent.is_dir():
        sys.exit(
            f"{command}: {option}: expected a file in a folder that exists, got {str(path)!r}; "
            "create the folder, or choose another"
        )
    try:
        existed = path.resolve().exists()
        if existed and not path.is_file() and not path.is_dir():  # a pipe waits for its reader
            raise OSError(errno.EINVAL, "it is no file")
        with path.open("ab"):
            pass
        if not existed:
            path.resolve().unlink()  # what a link leads to, not the link
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) else error
        sys.exit(
            f"{command}: {option}: expected a file that can be written, got {str(path)!r}: "
            f"{told}; choose another place"
        )


def check_picture(command: str, output: str) -> None:
    """A file that can be written, of a kind that matplotlib draws by itself; needs matplotlib."""
    from matplotlib.figure import Figure

    kinds = set(Figure().canvas.get_supported_filetypes()) - {"pgf"}  # that one needs LaTeX
    if Path(output).suffix[1:].lower() not in kinds:
        sys.exit(
            f"{command}: --output: expected a picture, such as {command}.png or {command}.svg, "
            f"got {output!r}"
        )
    check_output(command, "--output", output)
