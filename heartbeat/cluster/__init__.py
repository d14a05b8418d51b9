"""Sessions in Redis: a store that is on another machine than the server."""
