"""A wrong setting fails at once, by its name, its value and its bound; the right ones give the timing."""

from dataclasses import FrozenInstanceError, replace
from math import inf, nan

import pytest

from heartbeat.core.errors import PeerError, SettingError
from heartbeat.core.settings import BEATS, LEVEL0, Settings, Timing, is_client_id, watch_after

DEFAULT = Timing(interval=6.0, timeout_min=3.0, timeout_max=6.0, probe=3.0, watch=12.0, tick=0.2, patience=60.0)


def refusal_of(**settings):
    """The sentence with which these settings are refused."""
    with pytest.raises(SettingError) as caught:
        Settings(**settings)
    return str(caught.value)


# Defaults


def test_the_defaults_are_those_of_the_documentation():
    settings = Settings()

    assert (settings.interval, settings.schedule, settings.beats) == (None, "answer", None)
    assert (settings.interval_min, settings.interval_max) == (0.1, 60.0)
    assert (settings.timeout_min, settings.timeout_max, settings.probe, settings.tick) == (3.0, 6.0, 3.0, 0.2)
    assert (settings.patience, settings.attempts, settings.delays) == (60.0, 3, (1.0, 4.0, 16.0))
    assert (settings.open_timeout, settings.stable, settings.frames) == (10.0, 5.0, False)
    assert (settings.client_id, settings.token) == (None, None)
    assert (settings.grace, settings.grace_away, settings.window) == (40.0, 75.0, 120.0)
    assert (settings.handshake_timeout, settings.close_timeout) == (5.0, 1.0)
    assert (settings.message_limit, settings.ping_limit) == (65_536, 1024)
    assert (settings.kept_limit, settings.kept_bytes, settings.sessions_bytes) == (1000, 2**20, 256 * 2**20)
    assert (settings.full_patience, settings.judge_timeout, settings.level0) == (30.0, 5.0, None)
    assert (settings.outgoing_limit, settings.max_connections, settings.backlog) == (2**20, None, 4096)
    assert (settings.origins, settings.trust_client_ids, settings.trust_forwarded) == ((), False, 0)


def test_settings_never_change():
    settings = Settings()

    with pytest.raises(FrozenInstanceError):
        settings.interval = 1.0


# Bounds

NUMBERS = [
    ("interval", 0.1, 3600.0, "s"),
    ("interval_max", 0.1, 3600.0, "s"),
    ("timeout_max", 3.0, 600.0, "s"),
    ("probe", 0.05, 600.0, "s"),
    ("tick", 0.01, 1.0, "s"),
    ("patience", 0.0, 3600.0, "s"),
    ("open_timeout", 0.1, 600.0, "s"),
    ("stable", 0.0, 3600.0, "s"),
    ("window", 1.0, 86_400.0, "s"),
    ("handshake_timeout", 0.1, 600.0, "s"),
    ("close_timeout", 0.05, 60.0, "s"),
    ("message_limit", 1024, 2**40, "bytes"),
    ("outgoing_limit", 65_536, 2**40, "bytes"),
    ("ping_limit", 64, 4096, "bytes"),
    ("kept_limit", 4, 1_000_000, "messages"),
    ("kept_bytes", 4096, 2**40, "bytes"),
    ("sessions_bytes", 1_048_576, 2**50, "bytes"),
    ("full_patience", 0.1, 3600.0, "s"),
    ("judge_timeout", 0.1, 600.0, "s"),
    ("max_connections", 1, 10_000_000, ""),
    ("backlog", 1, 65_535, ""),
    ("trust_forwarded", 0, 16, ""),
]


@pytest.mark.parametrize(("name", "least", "most", "unit"), NUMBERS)
def test_a_number_may_be_anything_from_its_least_to_its_most(name, least, most, unit):
    assert getattr(Settings(**{name: least}), name) == least
    assert getattr(Settings(**{name: most}), name) == most


