"""Configuration as data: the round trip through JSON, and the error for each wrong value."""

import dataclasses
import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle.config import Config, require
from dalle.errors import ConfigError, DalleError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wheel(Config):
    spokes: int
    rim: Literal["steel", "wood"] = "steel"

    def __post_init__(self) -> None:
        require(self.spokes >= 3, f"spokes is {self.spokes}; it must be at least 3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cart(Config):
    name: str
    front: Wheel
    load: float = 1.5
    covered: bool = False
    horses: int | None = None
    stops: tuple[str, ...] = ()
    spare: tuple[Wheel, ...] = dataclasses.field(default_factory=lambda: (Wheel(spokes=4),))
    back: Wheel | None = None


CART = {"name": "hay", "front": {"spokes": 8}}

wheels = st.builds(Wheel, spokes=st.integers(3, 10**30), rim=st.sampled_from(["steel", "wood"]))
carts = st.builds(
    Cart,
    name=st.text(),
    front=wheels,
    load=st.floats(allow_nan=False, allow_infinity=False),
    covered=st.booleans(),
    horses=st.none() | st.integers(),
    stops=st.lists(st.text()).map(tuple),
    spare=st.lists(wheels).map(tuple),
    back=st.none() | wheels,
)


@given(carts)
def test_through_json_and_back(cart: Cart) -> None:
    values = json.loads(json.dumps(cart.to_dict()))
    assert values == cart.to_dict(), "plain JSON values only"
    back = Cart.from_dict(values)
    assert back == cart
    assert hash(back) == hash(cart)


def test_what_is_left_out_has_its_default() -> None:
    cart = Cart.from_dict(CART)
    assert cart == Cart(name="hay", front=Wheel(spokes=8))
    assert (cart.front.rim, cart.load, cart.horses, cart.spare) == ("steel", 1.5, None, (Wheel(spokes=4),))
    assert Cart.from_dict({**CART, "front": Wheel(spokes=8)}) == cart, "a configuration may be one already"


def test_a_whole_number_will_do_for_a_float() -> None:
    load = Cart.from_dict({**CART, "load": 3}).load
    assert (load, type(load)) == (3.0, float)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nmae": 1}, "Cart has no key 'nmae'; its keys are name, front, load, covered, horses, stops, spare, back"),
        ({"front": {}}, "Wheel needs the key 'spokes'"),
        ({"front": {"spokes": 8, "hub": 1}}, "Wheel has no key 'hub'; its keys are spokes, rim"),
        ({"front": 8}, "Wheel must be an object, not int"),
        ({"front": None}, "Wheel must be an object, not NoneType"),
        ({"front": {"spokes": 2}}, "spokes is 2; it must be at least 3"),
        ({"front": {"spokes": 8, "rim": "gold"}}, "Wheel.rim is 'gold'; it must be one of 'steel', 'wood'"),
        ({"front": {"spokes": 8, "rim": []}}, "Wheel.rim is []; it must be one of 'steel', 'wood'"),
        ({"front": {"spokes": 8.0}}, "Wheel.spokes must be int, not 8.0"),
        ({"front": {"spokes": True}}, "Wheel.spokes must be int, not True"),
        ({"name": None}, "Cart.name must be str, not None"),
        ({"load": "heavy"}, "Cart.load must be float, not 'heavy'"),
        ({"load": True}, "Cart.load must be float, not True"),
        ({"covered": 1}, "Cart.covered must be bool, not 1"),
        ({"horses": "two"}, "Cart.horses must be int, not 'two'"),
        ({"stops": "town"}, "Cart.stops must be a list, not 'town'"),
        ({"stops": ["town", 3]}, "Cart.stops[1] must be str, not 3"),
        ({"spare": [{"spokes": 3}, {"spokes": 1}]}, "spokes is 1; it must be at least 3"),
        ({"spare": {"spokes": 3}}, "Cart.spare must be a list, not {'spokes': 3}"),
    ],
)
def test_a_wrong_value_is_rejected_with_a_message(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Cart.from_dict(CART | changes)
    assert str(caught.value) == message


def test_missing_keys_and_other_types() -> None:
    with pytest.raises(ConfigError, match="Cart needs the key 'name'"):
        Cart.from_dict({"front": {"spokes": 8}})
    others: list[Any] = [[], "cart", None]
    for value in others:
        with pytest.raises(ConfigError, match=f"Cart must be an object, not {type(value).__name__}"):
            Cart.from_dict(value)


def test_a_configuration_cannot_be_changed_only_replaced() -> None:
    wheel = Wheel(spokes=8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        wheel.spokes = 2  # type: ignore[misc]
    with pytest.raises(ConfigError, match="spokes is 2"):
        dataclasses.replace(wheel, spokes=2)
    with pytest.raises(TypeError):
        Wheel(8)  # type: ignore[call-arg]


def test_require_raises_a_caller_s_mistake() -> None:
    require(True, "never said")
    with pytest.raises(DalleError, match=r"^said$"):
        require(False, "said")
