"""The drawing side of the service: one thread that owns the tensors. It knows neither HTTP nor Ray."""

__all__: list[str] = []
