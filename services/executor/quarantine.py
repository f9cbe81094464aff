"""Which unfinished runs are set aside, and which would be: those whose history this program cannot fold.

Looks at the log as a new owner does, and owns nothing: no claim, no record. Blocking.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from libs.events.blobs import BlobLost, Blobs
from libs.events.log import Log, LogError, LogTruncated
from libs.events.sealing import Vault
from libs.workflow.catalog import DefinitionMissing
from libs.workflow.definition import Definition, DefinitionInvalid
from services.executor.live import LiveRun, load_run, why_unfoldable
from services.executor.recovery import recover


class SetAside(NamedTuple):
    run_id: str
    app_id: str
    seq: int
    """Of its last event that counts."""
    reason: str
    recorded: bool
    """An owner has set it aside. Otherwise the next owner that folds it will."""
    foldable: bool
    """This program can fold its history: released, it would go on."""


def set_aside(log: Log, blobs: Blobs, vault: Vault, definition: Callable[[str], Definition]) -> Iterator[SetAside]:
    """Raises LogError, when the log itself cannot be read."""
    for partition in range(log.partitions):
        reader = recover(log, partition)
        for run_id, entry in reader.fold.runs.items():
            run = LiveRun.found(run_id, entry, reader)
            problem = reader.unreadable.get(run_id) or _problem(run, log, blobs, vault, partition, definition)
            reason = entry.set_aside or problem
            if reason is not None:
                recorded = entry.set_aside is not None
                yield SetAside(run_id, entry.app_id, entry.seq, reason, recorded, foldable=problem is None)


def _problem(
    run: LiveRun, log: Log, blobs: Blobs, vault: Vault, partition: int, definition: Callable[[str], Definition]
) -> str | None:
    try:
        load_run(run, [], log, blobs, vault, partition, definition)
    except (DefinitionMissing, DefinitionInvalid):
        return None  # such a run is ended as failed, with the reason
    except (BlobLost, LogTruncated) as error:
        return why_unfoldable(error)
    except LogError:
        raise  # cannot be asked at the moment, which says nothing about the run
    except Exception as error:  # a broken history may do anything to the fold
        return why_unfoldable(error)
    return None
