"""The parts of every Transformer here: attention, masks, positions, and the block made of them.

They know tensors and sizes alone: nothing of text, pictures, codes or requests.
"""

__all__: list[str] = []
