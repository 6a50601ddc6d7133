"""The first stop string ends a text, however the text is cut into pieces."""

import numpy as np
import pytest

from jaxspec.text.stop_strings import StopStrings


def first(text, stops):
    """The text before the stop that is complete first, and that stop."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


def read(text, stops, cuts):
    made = StopStrings(stops)
    pieces = np.split(np.array(list(text), dtype="U1"), cuts)
    shown = "".join(made.extend("".join(piece)) for piece in pieces)
    return shown + made.finish(), made.found


def test_it_is_found_in_any_pieces():
    rng = np.random.default_rng(0)
    endings = 0
    for _ in range(2000):
        stops = ["".join(rng.choice(list("ab"), rng.integers(1, 5))) for _ in range(3)]
        stops = stops[: rng.integers(0, 4)]
        text = "".join(rng.choice(list("abc"), rng.integers(0, 12), p=[0.3, 0.3, 0.4]))
        cuts = np.sort(rng.integers(0, len(text) + 1, 4))
        assert read(text, stops, cuts) == first(text, stops), (text, stops, cuts)
        endings += first(text, stops)[1] is not None
    assert 500 < endings < 1500


def test_nothing_is_shown_that_may_belong_to_a_stop():
    made = StopStrings(["\n\n", "END"])
    assert made.extend("one\n") == "one"
    assert made.extend("E") == "\n"
    assert made.extend("N") == ""
    assert made.extend("D of it") == ""
    assert (made.found, made.finish(), made.extend("more")) == ("END", "", "")


def test_an_empty_one_is_refused():
    with pytest.raises(ValueError, match="empty"):
        StopStrings(["a", ""])
