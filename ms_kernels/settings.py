"""Memory budgets, as attributes of `ms_kernels.options`."""


class Options:
    """Budgets in bytes. They change speed and memory, never a bit of a result.

    workspace_bytes: what the cpu backend may spend on partial sums and on similarities kept from
        the forward pass for the gradient, beyond one normalised copy of the embeddings.
        Default 40 MiB, enough to keep all similarities up to N = 4096. The cuda backend holds
        similarities and weights of as many rows as fit.
    panel_bytes: one panel of similarities of the panels backend. Default 16 MiB.
    """

    def __init__(self) -> None:
        self._workspace_bytes = 40 << 20
        self._panel_bytes = 16 << 20

    @property
    def workspace_bytes(self) -> int:
        return self._workspace_bytes

    @workspace_bytes.setter
    def workspace_bytes(self, value: int) -> None:
        self._workspace_bytes = _bytes("workspace_bytes", value, 0)

    @property
    def panel_bytes(self) -> int:
        return self._panel_bytes

    @panel_bytes.setter
    def panel_bytes(self, value: int) -> None:
        self._panel_bytes = _bytes("panel_bytes", value, 1)

    def __setattr__(self, name: str, value: int) -> None:
        if not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(
                f"options.{name}: expected workspace_bytes or panel_bytes, got {name!r}"
            )
        super().__setattr__(name, value)


def _bytes(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"options.{name}: expected a number of bytes (int), got {value!r}")
    if value < least:
        raise ValueError(f"options.{name}: expected at least {least}, got {value}")
    return value


options = Options()
