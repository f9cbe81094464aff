"""JavaScript code nodes, on QuickJS: the language without a browser's or Node's library, but with `console`."""

import re
from types import ModuleType

_STACK_BYTES = 1 << 20

_BEFORE = """
globalThis.console = {};
const __text = value => typeof value === "string" ? value : JSON.stringify(value) ?? String(value);
for (const name of ["log", "info", "warn", "error", "debug"])
  console[name] = (...all) => __print(all.map(__text).join(" "));
"""
_CALL = """
(() => {
  if (typeof main !== "function") throw new Error("The code must define a function main");
  globalThis.__answer = {state: "waiting"};
  Promise.resolve(main(JSON.parse(__inputs))).then(
    value => {
      const kind = value === null ? "null" : Array.isArray(value) ? "array" : typeof value;
      __answer.text = kind === "object" ? JSON.stringify(value) : `main() must return an object, got ${kind}`;
      __answer.state = kind === "object" ? "done" : "wrong";
    }).catch(
    error => {
      __answer.state = "wrong";
      __answer.text = error instanceof Error ? `${error.name}: ${error.message}\\n${error.stack}` : String(error);
    });
})()
"""

_OUR_LINES = re.compile(r"(\n    at <(anonymous|eval)> \(<input>:\d+\))+\Z")
"""The frames that called the author's code, at the end of every stack."""


class JavaScriptError(Exception):
    """What the author of the code should read."""


class OutOfMemory(Exception):
    """The engine got no more memory."""


def run(quickjs: ModuleType, code: str, inputs: str) -> str:
    """The JSON text of what `main(inputs)` returned, or its promise became. Raises JavaScriptError and OutOfMemory."""
    context = quickjs.Context()
    context.set_max_stack_size(_STACK_BYTES)
    context.add_callable("__print", print)
    context.set("__inputs", inputs)
    try:
        context.eval(_BEFORE)
        context.eval(code)
        context.eval(_CALL)
        while context.execute_pending_job():
            pass
        state, text = context.eval("__answer.state"), context.eval("__answer.text")
    except quickjs.JSException as error:
        raise _error(str(error)) from None
    if state == "waiting":
        raise JavaScriptError("main() returned a promise that nothing settles")
    if state != "done":
        raise _error(str(text))
    return str(text)


def _error(said: str) -> Exception:
    if said.startswith("InternalError: out of memory"):
        return OutOfMemory()
    return JavaScriptError(_OUR_LINES.sub("", said.rstrip()).replace("<input>", "<code>"))
