"""Which line of an error stands for it."""

import pytest

from libs.gist import gist

FRAMES = '  File "<code>", line 3, in main\n    return x["missing"]\n           ~^^^^^^^^^^^\n'
TRACEBACK = f"Traceback (most recent call last):\n{FRAMES}KeyError: 'missing'"
GROUP = """  + Exception Group Traceback (most recent call last):
  |   File "<code>", line 7, in main
  |     raise ExceptionGroup("two", [a, b])
  | ExceptionGroup: two (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "<code>", line 5, in main
    | ZeroDivisionError: division by zero
    +---------------- 2 ----------------
    | ValueError: b
    +------------------------------------
"""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("", ""),
        ("\n  \n", ""),
        ("HTTP 503\nbody", "HTTP 503"),
        ("\n  indented first\nsecond", "indented first"),
        (TRACEBACK, "KeyError: 'missing'"),
        (f"{TRACEBACK}\nand a second line of the message", "KeyError: 'missing'"),
        (
            f"{TRACEBACK}\n\nDuring handling of the above exception, another exception occurred:\n\n"
            f"Traceback (most recent call last):\n{FRAMES}ValueError: no",
            "ValueError: no",
        ),
        (GROUP, "ExceptionGroup: two (2 sub-exceptions)"),
        (
            f"{TRACEBACK}\n\nDuring handling of the above exception, another exception occurred:\n\n{GROUP}",
            "ExceptionGroup: two (2 sub-exceptions)",
        ),
        ('  File "<code>", line 3\n    x[}\n      ^\nSyntaxError: closing', "SyntaxError: closing"),
        ("Traceback (most recent call last):\n  cut off", "Traceback (most recent call last):"),
        ("TypeError: no property\n    at main (<code>)", "TypeError: no property"),
        (
            'it said: Traceback (most recent call last):\n  File "x"\nE: e',
            "it said: Traceback (most recent call last):",
        ),
    ],
)
def test_the_line_that_says_what_happened(error: str, said: str) -> None:
    assert gist(error, 100) == said


def test_it_is_cut_to_what_there_is_room_for() -> None:
    assert gist("é" * 80, 60) == "é" * 60
