"""What a user can put right: shown in one line, without a traceback."""


class Refusal(Exception):
    """Names what was given, what was wanted, and the way out."""


def plain(error: Exception) -> str:
    """What it says; from a worker that decodes images it comes with the worker's traceback."""
    text = str(error).strip()
    if isinstance(error, Refusal):
        return text.rpartition(f"{Refusal.__module__}.{Refusal.__name__}: ")[2]
    return f"{type(error).__name__}: {text}"


def some(names: list[str], most: int = 3) -> str:
    """The first few, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
