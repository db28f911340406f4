"""The bundle that sites list is the bundle that Flower builds, and it holds no code."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import coordinator
from coordinator.wire.bundle import BUNDLE_SHA256

APP = Path(coordinator.__file__).parent / "app"


def build(app: Path, folder: Path) -> bytes:
    subprocess.run(
        [Path(sys.executable).with_name("flwr"), "build", "--app", app],
        cwd=folder,
        check=True,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "FLWR_HOME": str(folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        },
    )
    return next(folder.glob("*.fab")).read_bytes()


def test_flower_builds_exactly_the_bundle_that_sites_accept_and_it_holds_no_code(
    tmp_path: Path,
) -> None:
    bundle = build(APP, tmp_path)

    assert hashlib.sha256(bundle).hexdigest() == BUNDLE_SHA256
    with zipfile.ZipFile(io.BytesIO(bundle)) as files:
        assert sorted(files.namelist()) == [".info/CONTENT", "README.md", "pyproject.toml"]


def test_a_changed_manifest_has_another_hash(tmp_path: Path) -> None:
    changed = Path(shutil.copytree(APP, tmp_path / "app"))
    manifest = (changed / "pyproject.toml").read_text()
    (changed / "pyproject.toml").write_text(manifest.replace("participant.client_app", "sims.cli"))

    assert hashlib.sha256(build(changed, tmp_path)).hexdigest() != BUNDLE_SHA256
