"""`PlainBlock`: what a configuration's blocks are without the variants that only decoders of pictures have."""

__all__ = ["PlainBlock"]


class PlainBlock:
    """Properties of a `BlockShape` that follow from width and heads, or are off. A base class of configurations."""

    width: int
    num_heads: int

    @property
    def num_kv_heads(self) -> int:
        """Number of heads of keys and values: as many as of queries."""
        return self.num_heads

    @property
    def head_dim(self) -> int:
        """Channels of an attention head."""
        return self.width // self.num_heads

    @property
    def rotary_values(self) -> bool:
        """Whether values are rotated: they are not."""
        return False

    @property
    def sandwich_norm(self) -> bool:
        """Whether each branch has a norm behind it, inside the addition: it has none."""
        return False

    @property
    def layer_scale(self) -> float | None:
        """First value of a learned factor for each channel of each branch: there is none."""
        return None

    @property
    def shift_width(self) -> int:
        """Channels that token shift takes from other tokens: none."""
        return 0
