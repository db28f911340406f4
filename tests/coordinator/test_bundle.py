"""The bundle that sites list is the bundle that Flower builds, and it holds no code."""

import hashlib
import io
import zipfile
from pathlib import Path

from flwr.cli.build import build_fab_from_disk

import coordinator
from coordinator.wire.bundle import BUNDLE_SHA256

APP = Path(coordinator.__file__).parent / "app"


def test_flower_builds_exactly_the_bundle_that_sites_accept() -> None:
    assert hashlib.sha256(build_fab_from_disk(APP)).hexdigest() == BUNDLE_SHA256


def test_the_bundle_carries_no_code() -> None:
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(APP))) as bundle:
        assert sorted(bundle.namelist()) == [".info/CONTENT", "README.md", "pyproject.toml"]


def test_a_changed_manifest_has_another_hash(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes((APP / "README.md").read_bytes())
    manifest = (APP / "pyproject.toml").read_text().replace("participant.client_app", "evil.app")
    (tmp_path / "pyproject.toml").write_text(manifest)

    assert hashlib.sha256(build_fab_from_disk(tmp_path)).hexdigest() != BUNDLE_SHA256
