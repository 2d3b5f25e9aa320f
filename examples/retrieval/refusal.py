"""What a user can put right: shown in one line, without a traceback."""


class Refusal(Exception):
    """Names what was given, what was wanted, and the way out."""


def some(names: list[str], most: int = 3) -> str:
    """The first few, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
