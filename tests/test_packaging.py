"""What is declared is what is on disk, and the wheel is what a user needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
HOMES = {"lcm_arith": "lcm_arith", **SETUPTOOLS["package-dir"]}
JUNK = shutil.ignore_patterns("__pycache__", ".*", "*.part", "*.egg-info")


def sources() -> Iterator[tuple[PurePosixPath, Path]]:
    """Where each file of the packages installs, and where it lies here; links are not followed."""
    for package, home in HOMES.items():
        for at, folders, names in os.walk(ROOT / home):
            junk = JUNK(at, [*folders, *names])
            folders[:] = [folder for folder in folders if folder not in junk]
            for path in (Path(at, name) for name in names if name not in junk):
                if not path.is_symlink():
                    inside = path.relative_to(ROOT / home).as_posix()
                    yield PurePosixPath(package.replace(".", "/"), inside), path


def run(*command: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: no network, no build/ of earlier times in it."""
    tree, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tree)
    for home in HOMES.values():
        shutil.copytree(ROOT / home, tree / home, symlinks=True, ignore=JUNK)
    offline = ("--no-build-isolation", "--no-deps", "--no-index")
    run(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", out, tree)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def in_wheel(wheel: Path) -> list[PurePosixPath]:
    with zipfile.ZipFile(wheel) as archive:
        return [PurePosixPath(name) for name in archive.namelist()]


def test_declared_packages_are_the_packages_on_disk() -> None:
    installed = [name for name, _ in sources() if name.suffix == ".py"]
    on_disk = {".".join(name.parent.parts) for name in installed}
    with_init = {".".join(name.parent.parts) for name in installed if name.name == "__init__.py"}
    assert sorted(on_disk) == sorted(SETUPTOOLS["packages"])
    assert on_disk == with_init


@pytest.mark.parametrize("name", ["cli", "evaluation", "recipes"])
def test_links_point_home_or_are_absent(name: str) -> None:
    link = ROOT / "lcm_arith" / name
    assert not (ROOT / name).is_symlink(), "the folder at the root is the real one"
    if link.is_symlink():
        assert os.readlink(link) == f"../{name}"
    elif link.exists():  # a checkout without symbolic links has a text file in its place
        assert link.read_text("utf-8").strip() == f"../{name}"


def test_wheel_puts_one_name_into_site_packages(in_wheel: list[PurePosixPath]) -> None:
    tops = {name.parts[0] for name in in_wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"lcm_arith"}
    assert len(tops) == 2


def test_wheel_holds_every_file_of_the_packages_and_no_other(
    in_wheel: list[PurePosixPath],
) -> None:
    packaged = {name for name in in_wheel if name.parts[0] == "lcm_arith"}
    expected = {name for name, _ in sources()}
    assert {str(name) for name in expected - packaged} == set(), "missing from the wheel"
    assert {str(name) for name in packaged - expected} == set(), "in the wheel by mistake"


def test_wheel_holds_model_vectors_types_and_licences(in_wheel: list[PurePosixPath]) -> None:
    names = {str(name) for name in in_wheel}
    assert "lcm_arith/py.typed" in names
    for needed in (
        "emoji-sd/model_index.json",
        "judge/model.safetensors",
        "vectors/lcm.safetensors",
    ):
        assert f"lcm_arith/embedded/{needed}" in names
    for licence in ("LICENSE", "NOTICE"):
        assert any(name.match(f"*.dist-info/licenses/{licence}") for name in in_wheel)


@pytest.mark.slow
def test_wheel_draws_a_picture_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    fresh, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", fresh)
    python, scripts = fresh / "bin" / "python", fresh / "bin"
    offline = ("--no-deps", "--no-index")
    install = ("install", "--no-compile", *offline)
    run(sys.executable, "-m", "pip", f"--python={python}", *install, wheel)

    # The dependencies come from here; an editable lcm_arith does not, for that needs its .pth file.
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    ours = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "dependencies.pth").write_text("\n".join(ours))

    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"HF_HUB_OFFLINE": "1"}
    where = "import lcm_arith; print(lcm_arith.__file__)"
    at = Path(run(python, "-c", where, cwd=elsewhere, env=env).strip())
    assert at.is_relative_to(fresh)

    out = tmp_path / "fox"
    options = ("--steps", 1, "--sampler", "lcm", "--seed", 0, "--out", out)
    run(scripts / "lcm-arith", "generate", "fox", *options, cwd=elsewhere, env=env)
    pictures = sorted(out.rglob("*.png")) if out.is_dir() else [out]
    assert pictures
    for picture in pictures:
        with Image.open(picture) as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) >= 64
