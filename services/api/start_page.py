"""`GET /`: where somebody is who opens the printed URL, and what to try next. Needs no key and no network."""

from html import escape

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from services.api.parts import Parts

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Flowledger</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem }}
pre {{ background: #8881; padding: .8rem; overflow-x: auto }}
</style>
<h1>Flowledger {version}</h1>
<p>Runs Dify workflow documents, behind Dify's HTTP API, from a log of events.</p>
<p><a href="docs">API reference</a> · <a href="openapi.json">OpenAPI document</a> · <a href="readyz">readiness</a> ·
<a href="metrics">metrics</a></p>
<p>Bring a document, which gives an app and its key, and run it:</p>
<pre>flowledger import FILE --url {url}
flowledger run APP --url {url}
flowledger runs --url {url}</pre>
<p>With the key of an app:</p>
<pre>curl -N {url}/v1/workflows/run -H 'Authorization: Bearer app-...' -H 'Content-Type: application/json' \\
  -d '{{"inputs": {{}}, "response_mode": "streaming", "user": "me"}}'</pre>
</html>
"""


def start_page_routes(parts: Parts) -> APIRouter:
    router = APIRouter(tags=["Operation"])

    @router.get("/", summary="A page for people", response_class=HTMLResponse)
    async def start_page(request: Request) -> HTMLResponse:
        url = escape(str(request.base_url).rstrip("/"))
        return HTMLResponse(_PAGE.format(version=escape(parts.version), url=url))

    return router
