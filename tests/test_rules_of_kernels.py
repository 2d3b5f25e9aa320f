"""What csrc/rules asks of whoever adds a rule: a changed copy of it, compiled by itself."""

import re
import shutil
import subprocess

import pytest
from host_gpu.build import CSRC

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

NEEDS_MOMENT = "static constexpr bool kNeedsMoment = true;"
OFFSETS_POSITIVES = "static constexpr bool kOffsetsPositives = true;"
LIFTED = ("weighting.h", "struct LiftedStructure : AnyRule {")
BOUNDED = ("mining.h", "bool bounds_negatives_above() const {")

GENERAL = """
#include <cstdio>
#include "rules/pair_loss.h"
int main() {
  using namespace msk;
  const auto say = [](WeightingRule weighting, MiningRule mining) {
    const PairLoss<double> loss({weighting, {1, 1, 1}, mining, {1, 1}}, 1);
    std::putchar('0' + loss.general);
  };
  say(WeightingRule::multi_similarity, MiningRule::none);
  say(WeightingRule::multi_similarity, MiningRule::multi_similarity);
  say(WeightingRule::lifted_structure, MiningRule::none);
  say(WeightingRule::lifted_structure, MiningRule::threshold);
  say(WeightingRule::lifted_structure, MiningRule::semi_hard);
}
"""

EVERYTHING = """
#include "rules/pair_loss.h"
template struct msk::Mining<double>;
template struct msk::PairLoss<double>;
"""


def changed(folder, header, text, replacement):
    """A copy of csrc/rules, of which one header is changed."""
    shutil.copytree(CSRC / "rules", folder / "rules")
    source = (folder / "rules" / header).read_text()
    assert text in source, f"{header} has changed: the test must look elsewhere"
    (folder / "rules" / header).write_text(source.replace(text, replacement))
    return folder


@pytest.mark.parametrize(
    ("place", "added", "want"),
    [
        (LIFTED, "", "00001"),
        (LIFTED, NEEDS_MOMENT, "00111"),
        (LIFTED, OFFSETS_POSITIVES, "00111"),
        (BOUNDED, "if (rule == MiningRule::threshold) return true;", "00011"),
    ],
    ids=["as it is", "needs a moment", "offsets positives", "bounds negatives above"],
)
def test_what_the_short_scans_cannot_do_is_general(tmp_path, place, added, want):
    """Scans that are not general know no moment, no offset and no upper bound: a rule with one of
    them must not take those, and the MS loss must."""
    header, text = place
    folder = changed(tmp_path, header, text, f"{text} {added}")
    program = tmp_path / "general"
    (tmp_path / "general.cpp").write_text(GENERAL)
    command = ["g++", "-std=c++17", f"-I{folder}", tmp_path / "general.cpp", "-o", program]
    subprocess.run(command, check=True)
    assert subprocess.run([program], capture_output=True, text=True).stdout == want


@pytest.mark.parametrize(
    ("rules", "header", "functions"),
    [
        (
            "MiningRule",
            "mining.h",
            [
                *("hardest_negatives", "bounds_negatives_above", "positives_need_negatives"),
                *("negative_above", "negative_below", "positive_below"),
            ],
        ),
        ("WeightingRule", "weighting.h", ["with_weighting"]),
    ],
    ids=["mining", "weighting"],
)
def test_the_compiler_names_every_place_that_a_new_rule_needs(tmp_path, rules, header, functions):
    text = re.search(
        rf"enum class {rules} : int {{[^}}]*", (CSRC / "rules" / "rules.h").read_text()
    )
    folder = changed(tmp_path, "rules.h", text[0], re.sub(r"count\s*$", "added, count", text[0]))
    (tmp_path / "all.cpp").write_text(EVERYTHING)
    command = ["g++", "-std=c++17", "-Wswitch", "-fsyntax-only", f"-I{folder}"]
    done = subprocess.run([*command, tmp_path / "all.cpp"], capture_output=True, text=True)
    assert done.returncode == 0
    lines = set(re.findall(rf"{header}:(\d+):.*.added. not handled", done.stderr))
    source = (folder / "rules" / header).read_text().splitlines()
    found = set()
    for line in lines:  # the nearest signature above
        above = (re.search(r"MSK_HOST_DEVICE.* (\w+)\(", s) for s in source[int(line) - 1 :: -1])
        found.add(next(match[1] for match in above if match))
    assert found == set(functions)
