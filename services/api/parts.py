"""What the routes work with, built once by `create_app`."""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request

from libs.events.blobs import Blobs
from libs.events.log import Log
from libs.events.registry import RegistryTail
from libs.net import GuardedHttp
from libs.workflow.catalog import Catalog
from services.api.access import Access
from services.api.annotating import Annotating
from services.api.drafting import Drafting
from services.api.end_users import EndUsers
from services.api.folds import Folds
from services.api.fresh import FreshTables
from services.api.publishing import Publisher
from services.api.reads import Reads
from services.api.sse import Pinger
from services.api.starting import RunStarter
from services.api.streams import RunStreams
from services.api.submit import Submitter
from services.api.tables import Tables
from services.api.tail import EventTail
from services.api.talks import Talks
from services.api.threads import Threads
from services.api.uploads import Signer, Uploads


@dataclass(slots=True, frozen=True)
class Limits:
    """Bounds and waits. The defaults are what a service runs with; tests shorten them."""

    max_body_bytes: int = 4 * 1024 * 1024
    max_document_bytes: int = 10 * 1024 * 1024
    stream_buffer_bytes: int = 1024 * 1024
    """What a slow client may have waiting before its stream falls back to the log."""
    ping_s: float = 10.0
    stuck_s: float = 60.0
    """A client that takes nothing for so long is dropped."""
    send_s: float = 4.0
    """How long the log may take to confirm a command."""
    start_lifetime_s: float = 30.0
    """A start that is decided later than this is refused."""
    fresh_s: float = 1.0
    """How long a read waits until it is not older than its request."""
    tables_s: float = 3.0
    """How long the database may take to answer; what the log can tell is then told from the log."""
    max_lag_records: int = 10_000
    """Further behind than this the replica is not ready."""
    keys_per_app: int = 10
    schedules_s: float = 1.0
    """How often schedules are compared with the clock, which may be set."""
    key_requests_per_minute: int = 0
    max_app_runs: int = 0
    max_runs: int = 0
    """Runs of an app, and of all apps together, that may be under way at once. 0, here and above: any number."""
    blocked_extensions: frozenset[str] = frozenset()
    """Files with these extensions are not taken."""


@dataclass(slots=True, frozen=True)
class Parts:
    log: Log
    blobs: Blobs
    registry: RegistryTail
    catalog: Catalog
    tables: Tables | None
    fresh: FreshTables
    talks: Talks
    limits: Limits
    threads: Threads
    access: Access
    tail: EventTail
    reads: Reads
    streams: RunStreams
    submitter: Submitter
    starter: RunStarter
    folds: Folds
    uploads: Uploads
    end_users: EndUsers
    signer: Signer
    publisher: Publisher
    drafting: Drafting
    annotating: Annotating
    pinger: Pinger
    http: GuardedHttp
    instance_id: str
    models: str
    version: str
    now_us: Callable[[], int]
    new_uuid: Callable[[], str]


def parts_of(request: Request) -> Parts:
    """Those of the application that a request came to: what its routes' parameters are made with."""
    parts: Parts = request.app.state.parts
    return parts
