"""docs/api.md is what signatures and docstrings say, and its links lead somewhere."""

import re
from dataclasses import fields

import pytest

pytest.importorskip("pytorch_metric_learning")

import ms_kernels  # noqa: E402
from docs import api  # noqa: E402
from ms_kernels import distributed, retrieval  # noqa: E402
from ms_kernels.rules.spec import MININGS, WEIGHTINGS  # noqa: E402


def headings(text):
    return re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)


def test_the_page_is_what_the_docstrings_say():
    assert api.PAGE.read_text() == api.page(), "run make api"


def test_every_public_name_has_one_entry():
    entries = headings(api.PAGE.read_text())
    for name in {*ms_kernels.__all__, *distributed.__all__, *retrieval.__all__} - {"retrieval"}:
        assert entries.count(name) == 1, name


def test_every_link_leads_to_one_heading():
    text = api.PAGE.read_text()
    anchors = re.findall(r"\(#(.*?)\)", "".join(map(api.link, headings(text))))
    assert len(anchors) == len(set(anchors))
    links = set(re.findall(r"\(#(.*?)\)", text))
    assert links and links <= set(anchors)


@pytest.mark.parametrize("rule", [*WEIGHTINGS, *MININGS])
def test_a_table_has_each_rule_with_its_defaults(rule):
    (row,) = re.findall(rf"^\| \[`{rule.__name__}`\].*$", api.PAGE.read_text(), flags=re.MULTILINE)
    _, formula, options = (cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1])
    assert (rule.__doc__ or "").startswith(formula.replace("\\", "")[:20])
    for name in (field.name for field in fields(rule)):
        assert f"{name} = {getattr(rule, name)}" in options


def test_a_docstring_becomes_markdown():
    assert "".join(api.markdown("Cost is\n    a + b\nof both.\n\nx, y: two,\n    of which.")) == (
        "Cost is\n\n```text\na + b\n```\n\nof both.\n\n- x, y: two,\n  of which.\n\n"
    )
    assert "".join(api.markdown("Args:\n    x (N,): rows.\n    y: labels,\n        whole.")) == (
        "**Args:**\n\n- x (N,): rows.\n- y: labels,\n  whole.\n\n"
    )


def test_a_changed_docstring_is_seen(monkeypatch):
    monkeypatch.setattr(ms_kernels.pair_loss, "__doc__", "Another.")
    assert "### pair_loss" in api.page() and api.page() != api.PAGE.read_text()
