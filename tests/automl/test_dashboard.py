from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from automl.dashboard import DashboardMissingError, NothingToShowError, show
from automl.runners.ray_tune import token_file
from tests.automl.runners.driving import open_quadratic, run_study


def test_a_study_that_does_not_run_has_nothing_to_show(tmp_path: Path) -> None:
    run_study(open_quadratic(tmp_path, trials=1))
    with pytest.raises(NothingToShowError, match="no process runs this study"):
        show(tmp_path / "study")


def test_a_study_without_ray_has_nothing_to_show(tmp_path: Path) -> None:
    study = open_quadratic(tmp_path)
    with pytest.raises(NothingToShowError, match="Ray is not running for it"):
        show(study.directory)
    study.close()


@pytest.mark.skipif(find_spec("aiohttp_cors") is not None, reason="ray[default] is installed here")
def test_without_its_packages_the_extra_is_named(tmp_path: Path) -> None:
    study = open_quadratic(tmp_path)
    scratch = study.directory / "ray"
    scratch.mkdir()
    (scratch / "session.json").write_text(json.dumps({"directory": "", "dashboard": {}}))
    with pytest.raises(
        DashboardMissingError, match=r"pip install 'depthtune\[dashboard\]'"
    ) as info:
        show(study.directory)
    assert info.value.exit_code == 4
    study.close()


def test_the_token_file_is_made_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o644)
    monkeypatch.setitem(os.environ, "RAY_AUTH_TOKEN_PATH", str(token))
    assert token_file() == token
    assert token.stat().st_mode & 0o777 == 0o600