@pytest.mark.parametrize(("name", "least", "most", "unit"), NUMBERS)
def test_a_number_beyond_its_bounds_is_refused(name, least, most, unit):
    assert refusal_of(**{name: type(most)(most * 2 + 1)}).startswith(f"{name} must be a")
    assert refusal_of(**{name: -1}).endswith("not -1")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"interval": 0.05}, "interval must be a number from 0.1 to 3600 s, not 0.05"),
        ({"interval": nan}, "interval must be a number from 0.1 to 3600 s, not nan"),
        ({"interval": inf}, "interval must be a number from 0.1 to 3600 s, not inf"),
        ({"interval": "6"}, "interval must be a number from 0.1 to 3600 s, not '6'"),
        ({"interval": True}, "interval must be a number from 0.1 to 3600 s, not True"),
        ({"attempts": -1}, "attempts must be a whole number from 0 to 1000000, not -1"),
        ({"attempts": 3.0}, "attempts must be a whole number from 0 to 1000000, not 3.0"),
        ({"backlog": False}, "backlog must be a whole number from 1 to 65535, not False"),
        ({"ping_limit": 63}, "ping_limit must be a whole number from 64 to 4096 bytes, not 63"),
        ({"kept_limit": 3}, "kept_limit must be a whole number from 4 to 1000000 messages, not 3"),
        ({"kept_limit": 10.0}, "kept_limit must be a whole number from 4 to 1000000 messages, not 10.0"),
        ({"kept_bytes": 4095}, "kept_bytes must be a whole number from 4096 to 1099511627776 bytes, not 4095"),
        ({"kept_bytes": 8192.0}, "kept_bytes must be a whole number from 4096 to 1099511627776 bytes, not 8192.0"),
        (
            {"sessions_bytes": 1.0},
            "sessions_bytes must be a whole number from 1048576 to 1125899906842624 bytes, not 1.0",
        ),
        ({"full_patience": 0.0}, "full_patience must be a number from 0.1 to 3600 s, not 0.0"),
        ({"full_patience": nan}, "full_patience must be a number from 0.1 to 3600 s, not nan"),
        ({"judge_timeout": "5"}, "judge_timeout must be a number from 0.1 to 600 s, not '5'"),
        ({"level0": "deny"}, "level0 must be one of allow, refuse, not 'deny'"),
        ({"level0": True}, "level0 must be one of allow, refuse, not True"),
        ({"fast_path": 1}, "fast_path must be True or False, not 1"),
        ({"fast_path": None}, "fast_path must be True or False, not None"),
        ({"max_connections": 0}, "max_connections must be a whole number from 1 to 10000000, not 0"),
        ({"max_connections": 10.0}, "max_connections must be a whole number from 1 to 10000000, not 10.0"),
        ({"schedule": "often"}, "schedule must be one of answer, fixed, not 'often'"),
        ({"beats": "all"}, "beats must be one of client, server, both, none, not 'all'"),
        ({"interval_min": 2.0, "interval_max": 1.0}, "interval_max must be at least interval_min (2 s), not 1.0"),
        ({"timeout_min": 4.0, "timeout_max": 3.5}, "timeout_max must be at least timeout_min (4 s), not 3.5"),
        ({"client_id": ""}, "client_id must be 1 to 64 visible ASCII characters, not ''"),
        ({"delays": ()}, "delays must be a tuple of at least one number of seconds, not ()"),
        ({"delays": 5}, "delays must be a tuple of at least one number of seconds, not 5"),
        ({"delays": (1.0, -4.0)}, "delays must be a number from 0 to 3600 s, not -4.0"),
        ({"delays": "14"}, "delays must be a tuple of at least one number of seconds, not '14'"),
        ({"origins": "https://*.test"}, "origins must be a tuple of origins, not 'https://*.test'"),
        (
            {"origins": ("https://*.test",)},
            "origins must be scheme://host or scheme://host:port, null, or * for all, not 'https://*.test'",
        ),
        ({"origins": (7,)}, "origins must be scheme://host or scheme://host:port, null, or * for all, not 7"),
        (
            {"frames": True, "beats": "server"},
            "beats must be client where frames are used, which only a client sends, not 'server'",
        ),
        ({"trust_client_ids": "no"}, "trust_client_ids must be True or False, not 'no'"),
        ({"frames": 1}, "frames must be True or False, not 1"),
        ({"grace": 31.4}, "grace must be at least 31.5 s, 1.5 x the sum of delays over 3 attempts, not 31.4"),
        ({"grace": -1.0, "attempts": 0}, "grace must be a number from 0 to 31536000 s, not -1.0"),
        ({"grace_away": nan}, "grace_away must be a number from 0 to 31536000 s, not nan"),
        ({"grace_away": 39.0}, "grace_away must be at least grace (40 s), not 39.0"),
    ],
)
def test_a_refusal_is_one_sentence_with_the_name_the_bound_and_the_value(settings, sentence):
    assert refusal_of(**settings) == sentence


