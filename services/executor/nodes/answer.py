"""`answer`: renders its template as markdown and collects the files it refers to."""

from pydantic import JsonValue

from libs.workflow.definition import Node
from libs.workflow.outcome import Outcome, Succeeded
from libs.workflow.pool import Pool
from libs.workflow.segments import is_file
from libs.workflow.templates import placeholders, render_markdown
from services.executor.nodes.port import Handler


class AnswerHandler(Handler):
    effect = False

    def evaluate(self, node: Node, pool: Pool) -> Outcome:
        template = node.config.answer
        return Succeeded(
            outputs={"answer": render_markdown(template, pool), "files": _files(template, pool)},
            output_types={"files": "array[file]"},
        )


def _files(template: str, pool: Pool) -> list[JsonValue]:
    """Files and elements of file lists that placeholders name directly, in order."""
    files: list[JsonValue] = []
    for selector in placeholders(template):
        segment = pool.get(selector)
        if segment is not None:
            values = segment.value if isinstance(segment.value, list) else [segment.value]
            files.extend(value for value in values if is_file(value))
    return files
