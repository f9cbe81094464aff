"""Documents made from a seed, with the answers of their code nodes: branches, joins, failures, retries, containers.

`make(seed)` gives the same case for ever, so a seed is all that a difference needs to be seen again. Everything a
document reads comes before the reader, so that how a run ends does not depend on the order in which parallel nodes
complete: what is left to chance here is the engines' business, not the author's.
"""

from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.documents import code, document, edges, end, node, start

ERROR = "pinned failure"


@dataclass(frozen=True, slots=True)
class Made:
    """A document, its inputs, and what its code nodes answer."""

    seed: int
    document: str
    inputs: dict[str, str]
    pins: dict[str, dict[str, Any]]
    """Code node -> `calls`: which calls (1-based, per item) fail; `items`: whose calls fail; `length` of its list."""
    around: dict[str, list[str]]
    """Node -> the iterations around it, outermost first."""

    def as_json(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "document": self.document,
            "inputs": self.inputs,
            "pins": self.pins,
            "around": self.around,
            "error": ERROR,
        }


def pinned(pin: dict[str, Any], node_id: str, items: list[int], call: int) -> dict[str, Any] | None:
    """Outputs of a call; None: it fails. reference.py has the same rule."""
    if call in pin["calls"] or (items and items[-1] in pin["items"]):
        return None
    place = ".".join(map(str, items))
    return {"result": f"{node_id}@{place}#{call}", "items": [f"{node_id}.{number}" for number in range(pin["length"])]}


def make(seed: int) -> Made:
    return _Author(seed).write()


@dataclass(slots=True)
class _Scope:
    """The main graph, or the body of one container."""

    container: str | None = None
    kind: str = ""
    iterations: tuple[str, ...] = ()
    loop: str | None = None
    """The innermost loop around."""
    depth: int = 0
    handles: dict[str, list[str]] = field(default_factory=dict)
    above: dict[str, set[str]] = field(default_factory=dict)
    """Node of this scope -> everything that has been decided before it starts."""


