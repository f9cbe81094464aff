"""`end`: names values."""

from libs.workflow.pool import Pool
from services.executor.nodes.end import EndHandler
from tests.unit.nodes.compiled import compiled, succeeded
from tests.unit.test_segments import IMAGE


def test_outputs_are_raw_values_and_missing_ones_are_null() -> None:
    pool = Pool()
    pool.set("start", "q", {"a": [1]})
    pool.set("llm", "files", [], "array[file]")
    pool.set("llm", "file", IMAGE)
    outputs = [
        {"variable": "deep", "value_selector": ["start", "q", "a"], "value_type": "Array[Number]"},
        {"variable": "files", "value_selector": ["llm", "files"]},
        {"variable": "file", "value_selector": ["llm", "file"], "value_type": "file"},
        {"variable": "gone", "value_selector": ["llm", "gone"], "value_type": "string"},
        {"variable": "unset", "value_selector": []},
    ]
    outcome = succeeded(EndHandler().evaluate(compiled("end", outputs=outputs), pool))
    assert outcome.outputs == {"deep": [1], "files": [], "file": IMAGE, "gone": None, "unset": None}
    assert outcome.inputs == outcome.outputs
    assert outcome.output_types == {"files": "array[file]"}
