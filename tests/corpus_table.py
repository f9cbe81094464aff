"""Writes the corpus table of docs/compatibility.md: what became of each file. `python -m tests.corpus_table`."""

import sys
from collections import Counter
from pathlib import Path

from libs.workflow.definition import NodeKind
from tests.corpus import ABSENT, EXPECTED, Case, case, ending

PAGE = Path(__file__).resolve().parents[1] / "docs" / "compatibility.md"

BEGIN, END = "<!-- corpus: begin -->\n", "<!-- corpus: end -->"

TEXT = """## The open corpus

Thirty public Dify apps, unmodified, each run with the inputs, query and pins that lie beside the corpus. Written by
`python -m tests.corpus_table`; `simulation/test_corpus` checks the same, drives every branch handle, and
kills the executor between any two appends of every run. What a file leaves pinned is an outside system (a model, a
tool, a knowledge base) or code that imports packages beyond the standard library.

{count} of {all} files reach the end that is known of them.

| file | mode | nodes | branch handles | pinned | ends | result |
|---|---|---:|---:|---|---|---|
{rows}

`LLM-Finetuning-Dataflow-dify.yml` is meant to fail: one of its code nodes is not valid Python.
"""


def page() -> str:
    """The section, made anew by running everything."""
    rows, good = [], 0
    for file in sorted(EXPECTED):
        wanted = case(file)
        result = _result(wanted)
        good += result == wanted.ends
        nodes = sum(node.kind is not NodeKind.MARKER for node in wanted.definition.nodes.values())
        cells = [
            f"`{file}`",
            wanted.definition.mode,
            str(nodes),
            str(len(wanted.branch_handles())),
            _pinned(wanted),
            wanted.ends,
            result,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return TEXT.format(count=good, all=len(rows), rows="\n".join(rows))


def _result(wanted: Case) -> str:
    if missing := wanted.missing():
        return f"cannot run: no handler for {', '.join(missing)}"
    reached = ending(wanted)
    return reached.status if reached.status == wanted.ends else f"{reached.status}: {reached.error}"


def _pinned(wanted: Case) -> str:
    types, nodes = wanted.pins.get("types") or {}, wanted.pins.get("nodes") or {}
    found = Counter(node.type for node in wanted.definition.nodes.values() if node.type in types or node.id in nodes)
    return ", ".join(f"{count} {name}" for name, count in sorted(found.items())) or "nothing"


if __name__ == "__main__":
    if not EXPECTED:
        sys.exit(ABSENT)
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{page()}{END}{rest.partition(END)[2]}", "utf-8")
    sys.stdout.write(f"{PAGE}\n")
