"""The validity rule against any log: several owners, lost and repeated records, garbage, owners that wake."""

from hypothesis import given
from hypothesis import strategies as st

from libs.events.codec import Stamp
from libs.events.validity import Validity

STAMPS = st.none() | st.builds(Stamp, st.integers(-1, 5), st.integers(-1, 6), st.booleans())
NOISE = st.none() | st.builds(Stamp, st.integers(-1, 3), st.integers(-1, 6), st.booleans())


def admitted(stamps: list[Stamp | None]) -> list[Stamp]:
    validity = Validity()
    return [stamp for stamp in stamps if validity.admit(stamp) and stamp is not None]


@given(st.lists(STAMPS, max_size=60))
def test_what_counts_is_a_gapless_count_within_gapless_epochs(stamps: list[Stamp | None]) -> None:
    epoch, n = 0, 0
    for stamp in admitted(stamps):
        assert (stamp.epoch, stamp.n, stamp.claim) in ((epoch + 1, 0, True), (epoch, n + 1, False))
        assert stamp.epoch > 0
        epoch, n = stamp.epoch, stamp.n


@given(st.lists(STAMPS, max_size=60))
def test_everything_is_either_counted_as_ignored_or_counts(stamps: list[Stamp | None]) -> None:
    validity = Validity()
    assert sum(validity.admit(stamp) for stamp in stamps) + validity.ignored == len(stamps)


@given(st.lists(STAMPS, max_size=60), st.integers(0, 60))
def test_a_reader_that_resumes_sees_what_a_reader_from_the_start_sees(stamps: list[Stamp | None], cut: int) -> None:
    first = Validity()
    head = [first.admit(stamp) for stamp in stamps[:cut]]
    resumed = Validity(first.epoch, first.n)
    tail = [resumed.admit(stamp) for stamp in stamps[cut:]]
    whole = Validity()
    assert head + tail == [whole.admit(stamp) for stamp in stamps]
    assert (resumed.epoch, resumed.n) == (whole.epoch, whole.n)


@given(st.lists(STAMPS, max_size=60))
def test_every_stamp_counts_at_most_once(stamps: list[Stamp | None]) -> None:
    counted = admitted(stamps)
    assert len({(stamp.epoch, stamp.n) for stamp in counted}) == len(counted)
    assert admitted(list(counted)) == counted


@given(st.lists(st.tuples(st.integers(0, 8), NOISE), max_size=20))
def test_what_an_ended_owner_writes_later_changes_nothing(noise: list[tuple[int, Stamp | None]]) -> None:
    """The owner of epoch 4 writes 1..8; anything of epochs 0..3 may land between its records."""
    log: list[Stamp | None] = [Stamp(epoch, 0, claim=True) for epoch in range(1, 5)]
    for n in range(1, 9):
        log += [stamp for after, stamp in noise if after == n - 1]
        log.append(Stamp(4, n, claim=False))
    assert [(stamp.epoch, stamp.n) for stamp in admitted(log)[4:]] == [(4, n) for n in range(1, 9)]


@given(st.integers(1, 10), st.sets(st.integers(1, 10)), st.lists(st.integers(1, 10), max_size=5))
def test_lost_and_repeated_records_leave_a_prefix(count: int, lost: set[int], repeated: list[int]) -> None:
    log = [Stamp(1, 0, claim=True)]
    for n in range(1, count + 1):
        if n not in lost:
            log.append(Stamp(1, n, claim=False))
            log += [Stamp(1, again, claim=False) for again in repeated if again <= n and again not in lost]
    first_lost = min((n for n in lost if n <= count), default=count + 1)
    assert [stamp.n for stamp in admitted(list(log))] == list(range(first_lost))
