"""What all tests share: properties are searched the same way every time."""

from hypothesis import settings

settings.register_profile("heartbeat", deadline=None, derandomize=True, database=None, max_examples=200)
settings.load_profile("heartbeat")
