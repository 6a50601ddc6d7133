"""What is expected of a refusal."""


def one_line(error, kind, *words):
    """Not a word of JAX's, and no second line."""
    assert type(error.value) is kind
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message
