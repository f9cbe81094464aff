from libs.events.codec import Stamp, encode_event, stamp_of
from libs.events.log import Entry, Record, Topic
from libs.events.model import Event, OwnerConfirmed, PartitionClaimed
from libs.events.validity import Validity


def claim(epoch: int, n: int = 0) -> Stamp:
    return Stamp(epoch, n, claim=True)


def plain(epoch: int, n: int) -> Stamp:
    return Stamp(epoch, n, claim=False)


def admitted(*stamps: Stamp | None) -> list[bool]:
    validity = Validity()
    return [validity.admit(stamp) for stamp in stamps]


def test_a_first_claim_and_what_follows_it_count() -> None:
    assert admitted(claim(1), plain(1, 1), plain(1, 2), plain(1, 3)) == [True] * 4


def test_nothing_counts_before_the_first_claim() -> None:
    assert admitted(plain(0, 1), plain(1, 1), claim(1)) == [False, False, True]


def test_a_claim_that_leaves_out_an_epoch_is_ignored() -> None:
    assert admitted(claim(2), claim(1), claim(3), claim(2)) == [False, True, False, True]


def test_a_claim_with_a_number_is_ignored() -> None:
    assert admitted(claim(1, n=1), claim(1)) == [False, True]


def test_a_frozen_owner_that_wakes_writes_nothing_that_counts() -> None:
    assert admitted(claim(1), plain(1, 1), claim(2), plain(1, 2), plain(2, 1), claim(1)) == [
        True,
        True,
        True,
        False,
        True,
        False,
    ]


def test_behind_a_hole_nothing_counts_until_the_next_claim() -> None:
    assert admitted(claim(1), plain(1, 1), plain(1, 3), plain(1, 4), claim(2), plain(2, 1)) == [
        True,
        True,
        False,
        False,
        True,
        True,
    ]


def test_a_record_that_landed_twice_counts_once() -> None:
    assert admitted(claim(1), plain(1, 1), plain(1, 1), plain(1, 2)) == [True, True, False, True]


def test_two_claims_of_one_epoch_the_first_in_the_log_wins() -> None:
    assert admitted(claim(1), claim(2), claim(2), plain(2, 1)) == [True, True, False, True]


def test_what_is_ignored_is_counted_and_changes_nothing() -> None:
    validity = Validity()
    for stamp in (claim(1), plain(1, 1)):
        validity.admit(stamp)
    for other in (None, plain(7, 1), plain(1, 9), claim(9)):
        assert not validity.admit(other)
    assert (validity.epoch, validity.n, validity.ignored) == (1, 1, 4)


def record(entry: Entry) -> Record:
    return Record(Topic.EVENTS, 0, 0, 0, entry.key, entry.value, dict(entry.headers))


def encoded(event: Event, epoch: int, n: int) -> Record:
    return record(encode_event(event, partition=0, run_id="", seq=0, epoch=epoch, n=n, at_us=1_000_000, cause="owner"))


def test_a_stamp_is_read_from_the_headers_alone() -> None:
    confirmed = encoded(OwnerConfirmed(), 3, 14)
    assert stamp_of(confirmed) == plain(3, 14)
    assert stamp_of(encoded(PartitionClaimed(owner="a", commands_topic_id="t"), 4, 0)) == claim(4)
    garbage = Record(Topic.EVENTS, 0, 0, 0, None, b"\xff", confirmed.headers)
    assert stamp_of(garbage) == plain(3, 14)


def test_a_record_without_a_readable_stamp_has_none() -> None:
    good = encoded(OwnerConfirmed(), 1, 1).headers
    for name in ("ce_epoch", "ce_n", "ce_type"):
        without = {key: value for key, value in good.items() if key != name}
        assert stamp_of(Record(Topic.EVENTS, 0, 0, 0, None, b"{}", without)) is None
    for broken in ({"ce_epoch": b"x"}, {"ce_n": b""}, {"ce_n": b"\xff"}):
        assert stamp_of(Record(Topic.EVENTS, 0, 0, 0, None, b"{}", good | broken)) is None
