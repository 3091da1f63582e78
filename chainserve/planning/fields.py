"""Values that came from elsewhere, through JSON or msgpack, and have to be of one type: TypeError if they are not."""


def whole(value: object) -> int:
    """A whole number; True is none."""
    if type(value) is not int:
        raise TypeError(f"{type(value).__name__} where a whole number belongs")
    return value


def number(value: object) -> float:
    """A number, be it written as a whole one; True is none, and no text is."""
    if type(value) is not float and type(value) is not int:
        raise TypeError(f"{type(value).__name__} where a number belongs")
    return float(value)


def flag(value: object) -> bool:
    """True or False, and nothing that is merely like them."""
    if type(value) is not bool:
        raise TypeError(f"{type(value).__name__} where true or false belongs")
    return value


def text(value: object) -> str:
    """Text, and nothing that could be written as text."""
    if type(value) is not str:
        raise TypeError(f"{type(value).__name__} where text belongs")
    return value
