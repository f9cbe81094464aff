"""Which values of a document are secrets of its runs."""

import pytest

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
