"""Confirmation: an acknowledgement counts only at the offset where the record must stand."""

from libs.events.log import Ack
from services.executor.confirm import Confirmer, Next


def _ack(n: int, offset: int, error: str | None = None, epoch: int = 3) -> Ack:
    return Ack(partition=0, epoch=epoch, n=n, offset=offset, error=error)


def test_records_at_their_expected_offsets_are_confirmed() -> None:
    confirmer = Confirmer(epoch=3, base=100)
    assert confirmer.on_acks([_ack(1, 101), _ack(2, 102)]) is Next.GO_ON
    assert (confirmer.confirmed, confirmer.offset) == (2, 102)


def test_acknowledgements_of_an_earlier_epoch_are_ignored() -> None:
    confirmer = Confirmer(epoch=3, base=100)
    assert confirmer.on_acks([_ack(9, 99, epoch=2), _ack(1, 101)]) is Next.GO_ON
    assert confirmer.confirmed == 1


def test_foreign_records_between_are_to_be_read_and_then_shift_the_base() -> None:
    confirmer = Confirmer(epoch=3, base=100)
    assert confirmer.on_acks([_ack(1, 101), _ack(2, 105), _ack(3, 106)]) is Next.READ_FOREIGN
    assert (confirmer.gap_start, confirmer.gap_stop, confirmer.confirmed) == (102, 105, 1)
    assert confirmer.found_foreign() is Next.GO_ON
    assert (confirmer.confirmed, confirmer.offset) == (3, 106)


def test_acknowledgements_that_arrive_while_foreign_records_are_read_wait() -> None:
    confirmer = Confirmer(epoch=3, base=100)
    confirmer.on_acks([_ack(1, 103)])
    assert confirmer.on_acks([_ack(2, 104)]) is Next.READ_FOREIGN
    assert confirmer.found_foreign() is Next.GO_ON
    assert confirmer.confirmed == 2


def test_a_record_below_its_expected_offset_means_the_log_was_truncated() -> None:
    confirmer = Confirmer(epoch=3, base=100)
    assert confirmer.on_acks([_ack(1, 101), _ack(2, 101)]) is Next.TRUNCATED
    assert "offset 101" in confirmer.reason


def test_a_delivery_error_ends_the_epoch_whatever_is_acknowledged_behind_it() -> None:
    confirmer = Confirmer(epoch=3, base=100)
    assert confirmer.on_acks([_ack(1, -1, "timed out"), _ack(2, 102)]) is Next.LOST
    assert confirmer.confirmed == 0


def test_a_missing_acknowledgement_ends_the_epoch() -> None:
    confirmer = Confirmer(epoch=3, base=100)
    assert confirmer.on_acks([_ack(2, 102)]) is Next.LOST


def test_a_record_acknowledged_without_offset_is_read_back() -> None:
    confirmer = Confirmer(epoch=3, base=100)
    assert confirmer.on_acks([_ack(1, -1), _ack(2, 102)]) is Next.READ_BACK
    assert confirmer.found_at(101) is Next.GO_ON
    assert confirmer.confirmed == 2


def test_a_record_read_back_behind_foreign_ones_shifts_the_base() -> None:
    confirmer = Confirmer(epoch=3, base=100)
    confirmer.on_acks([_ack(1, -1)])
    assert confirmer.found_at(104) is Next.READ_FOREIGN
    assert confirmer.found_foreign() is Next.GO_ON
    assert confirmer.offset == 104
