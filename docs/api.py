"""python -m docs.api: docs/api.md below its introduction, from public signatures and docstrings."""

import importlib
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import ms_kernels
from ms_kernels import Mining, Weighting, distributed, retrieval

PAGE = Path(__file__).with_name("api.md")
WIDTH = 100
MARK = "<!-- what follows is made by docs/api.py -->\n"
MIRROR = [f"pytorch_metric_learning.{part}" for part in ("distributed", "losses", "miners")]
fill = partial(textwrap.fill, width=WIDTH, subsequent_indent="  ", break_on_hyphens=False)
# A number has no docstring.
IGNORED = "The id, in `ids` and `ref_ids`, of a sample that is in no pair, whatever the other's is."
# What users call of a class besides the class itself; the rest is what the package asks of it.
MEMBERS = {
    "CrossBatchMemory": ("forward", "enqueue", "reset", "__len__"),
    "DistributedLoss": ("forward",),
    "Mining": ("keep",),
    "MultiSimilarityLoss": ("paper", "released"),
    "PairLoss": ("forward", "statistics"),
    "RowStatistics": ("active", "pos_lse", "neg_lse"),
    "Weighting": ("row_loss",),
}
ITEM = re.compile(r"[a-z]\w*( \([^)]*\))?(, \w+( \([^)]*\))?)*: ")


def groups() -> Iterator[tuple[str, dict[str, Any]]]:
    """(heading, {name: object}) of all that is public."""

    def named(module: Any) -> dict[str, Any]:
        return {name: getattr(module, name) for name in sorted(module.__all__, key=str.lower)}

    def of(base: type) -> Callable[[Any], bool]:
        return lambda value: inspect.isclass(value) and issubclass(value, base)

    kinds = {"Functions": inspect.isfunction, "Modules": of(nn.Module)}
    kinds |= {"Weighting rules": of(Weighting), "Mining rules": of(Mining)}
    kinds |= {"Results, options, backends": lambda value: value is not retrieval}
    left = named(ms_kernels)
    for heading, belongs in kinds.items():
        yield heading, {name: left.pop(name) for name in list(left) if belongs(left[name])}
    yield "Several processes: ms_kernels.distributed", named(distributed)
    yield "Scores: ms_kernels.retrieval", named(retrieval)


def link(heading: str, shown: str = "`{}`") -> str:
    """To a heading, by the anchor that a git host makes of it."""
    anchor = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
    return f"[{shown.format(heading)}](#{anchor})"


def clean(text: str) -> str:
    """Without the modules of names, without quotes around types, and of a long number its start."""
    text = re.sub(r"\b(ms_kernels|collections|typing\w*)\.([a-z_]+\.)*|\btorch\.(?=T)", "", text)
    text = re.sub(r"(\.\d{5})\d+", r"\1", text.replace("<factory>", "..."))
    return re.sub(r"(?<=: )'(.*?)'", r"\1", text).replace("'", '"')


def parameters(function: Any) -> list[str]:
    """As they are written in Python, without `self` and what takes in unknown options."""
    known = inspect.signature(function).parameters.values()
    known = [p for p in known if p.name not in ("self", "unknown")]
    named = sum(p.kind is p.KEYWORD_ONLY for p in known)
    shown = [clean(str(p)) for p in known]
    return [*shown[:-named], "*", *shown[-named:]] if named else shown


def signature(name: str, function: Any) -> str:
    inside, result = parameters(function), inspect.signature(function).return_annotation
    has_none = result is None or result is inspect.Signature.empty or inspect.isclass(function)
    arrow = "" if has_none else f" -> {clean(inspect.formatannotation(result))}"
    line = f"{name}({', '.join(inside)}){arrow}"
    if len(line) > WIDTH:
        line = "\n    ".join([f"{name}(", *(f"{part}," for part in inside)]) + f"\n){arrow}"
    return f"```python\n{line}\n```\n\n"


