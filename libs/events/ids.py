"""Run ids that carry their partition, and task ids that map to run ids without a look-up.

A run id is a valid UUIDv7 whose 12 `rand_a` bits hold the partition number, so every process finds a run's
partition without asking anybody. Nothing here reads a clock or a random source: both are arguments.
"""

import base64
import binascii
import hashlib
import uuid
from typing import NewType

RunId = NewType("RunId", str)
ConversationId = NewType("ConversationId", str)
TaskId = NewType("TaskId", str)

MAX_PARTITIONS = 1 << 12

# A task id is the run id under a fixed mask, so it needs no table. The mask's version nibble turns a
# version 7 into a version 4 (7 ^ 3 = 4), its variant bits are 0; it hides nothing and is not meant to.
_TASK_MASK = 0x9A3F_61C2_7D05_3B7E_2C94_E81B_56F0_A3D8
_MESSAGE_MASK = 0x51E8_B07D_92C6_3A41_1F6B_70D5_C92E_48B3


def new_run_id(partition: int, at_us: int, random_62: int) -> RunId:
    """A UUIDv7 for a run of `partition`, made at `at_us` (microseconds since the epoch).

    `random_62` is a random number of at least 62 bits; higher bits are ignored.
    Raises ValueError when `partition` is not in 0..4095.
    """
    if not 0 <= partition < MAX_PARTITIONS:
        raise ValueError(f"partition {partition} does not fit into a run id (0..{MAX_PARTITIONS - 1})")
    number = (at_us // 1000 & (1 << 48) - 1) << 80
    number |= 0x7 << 76 | partition << 64 | 0b10 << 62 | random_62 & (1 << 62) - 1
    return RunId(str(uuid.UUID(int=number)))


def partition_of(run_id: str) -> int:
    """The partition in which the run lives. Raises ValueError when `run_id` is not one of our run ids."""
    return _parse(run_id).int >> 64 & 0xFFF


def created_at_us(run_id: str) -> int:
    """When the run id was made, in microseconds since the epoch (millisecond precision)."""
    return (_parse(run_id).int >> 80) * 1000


def task_id_of(run_id: str) -> TaskId:
    """The task id of a run; `run_id_of_task` is its inverse."""
    return TaskId(str(uuid.UUID(int=_parse(run_id).int ^ _TASK_MASK)))


def run_id_of_task(task_id: str) -> RunId:
    """The run that a task id addresses. Raises ValueError when `task_id` cannot be one of ours."""
    run_id = str(uuid.UUID(int=uuid.UUID(task_id).int ^ _TASK_MASK))
    _parse(run_id)
    return RunId(run_id)


def message_id_of(run_id: str) -> str:
    """The id of the message that a chatflow's run answers; `run_id_of_message` is its inverse."""
    return str(uuid.UUID(int=_parse(run_id).int ^ _MESSAGE_MASK))


def run_id_of_message(message_id: str) -> RunId:
    """The run that answers a message. Raises ValueError when `message_id` cannot be one of ours."""
    run_id = str(uuid.UUID(int=uuid.UUID(message_id).int ^ _MESSAGE_MASK))
    _parse(run_id)
    return RunId(run_id)


def new_conversation_id(partition: int, at_us: int, random_62: int) -> ConversationId:
    """Made like a run id: a conversation's partition is in its id, and its runs live there."""
    return ConversationId(new_run_id(partition, at_us, random_62))


def execution_id(run_id: str, path: str, node_id: str) -> str:
    """The id of a node execution: one per (run, path, node), kept across retries and restarts.

    Derived, so it is the same wherever the log is read. Shape: a version 4 UUID.
    """
    digest = hashlib.blake2b(f"{run_id}\n{path}\n{node_id}".encode(), digest_size=16).digest()
    return str(uuid.UUID(bytes=digest, version=4))


def variable_id(name: str) -> str:
    """The id of a variable for which a document has none: it follows from the name, the same wherever it is read."""
    return str(uuid.uuid5(uuid.UUID(int=0), f"variable {name}"))


def form_token(run_id: str, random_128: int) -> str:
    """What opens one form of the run: it names the run, so nobody has to look it up, and cannot be guessed."""
    secret = (random_128 & (1 << 128) - 1).to_bytes(16, "big")
    return base64.urlsafe_b64encode(_parse(run_id).bytes + secret).decode().rstrip("=")


def run_id_of_form(token: str) -> RunId:
    """The run whose form the token opens. Raises ValueError when it cannot be one of our tokens."""
    try:
        data = base64.urlsafe_b64decode(token.encode("ascii") + b"=")
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("not a form token") from error
    if len(data) != 32:
        raise ValueError("not a form token")
    run_id = str(uuid.UUID(bytes=data[:16]))
    _parse(run_id)
    return RunId(run_id)


def partition_for_key(app_id: str, key: str, partitions: int) -> int:
    """The partition of a start that carries an idempotency key: equal keys of an app meet in one partition."""
    digest = hashlib.blake2b(f"{app_id}\n{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % partitions


def _parse(run_id: str) -> uuid.UUID:
    parsed = uuid.UUID(run_id)
    if parsed.version != 7 or str(parsed) != run_id:
        raise ValueError(f"{run_id!r} is not a run id (a lower-case UUID, version 7)")
    return parsed