def test_origins_may_be_pages_of_a_host_of_none_and_of_all():
    origins = ["https://example.org", "http://localhost:8080", "capacitor://localhost", "null", "*"]
    assert Settings(origins=origins).origins == tuple(origins)


@pytest.mark.parametrize("word", BEATS)
def test_beats_may_be_each_of_its_words(word):
    assert Settings(beats=word).beats == word


@pytest.mark.parametrize("word", [None, *LEVEL0])
def test_pages_that_open_no_session_may_be_served_or_not_or_as_it_follows(word):
    assert LEVEL0 == ("allow", "refuse")
    assert Settings(level0=word).level0 == word


def test_a_whole_number_of_seconds_will_do():
    assert Settings(interval=6).interval == 6


def test_sequences_become_tuples_that_nobody_else_can_change():
    delays, origins = [1.0, 2.0], ["https://a.example"]

    settings = Settings(delays=delays, origins=origins)
    delays.append(3.0)
    origins.append("null")

    assert (settings.delays, settings.origins) == ((1.0, 2.0), ("https://a.example",))


# Grace


@pytest.mark.parametrize(
    ("settings", "grace", "grace_away"),
    [
        ({}, 40.0, 75.0),
        ({"attempts": 0}, 40.0, 75.0),
        ({"attempts": 4}, 55.5, 75.0),
        ({"delays": (10.0,), "attempts": 6}, 90.0, 90.0),
        ({"grace": 31.5}, 31.5, 75.0),
        ({"grace": 100.0}, 100.0, 100.0),
        ({"grace": 50, "grace_away": 50}, 50, 50),
    ],
)
def test_grace_is_what_was_chosen_or_long_enough_for_all_attempts_to_get_back(settings, grace, grace_away):
    chosen = Settings(**settings)

    assert (chosen.grace, chosen.grace_away) == (grace, grace_away)


def test_a_client_that_tries_for_ever_is_expected_for_its_first_hundred_attempts():
    assert Settings(delays=(1.0,), attempts=1_000_000).grace == 150.0


# Client ids


@pytest.mark.parametrize("text", ["a", "c-5f3a", "!", "~", "x" * 64])
def test_a_client_id_is_1_to_64_visible_ascii_characters(text):
    assert is_client_id(text)
    assert Settings(client_id=text).client_id == text


@pytest.mark.parametrize("text", ["", "x" * 65, "a b", "a\n", "\x7f", "é", "😀", None, 7, ["a"]])
def test_nothing_else_is_a_client_id(text):
    assert not is_client_id(text)


# Timing


def test_the_timing_of_the_defaults():
    assert Settings().timing() == DEFAULT


def test_the_bounds_of_the_defaults_are_15_4_seconds_for_either_role():
    assert DEFAULT.pinging_bound == pytest.approx(15.4)
    assert DEFAULT.watching_bound == pytest.approx(15.4)


def test_whoever_pings_finds_out_within_interval_timeout_probe_and_two_ticks():
    assert replace(DEFAULT, interval=25.0).pinging_bound == pytest.approx(25 + 6 + 3 + 0.4)


def test_with_a_short_interval_the_missing_answer_to_the_ping_before_counts_instead():
    assert replace(DEFAULT, interval=1.0).pinging_bound == pytest.approx(6 + 6 + 3 + 0.4)


def test_whoever_watches_finds_out_within_watch_probe_and_two_ticks():
    assert replace(DEFAULT, watch=22.5).watching_bound == pytest.approx(22.5 + 3 + 0.4)


@pytest.mark.parametrize(
    ("interval", "ceiling", "watch"),
    [(6.0, 6.0, 12.0), (1.0, 6.0, 7.0), (15.0, 6.0, 22.5), (25.0, 6.0, 35.0), (6.0, 30.0, 16.0)],
)
def test_a_watcher_waits_for_the_interval_and_half_of_it_or_the_ceiling_but_ten_seconds_at_most(
    interval, ceiling, watch
):
    assert watch_after(interval, ceiling) == watch


