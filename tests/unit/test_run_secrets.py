"""Which values of a document are secrets of its runs."""

import pytest

from libs.events.model import RunPaused, StopRequested
from libs.events.sealed_values import read_sealed
from libs.events.sealing import Vault
from libs.workflow.definition import compile_document
from services.executor.secrets import Secrets
from tests.conversations import counting

VARIABLE = {"id": "1", "name": "key", "value_type": "secret", "value": "sk-planted-0123456789"}


@pytest.mark.parametrize("place", ["environment_variables", "conversation_variables"])
def test_a_declared_secret_is_one_wherever_it_is_declared(place: str) -> None:
    vault = Vault(lambda: "key")
    text = counting([VARIABLE]) if place == "conversation_variables" else counting(environment_variables=[VARIABLE])
    assert Secrets.of(compile_document(text), vault)
    assert not Secrets.of(compile_document(counting()), vault)


def test_what_a_message_has_said_so_far_is_sealed_where_it_holds_a_secret() -> None:
    vault = Vault(lambda: "key")
    secrets = Secrets.of(compile_document(counting([VARIABLE])), vault)
    said = f"It is {VARIABLE['value']}."
    for event in (RunPaused(answer=said), StopRequested(command_offset=1, reason="enough", said=said)):
        sealed = secrets.sealed(event)
        assert VARIABLE["value"] not in sealed.model_dump_json()
        assert read_sealed(sealed, vault) == event
