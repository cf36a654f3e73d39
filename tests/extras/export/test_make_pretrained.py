"""make_pretrained: on small tables and a small network."""

import pytest

from pipeline.extras.export import make_pretrained
from pipeline.nn import pretrained
from pipeline.nn.pretrained import FACTS, load_pretrained
from tests.conftest import TINY, digits_28, write_tables


def test_digits_of_the_sample_among_the_training_rows_are_found(monkeypatch):
    """Also if a pixel differs by one gray level."""
    images, labels = digits_28(60)
    sample = images[20:].copy()
    sample[3, 14, 14] ^= 1
    monkeypatch.setattr(make_pretrained, "TRAIN_ROWS", 40)
    monkeypatch.setattr(make_pretrained, "load_sample", lambda: (sample, labels[20:]))
    assert make_pretrained._compare_with_sample(images[:40])["unseen_rows"] == list(range(20, 40))
    with pytest.raises(SystemExit, match="39 training rows"):
        make_pretrained._compare_with_sample(images[:39])


@pytest.mark.slow
def test_the_weights_are_made_by_one_command(tmp_path, tables, monkeypatch, capsys):
    """On small tables and a small network: the files are written, and have the accuracy of the network in them."""
    write_tables(tmp_path / "tables", tables)
    folder = tmp_path / "pretrained"
    folder.mkdir()
    for name, value in {"FOLDER": folder, "SAMPLE_ROWS": folder / "sample_rows.json"}.items():
        monkeypatch.setattr(pretrained, name, value)
    monkeypatch.setattr(make_pretrained, "SAMPLE_ROWS", folder / "sample_rows.json")
    monkeypatch.setattr(make_pretrained, "PAGE", tmp_path / "demo.html")
    monkeypatch.setattr(make_pretrained, "TRAIN_ROWS", 400)
    monkeypatch.setattr(make_pretrained, "RECIPES", ("quick",))
    assert make_pretrained.main(["--data", str(tmp_path / "tables"), *TINY[2:]]) == 0
    facts = load_pretrained("quick").metadata[FACTS]
    assert load_pretrained("quick").metadata["fit_all"] and facts["held_out"]["rows"] == 100
    assert facts["unseen_sample"]["rows"] == 5000  # the tables have other digits
    assert "quick.safetensors" in capsys.readouterr().out.splitlines()[-1]
    assert b"the network of the recipe quick" in (tmp_path / "demo.html").read_bytes()
