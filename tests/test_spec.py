"""The lists of rules: what is appended has the next code, here and in csrc/rules/rules.h."""

import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import ms_kernels
from ms_kernels.rules import spec
from ms_kernels.rules.mining import BoundedMining
from ms_kernels.rules.sums import SummedWeighting

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("name", "rules"), [("WeightingRule", spec.NATIVE_WEIGHTINGS), ("MiningRule", spec.MININGS)]
)
def test_codes_are_those_of_cpp(name, rules):
    text = (ROOT / "csrc" / "rules" / "rules.h").read_text()
    listed = re.search(rf"enum class {name} : int {{(.*?)}}", text, re.S)[1]
    codes = [code.strip().replace("_", "") for code in listed.split(",")]
    names = [rule.__name__.removesuffix("Mining").lower() for rule in rules]
    assert codes == ["none" if name == "no" else name for name in names] + ["count"]


@pytest.mark.parametrize("rule", [*spec.WEIGHTINGS, *spec.MININGS], ids=lambda r: r.__name__)
def test_a_rule_is_shown_to_users(rule):
    assert f"`{rule.__name__}`" in (ROOT / "README.md").read_text()
    shown = {rule.__name__}
    if rule in spec.WEIGHTINGS:
        shown.add(f"{rule.__name__}Loss")
    assert shown <= set(ms_kernels.__all__)


def test_a_rule_that_is_appended_has_the_next_code():
    class Mine(SummedWeighting):
        pass

    assert spec.native_of((*spec.WEIGHTINGS, Mine)) == (*spec.NATIVE_WEIGHTINGS, Mine)


def test_options_that_no_call_holds_are_not_cut(monkeypatch):
    @dataclass(frozen=True)
    class Mine(BoundedMining):
        a: float = 1.0
        b: float = 2.0
        c: float = 3.0

    monkeypatch.setattr(spec, "MININGS", (Mine,))
    with pytest.raises(AssertionError, match="Mine: expected at most 2 options"):
        spec.PairSpec(mining=Mine()).native_rules(1e30)


def test_a_pickled_spec_hashes_anew():
    """None hashes to another number in another process."""
    loss = ms_kernels.PairSpec(normalize=False)
    hash(loss)
    copy = pickle.loads(pickle.dumps(loss))
    assert "_hash" in vars(loss) and "_hash" not in vars(copy)
    assert copy == loss and {loss: 1}[copy] == 1
