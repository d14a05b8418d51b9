"""The fuzzers: whatever a stranger may send, sought by what it reaches in the code. `python -m fuzz` tells how."""
