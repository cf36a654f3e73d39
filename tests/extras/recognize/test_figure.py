"""The picture of recognized digits: labels of files, whatever their names."""

import os

import numpy as np
import pytest

from pipeline.extras.recognize import figure


def test_a_backslash_does_not_end_the_name():
    assert figure._label("a/b\\c.png", 1) == (r"b\c.png" if os.sep == "/" else "c.png")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("数字1.png", "row 3: ??1.png"),
        ("\N{PILE OF POO}.png", "row 3: ?.png"),
        ("a\nb.png", "row 3: a?b.png"),
        ("\udce9.png", "row 3: ?.png"),
        ("numéro Ω.png", "numéro Ω.png"),
        ("$\\alpha$.png", "$\\alpha$.png"),
        ("$x^$ $.png", "$x^$ $.png"),
        ("a name of more than 18 characters.png", "a name of…ters.png"),
        ("数" * 20 + ".png", "row 3: ??…????.png"),
    ],
)
def test_labels_of_files_whose_names_the_font_lacks(name, label):
    assert figure._label(f"/folder/{name}", 3) == label
    image = np.zeros((28, 28), np.uint8)
    picture = figure.draw([image], [name], ["1  99%"], [False], 1)
    assert picture.startswith(b"\x89PNG")
