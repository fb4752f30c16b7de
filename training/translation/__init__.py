"""The data of the translator: names in several languages, and the phrases that people put them into."""

__all__: list[str] = []
