"""Ray: replicas of a model, the backend that reaches them, and autoscaling."""

__all__: list[str] = []
