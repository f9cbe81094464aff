"""JavaScript code nodes, on QuickJS: the language without a browser's or Node's library, but with `console`."""

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
      __answer.state = kind === "object" ? "done" : "wrong";
      __answer.text = kind === "object" ? JSON.stringify(value) : `main() must return an object, got ${kind}`;
    },
    error => {
      __answer.state = "wrong";
      __answer.text = error instanceof Error ? `${error.name}: ${error.message}\\n${error.stack}` : String(error);
    });
})()
"""


class JavaScriptError(Exception):
    """What the author of the code should read."""


def run(quickjs: ModuleType, code: str, inputs: str) -> str:
    """The JSON text of what `main(inputs)` returned, or of what its promise became. Raises JavaScriptError."""
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
        raise JavaScriptError(str(error).replace("<input>", "<code>").rstrip()) from None
    if state == "waiting":
        raise JavaScriptError("main() returned a promise that nothing settles")
    if state != "done":
        raise JavaScriptError(str(text).replace("<input>", "<code>").rstrip())
    return str(text)