def markdown(text: str) -> Iterator[str]:
    """A docstring: arguments as a list; examples and what is set in, as formulas are, in frames."""
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.splitlines()
        if lines[0].startswith(">>>"):
            yield f"```python\n{block}\n```\n\n"
        elif lines[0] in ("Args:", "Returns:", "Raises:"):
            inside = textwrap.dedent("\n".join(lines[1:]))
            yield f"**{lines[0]}**\n\n{inside if lines[0] == 'Returns:' else items(inside)}\n\n"
        elif ITEM.match(block) and all(ITEM.match(x) or x.startswith("    ") for x in lines):
            yield items(block) + "\n\n"
        else:
            for inner, part in itertools.groupby(lines, lambda line: line.startswith("  ")):
                text = textwrap.dedent("\n".join(part))
                yield f"\n```text\n{text}\n```\n\n" if inner else f"{text}\n"
            yield "\n"


def items(text: str) -> str:
    """Each argument one item; the lines that go on with it are set in as deep as it."""
    return re.sub(r"^(?! )", "- ", re.sub(r"^ +", "  ", text, flags=re.M), flags=re.M)


def entry(name: str, value: Any, prefix: str) -> str:
    doc, called = IGNORED if name == "IGNORED" else inspect.getdoc(value) or "", value
    if rule := re.match(r"`PairLoss` of the weighting rule (\w+)", doc):  # has an entry of its own
        own = textwrap.indent(inspect.getdoc(getattr(ms_kernels, rule[1])) or "", "    ")
        doc = doc.replace(own, "").replace(f" {rule[1]};", f"\n{link(rule[1])};").strip()
        doc = re.sub("^    ", "", doc, flags=re.M) + f"\nOptions: those of {link('PairLoss')}."
        called = value.__init__
    call = signature(f"{prefix}{name}", called) if callable(value) else ""
    text = f"### {name}\n\n{call}{''.join(markdown(doc))}"
    for member in MEMBERS.get(name, ()):
        own = getattr(value, member)
        head = f"({', '.join(parameters(own))})" if callable(own) else ""
        text += f"**`.{member}{head}`**\n\n{''.join(markdown(inspect.getdoc(own) or ''))}"
    return text


def table(rules: Iterable[type]) -> str:
    rows, bar = ["| rule | formula, or what it keeps | options |", "|---|---|---|"], "\\|"
    for rule in rules:
        formula = " ".join((inspect.getdoc(rule) or "").split("\n\n")[0].split())
        options = ", ".join(re.sub(r": [\w |]+ =", " =", part) for part in parameters(rule))
        rows.append(f"| {link(rule.__name__)} | {formula.replace('|', bar)} | {options} |")
    return "\n".join(rows) + "\n"


def page() -> str:
    contents, body = [], []
    for heading, found in groups():
        contents.append(fill(f"- {link(heading, '{}')}: {', '.join(map(link, found))}"))
        body.append(f"## {heading}\n")
        if heading.endswith(" rules"):
            body.append(table(v for v in found.values() if v not in (Weighting, Mining)))
        prefix = f"{heading.rpartition('.')[2]}." if "." in heading else ""
        body += [entry(name, value, prefix) for name, value in found.items()]
    heading = "Other libraries: ms_kernels.compat"
    contents.append(f"- {link(heading, '{}')}\n")
    body.append(f"## {heading}\n")
    for path in (*MIRROR, "sentence_transformers"):
        module = importlib.import_module(f"ms_kernels.compat.{path}")
        names = module.__all__ if path not in MIRROR else [k.__name__ for k in module.REPLACED]
        body.append(fill(f"- `{module.__name__}`: {', '.join(names)}."))
    head = PAGE.read_text().partition(MARK)[0] + MARK
    return head + re.sub(r"\n{3,}", "\n\n", "\n".join(["", *contents, *body])) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"written: docs/{PAGE.name}")
