"""A recipe instead of a model on the command line, and the folder that it writes to."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_recipe import GOOD, command

from irtool.cli.main import run
from irtool.workflows.recipe.parse import read_recipe

RECIPES = Path(__file__).parents[2] / "bench" / "recipes"


def test_a_model_or_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compress", "--out", str(tmp_path / "out")]) == 1
    assert "Name one, or give --recipe FILE" in capsys.readouterr().err
    assert run(["compress", "VGG:depth=11", "--recipe", "r.toml", "--out", str(tmp_path / "out")]) == 1
    assert "leave MODEL out" in capsys.readouterr().err
    assert run(command(tmp_path / "none.toml", tmp_path / "out")) == 1
    assert "Give the path of a recipe" in capsys.readouterr().err


def test_a_folder_of_others_is_not_emptied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.toml").write_text(GOOD)
    mine = tmp_path / "out" / "00-original"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("two years")
    assert run(command(tmp_path / "r.toml", tmp_path / "out")) == 1
    assert "Choose another --out" in capsys.readouterr().err
    assert (mine / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["preresnet38", "vgg16"])
def test_the_recipes_in_the_repository_have_no_mistake(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sparse.pth").touch()
    steps = read_recipe(RECIPES / f"{name}.toml").steps
    assert [step.do for step in steps][-3:] == ["fold", "export", "verify"]
