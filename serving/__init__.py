"""The service: prompt to picture over HTTP, on Ray Serve. `python -m serving` starts it."""