class _Author:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.nodes: list[dict[str, Any]] = []
        self.arrows: list[str] = []
        self.pins: dict[str, dict[str, Any]] = {}
        self.around: dict[str, list[str]] = {}
        self.kinds: dict[str, str] = {}
        self.chat = self.random.random() < 0.25

    def write(self) -> Made:
        scope = _Scope(handles={"start": ["source"]}, above={"start": set()})
        self.nodes.append(start("q"))
        self.kinds["start"] = "start"
        self._code(scope, "n0", ["start"])
        self._fill(scope, self.random.randint(1, 7))
        for number in range(self.random.choice([1, 1, 2])):
            self._response(scope, f"end{number}")
        text = document(self.nodes, edges(*self.arrows), mode="advanced-chat" if self.chat else "workflow")
        inputs = {"q": self.random.choice(["yes", "no"])}
        return Made(self.seed, text, inputs, self.pins, self.around)

    # --- places in a graph ---

    def _fill(self, scope: _Scope, count: int) -> None:
        kinds = ["code"] * 4 + ["retry"] * 2 + ["fail-branch"] * 2 + ["default-value"] * 2 + ["if"] * 3
        kinds += ["aggregator", "template"] + ["iteration", "iteration", "loop"] * (scope.depth < 3)
        if scope.loop is not None:
            kinds += ["assigner"] * 2 + ["loop-end"]
        kinds.append("response")
        for _ in range(count):
            name = f"n{len(self.nodes)}"
            kind = self.random.choice(kinds)
            # Now and then a node without any edge to it: it never runs, and what waits for it neither.
            sources = self._sources(scope) if self.random.random() < 0.98 else []
            match kind:
                case "if":
                    self._if(scope, name, sources)
                case "aggregator":
                    self._aggregator(scope, name, sources)
                case "assigner":
                    self._assigner(scope, name, sources)
                case "template":
                    self._template(scope, name, sources)
                case "loop-end":
                    # Of the innermost loop around it, whatever iterations lie between.
                    self._place(scope, name, "loop-end", sources, node(name, "loop-end", loop_id=scope.loop))
                case "response":
                    self._response(scope, name, sources)
                case "iteration":
                    self._iteration(scope, name, sources)
                case "loop":
                    self._loop(scope, name, sources)
                case _:
                    self._code(scope, name, sources, kind)

    def _sources(self, scope: _Scope) -> list[str]:
        # Late nodes are taken more often: chains as well as wide graphs.
        names = list(scope.handles)
        few = self.random.choice([1, 1, 1, 2, 2, 3])
        found = {self.random.choice(names[-3:] if self.random.random() < 0.6 else names) for _ in range(few)}
        return sorted(found)

    def _place(
        self,
        scope: _Scope,
        name: str,
        kind: str,
        sources: list[str],
        made: dict[str, Any],
        handles: tuple[str, ...] = ("source",),
    ) -> None:
        if scope.container is not None:
            made["data"][f"{scope.kind}_id"] = scope.container
            made["parentId"] = scope.container
        self.nodes.append(made)
        self.kinds[name] = kind
        self.around[name] = list(scope.iterations)
        for source in sources:
            if source not in scope.handles:
                continue
            few = 2 if self.random.random() < 0.1 else 1
            chosen = self.random.sample(scope.handles[source], min(few, len(scope.handles[source])))
            if self.random.random() < 0.02:
                chosen = ["success-branch"]  # old documents have it; no branch node ever selects it
            self.arrows += [f"{source}[{handle}] > {name}" for handle in chosen]
        scope.above[name] = set(sources).union(*(scope.above[source] for source in sources))
        scope.handles[name] = list(handles)

    def _readable(self, scope: _Scope, sources: list[str], *wanted: str) -> list[str]:
        """Nodes decided before whatever follows the sources, of the wanted kinds."""
        before = set(sources).union(*(scope.above[source] for source in sources))
        return sorted(name for name in before if self.kinds.get(name) in wanted)

    # --- nodes ---

    def _code(self, scope: _Scope, name: str, sources: list[str], kind: str = "code") -> None:
        more: dict[str, Any] = {}
        calls: list[int] = []
        items: list[int] = []
        chance = self.random.random()
        if kind == "retry" or (kind != "code" and chance < 0.2):
            most = self.random.choice([1, 2])
            more["retry_config"] = {"retry_enabled": True, "max_retries": most, "retry_interval": 100}
            calls = [1] if chance < 0.5 else list(range(1, most + 1))
        if kind == "fail-branch":
            more["error_strategy"] = "fail-branch"
        if kind == "default-value":
            more["error_strategy"] = "default-value"
            more["default_value"] = [{"key": "result", "type": "string", "value": "default"}]
        if kind in ("fail-branch", "default-value"):
            calls = self.random.choice([[], [1], [1, 2, 3], list(range(1, 9))])
            items = self.random.choice([[], [], [0], [1, 2]])
        elif name != "n0" and self.random.random() < (0.25 if scope.container else 0.05):
            calls, items = ([], [1]) if self.random.random() < 0.5 else (list(range(1, 9)), [])
        self.pins[name] = {"calls": calls, "items": items, "length": self.random.choice([0, 1, 2, 3, 3])}
        outputs = {"result": {"type": "string", "children": None}, "items": {"type": "array[string]", "children": None}}
        handles = ("source", "fail-branch") if kind == "fail-branch" else ("source",)
        self._place(scope, name, kind, sources, code(name, outputs=outputs, **more), handles)

    def _condition(self, scope: _Scope, sources: list[str]) -> dict[str, Any]:
        read = self._readable(scope, sources, "code", "retry", "fail-branch", "default-value")
        options = [("start.q", "is", "yes", "string"), ("start.q", "is not", "yes", "string")]
        if read:
            name = self.random.choice(read)
            options += [(f"{name}.result", "contains", text, "string") for text in ("#1", "#2", "@1", "default")]
            if self.random.random() < 0.3:
                options += [
                    (f"{name}.result", "exists", "", "string"),
                    (f"{name}.items", "contains", f"{name}.0", "array[string]"),
                ]
        if scope.kind == "iteration":
            options += [(f"{scope.container}.index", operator, "1", "number") for operator in ("=", "<", "≥")]
            options.append((f"{scope.container}.item", "end with", ".0", "string"))
        selector, operator, value, kind = self.random.choice(options)
        return {
            "id": f"c{self.random.randint(0, 10**6)}",
            "variable_selector": selector.split("."),
            "comparison_operator": operator,
            "value": value,
            "varType": kind,
        }

    def _if(self, scope: _Scope, name: str, sources: list[str]) -> None:
        cases = [
            {
                "id": case_id,
                "case_id": case_id,
                "logical_operator": self.random.choice(["and", "or"]),
                "conditions": [self._condition(scope, sources) for _ in range(self.random.choice([1, 1, 2]))],
            }
            for case_id in ("true", "second")[: self.random.choice([1, 1, 2])]
        ]
        handles = [str(each["case_id"]) for each in cases] + ["false"]
        made = node(name, "if-else", cases=cases)
        chance = self.random.random()
        if chance < 0.3:
            made["data"]["error_strategy"] = "fail-branch"
            handles.append("fail-branch")
        elif chance < 0.4 and scope.container is None:
            # In a body it fails the reference's whole run, past the container; see compared.py.
            made["data"]["error_strategy"] = "default-value"
            made["data"]["default_value"] = [{"key": "result", "type": "string", "value": "default"}]
        self._place(scope, name, "if", sources, made, tuple(handles))

    def _aggregator(self, scope: _Scope, name: str, sources: list[str]) -> None:
        read = self._readable(scope, sources, "code", "retry", "fail-branch", "default-value")
        variables = [[each, "result"] for each in self.random.sample(read, min(2, len(read)))]
        made = node(name, "variable-aggregator", output_type="string", variables=variables)
        self._place(scope, name, "aggregator", sources, made)

    def _template(self, scope: _Scope, name: str, sources: list[str]) -> None:
        read = self._readable(scope, sources, "code", "retry", "fail-branch", "default-value", "aggregator")
        chosen = self.random.sample(read, min(2, len(read)))
        variables = [
            {
                "variable": f"v{number}",
                "value_selector": [each, "output" if self.kinds[each] == "aggregator" else "result"],
            }
            for number, each in enumerate(chosen)
        ]
        text = " ".join(["t", *(f"{{{{ v{number} }}}}" for number in range(len(chosen)))])
        made = node(name, "template-transform", template=text, variables=variables)
        self._place(scope, name, "template", sources, made)

    def _assigner(self, scope: _Scope, name: str, sources: list[str]) -> None:
        item = {
            "variable_selector": [scope.loop, "count"],
            "input_type": "constant",
            "operation": "+=",
            "value": 1,
            "write_mode": "over-write",
        }
        self._place(scope, name, "assigner", sources, node(name, "assigner", version="2", items=[item]))

    def _iteration(self, scope: _Scope, name: str, sources: list[str]) -> None:
        lists = self._readable(scope, sources, "code", "retry", "fail-branch", "default-value")
        if not lists and scope.container is None:
            lists = ["n0"]
            sources = sorted({*sources, "n0"})
        iterator = [self.random.choice(lists), "items"] if lists else ["nobody", "items"]
        done = self._readable(scope, sources, "iteration")
        if done and self.random.random() < 0.4:
            iterator = [self.random.choice(done), "output"]
        elif scope.kind == "iteration" and scope.container and self.random.random() < 0.2:
            iterator = [scope.container, "item"]
        inner = _Scope(name, "iteration", (*scope.iterations, name), scope.loop, scope.depth + 1)
        made = node(
            name,
            "iteration",
            start_node_id=f"{name}start",
            iterator_selector=iterator,
            output_selector=[],
            is_parallel=self.random.random() < 0.5,
            parallel_nums=self.random.randint(1, 3),
            error_handle_mode=self.random.choice(["terminated", "continue-on-error", "remove-abnormal-output"]),
            flatten_output=self.random.random() < 0.7,
        )
        self._container(scope, inner, name, sources, made)
        results = [[each, "result"] for each in inner.handles if self.kinds[each] in ("code", "retry", "fail-branch")]
        results += [[each, "items"] for each in inner.handles if self.kinds[each] == "code"]
        results += [[each, "output"] for each in inner.handles if self.kinds[each] in ("iteration", "aggregator")]
        results += [[each, "count"] for each in inner.handles if self.kinds[each] == "loop"]
        made["data"]["output_selector"] = self.random.choice(results or [[name, "item"]])

    def _loop(self, scope: _Scope, name: str, sources: list[str]) -> None:
        conditions = [
            {
                "id": "b",
                "variable_selector": [name, "count"],
                "comparison_operator": "≥",
                "value": str(self.random.choice([1, 2, 3])),
                "varType": "number",
            }
        ]
        variable = {"id": "v", "label": "count", "var_type": "number", "value_type": "constant", "value": 1}
        inner = _Scope(name, "loop", scope.iterations, name, scope.depth + 1)
        made = node(
            name,
            "loop",
            start_node_id=f"{name}start",
            loop_count=self.random.randint(1, 3),
            break_conditions=self.random.choice([[], conditions]),
            logical_operator=self.random.choice(["and", "or"]),
            loop_variables=[variable],
        )
        read = self._readable(scope, sources, "code", "retry", "fail-branch", "default-value")
        if read and self.random.random() < 0.3:
            selector = [self.random.choice(read), "result"]
            # First: after a loop that cannot open, the reference keeps the variables before the one that is missing.
            made["data"]["loop_variables"].insert(
                0, {"id": "w", "label": "text", "var_type": "string", "value_type": "variable", "value": selector}
            )
        self._container(scope, inner, name, sources, made)
        works = [each for each in inner.handles if self.kinds[each] in ("code", "retry", "fail-branch")]
        if works and scope.loop is None and self.random.random() < 0.3:
            # Missing before the first round, which is no mistake, and after a round that went another way, which is.
            made["data"]["break_conditions"] = [
                *made["data"]["break_conditions"],
                {
                    "id": "d",
                    "variable_selector": [self.random.choice(works), "result"],
                    "comparison_operator": "contains",
                    "value": "#2",
                    "varType": "string",
                },
            ]

    def _container(self, scope: _Scope, inner: _Scope, name: str, sources: list[str], made: dict[str, Any]) -> None:
        handles: tuple[str, ...] = ("source",)
        chance = self.random.random()
        if chance < 0.3:
            made["data"]["error_strategy"] = "fail-branch"
            handles = ("source", "fail-branch")
        elif chance < 0.4:
            made["data"]["error_strategy"] = "default-value"
            made["data"]["default_value"] = [{"key": "output", "type": "string", "value": "instead"}]
        self._place(scope, name, inner.kind, sources, made, handles)
        marker = f"{name}start"
        inner.handles[marker], inner.above[marker] = ["source"], set(scope.above[name])
        opening = node(marker, f"{inner.kind}-start", **{f"{inner.kind}_id": name})
        opening["parentId"] = name
        self.nodes.append(opening)
        self.kinds[marker] = "marker"
        self._fill(inner, self.random.choice([1, 1, 2, 3, 4]))
        if inner.kind == "iteration":
            # Decided when the container ends, but nobody outside sees its values. (Those of a loop: see compared.py.)
            scope.above[name] = scope.above[name] | {each for each in inner.handles if each != marker}

    def _response(self, scope: _Scope, name: str, sources: list[str] | None = None) -> None:
        if sources is None:
            sources = sorted(set(self._sources(scope)) | set(self._sources(scope)))
        before = set(sources).union(*(scope.above[source] for source in sources))
        read: dict[str, str] = {}
        for each in sorted(before):
            for output in _OUTPUTS.get(self.kinds[each], ()):
                read[f"{name}_{each}_{output}"] = f"{each}.{output}"
        if self.chat:
            chosen = self.random.sample(sorted(read.values()), min(2, len(read)))
            text = f"[{name}" + "".join(f" {{{{#{selector}#}}}}" for selector in chosen) + "]"
            self._place(scope, name, "answer", sources, node(name, "answer", answer=text, variables=[]))
        else:
            self._place(scope, name, "end", sources, end(name, **read))


_OUTPUTS = {
    "code": ("result",),
    "retry": ("result", "items"),
    "fail-branch": ("result", "error_message", "error_type"),
    "if": ("selected_case_id", "error_message"),
    "default-value": ("result", "items", "error_message"),
    "aggregator": ("output",),
    "template": ("output",),
    "iteration": ("output", "error_message"),
    "loop": ("count", "loop_round", "error_message"),
}
