"""Speed and memory, always as a ratio to what the same machine can do in the same run. Not part of the tests."""
