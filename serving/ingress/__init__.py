"""The HTTP side of the service. It knows jobs and events, and neither engines nor Ray."""

__all__: list[str] = []
