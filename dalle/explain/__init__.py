"""Why a picture looks as it does: which words and which earlier patches each patch was drawn from, and what else it
could have been. Found by a replay of the codes in its receipt, so drawing knows nothing of it."""

__all__: list[str] = []
