"""The service: OpenAI's images API over engines on Ray Serve, a web page, and offline batches."""

__all__: list[str] = []
