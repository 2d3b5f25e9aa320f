"""ms_kernels.options says what is in force and who chose it."""

import inspect

import numpy as np
import pytest

import ms_kernels
from ms_kernels.settings import NAMES, Options


def lines(options):
    first, *rest = repr(options).splitlines()
    assert first == "ms_kernels.options"
    return {line.split()[0]: line.strip() for line in rest}


def test_each_option_is_shown_with_its_default():
    shown = lines(Options())
    assert tuple(shown) == NAMES
    public = {name for name, value in vars(Options).items() if isinstance(value, property)}
    assert public == set(NAMES)
    assert shown["workspace_bytes"] == "workspace_bytes = 41943040 (40 MiB), default"
    assert shown["skip_below"] == "skip_below = 5.96e-08, default"


def test_the_line_that_set_an_option_is_shown():
    options = Options()
    options.panel_bytes = np.int64(1 << 19)
    options.skip_below = 0
    here = inspect.currentframe().f_lineno - 2
    shown = lines(options)
    assert shown["panel_bytes"] == f"panel_bytes = 524288 (0.5 MiB), set at {__file__}:{here}"
    assert shown["skip_below"] == f"skip_below = 0, set at {__file__}:{here + 1}"
    assert shown["stash_bytes"].endswith("default")


def test_a_value_that_is_refused_sets_nothing():
    options = Options()
    before = repr(options)
    for name in NAMES:
        with pytest.raises(ValueError):
            setattr(options, name, -1)
    assert repr(options) == before


def test_of_a_value_that_came_another_way_no_origin_is_claimed(monkeypatch):
    options = Options()
    monkeypatch.setattr(options, "_stash_bytes", 1 << 20)
    assert lines(options)["stash_bytes"] == "stash_bytes = 1048576 (1 MiB)"


def test_the_package_shows_its_own():
    assert tuple(lines(ms_kernels.options)) == NAMES
