"""A Deferred whose failure may be ignored, and that is a Deferred in everything else."""

import gc

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from heartbeat.quiet import QuietDeferred


class Lost(Exception):
    """What it failed with."""


@pytest.mark.parametrize("error", [Lost(), Failure(Lost())], ids=["an exception", "a Failure"])
def test_an_ignored_failure_is_not_logged(failures, error):
    deferred = QuietDeferred()
    deferred.errback(error)
    del deferred
    gc.collect()

    assert failures == []


def test_an_ordinary_deferred_logs_it(failures):
    """The reason why this exists; when it ends, so may the class."""
    Deferred().errback(Lost())
    gc.collect()

    assert failures.flush(Lost)


def test_a_later_errback_still_gets_the_failure():
    caught = []
    deferred = QuietDeferred.failed(Lost())

    deferred.addErrback(caught.append)

    assert caught[0].check(Lost)


def test_an_errback_from_before_gets_it_too():
    caught = []
    deferred = QuietDeferred()
    deferred.addErrback(caught.append)

    deferred.errback(Lost())

    assert caught[0].check(Lost)


def test_a_failure_of_a_callback_is_the_callers_and_is_logged(failures):
    def fail(result):
        raise Lost

    QuietDeferred.fired().addCallback(fail)
    gc.collect()

    assert len(failures.flush(Lost)) == 1


def test_an_errback_inside_an_except_clause_takes_the_present_exception():
    deferred, caught = QuietDeferred(), []
    try:
        raise Lost
    except Lost:
        deferred.errback()

    deferred.addErrback(caught.append)
    assert caught[0].check(Lost)


def test_fired_has_fired_with_none():
    results = []

    QuietDeferred.fired().addCallback(results.append)

    assert results == [None]
