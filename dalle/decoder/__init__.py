"""The decoder and its engine: text ids to codes. Nothing here knows text, pixels, threads or clocks."""

__all__: list[str] = []