def test_the_timing_of_settings_follows_each_of_them():
    settings = Settings(
        interval=2.0, timeout_min=0.5, timeout_max=1.5, probe=1.0, tick=0.1, patience=30.0, schedule="fixed"
    )

    assert settings.timing() == Timing(2.0, 0.5, 1.5, 1.0, watch=3.5, tick=0.1, patience=30.0, fixed=True)


def test_the_timing_for_a_granted_interval_has_the_watch_that_belongs_to_it():
    assert Settings().timing() == DEFAULT
    assert Settings().timing(20.0) == replace(DEFAULT, interval=20.0, watch=30.0)


def test_all_connections_of_the_same_settings_have_the_same_timing():
    """There is one, not one each; and other settings have their own."""
    settings = Settings(interval=2.0)

    assert settings.timing() is settings.timing() is settings.timing(2.0)
    assert settings.timing(3.0) == replace(settings.timing(), interval=3.0, watch=9.0)
    assert replace(settings, interval=3.0).timing() == settings.timing(3.0)
    assert (settings, repr(settings)) == (Settings(interval=2.0), repr(Settings(interval=2.0)))


@pytest.mark.parametrize(("wish", "granted"), [(None, 6.0), (1.0, 2.0), (2.0, 2.0), (7.5, 7.5), (9.0, 9.0), (inf, 9.0)])
def test_a_wish_is_granted_within_the_servers_least_and_most(wish, granted):
    assert Settings(interval_min=2.0, interval_max=9.0).granted_interval(wish) == granted


# What a server declares


def test_a_client_that_is_told_nothing_keeps_its_own_timing():
    assert DEFAULT.declared_by({"type": "onopen"}) == DEFAULT


def test_a_client_takes_all_that_is_declared_and_keeps_what_is_its_own():
    declared = {"interval_ms": 2000, "timeout_ms": [500, 1500], "probe_ms": 750, "watch_ms": 9000.5}

    assert replace(DEFAULT, tick=0.1, patience=9.0, fixed=True).declared_by(declared) == Timing(
        2.0, 0.5, 1.5, 0.75, watch=9.0005, tick=0.1, patience=9.0, fixed=True
    )


def test_a_watch_that_is_not_declared_follows_from_what_is():
    assert DEFAULT.declared_by({"interval_ms": 20_000}).watch == 30.0
    assert DEFAULT.declared_by({"interval_ms": 1000, "timeout_ms": [1000, 2000]}).watch == 3.0


def test_a_declared_clamp_that_is_upside_down_is_its_ceiling():
    timing = DEFAULT.declared_by({"timeout_ms": [5000, 2000]})

    assert (timing.timeout_min, timing.timeout_max) == (2.0, 2.0)


@pytest.mark.parametrize("milliseconds", [1, 86_400_000])
def test_declared_numbers_may_be_anything_from_a_millisecond_to_a_day(milliseconds):
    assert DEFAULT.declared_by({"probe_ms": milliseconds}).probe == milliseconds / 1000


@pytest.mark.parametrize("name", ["interval_ms", "probe_ms", "watch_ms"])
@pytest.mark.parametrize("value", [0, 0.5, -1, 86_400_001, 10**400, inf, nan, "6000", True, [6000], {}])
def test_a_declared_number_out_of_all_reason_is_the_servers_fault(name, value):
    with pytest.raises(PeerError) as caught:
        DEFAULT.declared_by({name: value})

    error = caught.value
    assert (error.code, error.re) == ("bad-message", "onopen")
    assert error.detail == f"{name} must be milliseconds from 1 to 86400000"


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (6000, "timeout_ms must be a pair of milliseconds"),
        ([], "timeout_ms must be a pair of milliseconds"),
        ([1, 2, 3], "timeout_ms must be a pair of milliseconds"),
        ([0, 6000], "timeout_ms must be milliseconds from 1 to 86400000"),
        ([3000, None], "timeout_ms must be milliseconds from 1 to 86400000"),
    ],
)
def test_a_declared_clamp_that_is_no_pair_of_numbers_is_the_servers_fault(value, sentence):
    with pytest.raises(PeerError) as caught:
        DEFAULT.declared_by({"timeout_ms": value})

    assert (caught.value.code, caught.value.detail, caught.value.re) == ("bad-message", sentence, "onopen")
