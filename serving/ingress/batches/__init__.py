"""OpenAI's batches over HTTP: files of requests that are drawn in the slots that nobody else wants."""

__all__: list[str] = []
