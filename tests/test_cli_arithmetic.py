"""The commands of the arithmetic on the embedded vectors and on other programs' files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import fails, run
from PIL import Image
from safetensors.torch import load_file, save_file

from lcm_arith.adapters import load
from lcm_arith.analysis import distance
from lcm_arith.embedded import files
from lcm_arith.saving import save
from lcm_arith.vector import Source, TaskVector


def gap(one: str, other: TaskVector) -> float:
    """‖file − τ‖ / ‖τ‖."""
    lost, total = distance(load(one), other)
    return lost / total


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every ninth module of three vectors, for what no whole vector is needed to show."""
    folder = tmp_path_factory.mktemp("parts")
    for name in ("noto", "twemoji", "lcm"):
        tau = load(name)
        part = TaskVector(((1.0, Source({module: tau[module] for module in tau.modules[::9]})),))
        save(part, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def parts_cwd(tmp_cwd: Path, parts: Path) -> Path:
    """A fresh current folder that holds these files."""
    shutil.copytree(parts, tmp_cwd, dirs_exist_ok=True)
    return tmp_cwd


NOTO, TWEMOJI, LCM = "noto.safetensors", "twemoji.safetensors", "lcm.safetensors"


def test_combine_takes_any_number_of_weighted_vectors(tmp_cwd: Path) -> None:
    out = run("combine", "noto:0.5", "<lora:twemoji:-0.25>", "lcm:1,up=0.5").output
    assert "0.5 · noto + -0.25 · twemoji + 1,up=0.5 · lcm" in out
    tau, noto, twemoji, lcm = map(load, ("combined.safetensors", "noto", "twemoji", "lcm"))
    for module in tau.modules[::9]:
        weight = 0.5 if ".up_blocks." in module else 1.0
        want = 0.5 * noto[module].dense() - 0.25 * twemoji[module].dense()
        want = want + weight * lcm[module].dense()
        torch.testing.assert_close(tau[module].dense(), want, rtol=0, atol=1e-6)


def test_verify_knows_the_sum_from_another(tmp_cwd: Path) -> None:
    run("combine", "noto", "lcm", "--l1", "0.7")
    assert "= 0.7 · noto + 1.0 · lcm" in run("verify", "combined.safetensors").output
    told = json.loads(run("verify", "combined.safetensors", "noto:0.7", "lcm:1", "--json").stdout)
    assert told["error"] < 1e-6
    code, message = fails("verify", "combined.safetensors", "noto:0.8", "lcm:1")
    assert code == 8
    assert "is not 0.8 · noto + 1 · lcm" in message


@pytest.mark.parametrize("space", ["core", "knots", "full"])
def test_element_wise_methods_say_how_far_from_the_sum_they_went(
    parts_cwd: Path, space: str
) -> None:
    call = ("combine", f"{NOTO}:0.7", f"{TWEMOJI}:0.7", "--method", "ties", "--rank", "16")
    choices = ("--density", "0.3", "--space", space, "--seed", "1")
    told = json.loads(run(*call, *choices, "--json").stdout)
    want = gap("combined.safetensors", 0.7 * load(NOTO) + 0.7 * load(TWEMOJI))
    assert told["distance_to_sum"] == pytest.approx(want, rel=1e-3)
    assert told["rank_max"] == 16
    assert "away from the plain sum" in run(*call, *choices, "--force").output
    assert fails("combine", NOTO, LCM, "--density", "0.3", "--force")[0] == 2


@pytest.mark.parametrize("method", ["tsv-m", "iso-c", "iso-cts", "cart", "orthogonal"])
def test_methods_write_a_file_that_is_not_the_sum(parts_cwd: Path, method: str) -> None:
    # Of two terms CART's differences from the mean cancel: it is their sum.
    terms = (f"{NOTO}:1", f"{TWEMOJI}:1", f"{LCM}:1")
    told = json.loads(run("combine", *terms, "--method", method, "--json").stdout)
    assert told["method"] == method
    assert gap("combined.safetensors", load(NOTO) + load(TWEMOJI) + load(LCM)) > 0.01


@pytest.mark.parametrize(
    ("option", "value", "kept"),
    [("--energy", "0.9", 0.9), ("--max-error", "0.2", 0.96), ("--sv-fro", "0.9", 0.81),
     ("--rank", "8", 0.5), ("--size", "0.25", 0.5)],
)  # fmt: skip
def test_reproject_keeps_what_it_promises(
    parts_cwd: Path, option: str, value: str, kept: float
) -> None:
    told = json.loads(run("reproject", LCM, option, value, "--json").stdout)
    assert kept <= told["retained_energy"] < 1
    # the tail of a truncated decomposition: ‖lost‖² = (1 − kept) ‖τ‖²
    lost = gap("reprojected.safetensors", load(LCM))
    assert lost**2 == pytest.approx(1 - told["retained_energy"], rel=1e-3)
    if option == "--size":
        assert 0.22 * 2**20 < told["bytes"] <= 0.25 * 2**20  # the header counted


@pytest.mark.parametrize("form", ["diffusers", "peft", "kohya"])
def test_convert_changes_names_alone(parts_cwd: Path, form: str) -> None:
    run("convert", LCM, "--format", form)
    assert gap("converted.safetensors", load(LCM)) < 1e-6
    first = next(iter(load_file("converted.safetensors")))
    assert first.startswith({"diffusers": "unet.", "peft": "base_model.", "kohya": "lora_"}[form])


def test_convert_refuses_what_a_format_cannot_name(tmp_cwd: Path) -> None:
    code, message = fails("convert", "lcm", "--format", "comfy")
    assert code == 2
    assert "this one is emoji" in message
    assert not Path("converted.safetensors").exists()


def test_negate_is_minus(tmp_cwd: Path) -> None:
    run("negate", "noto")
    assert gap("negated.safetensors", -load("noto")) < 1e-7


def test_inspect_tells_what_a_file_is(tmp_cwd: Path) -> None:
    told = json.loads(run("inspect", "lcm", "--json").stdout)
    assert told["families"] == [{"family": "emoji", "coverage": 1.0}]
    assert told["kinds"] == {"LoRA": 115}
    downs = [t for key, t in load_file(files.vector_path("lcm")).items() if "lora_A" in key]
    assert told["ranks"] == {str(downs[0].shape[0]): 115}
    assert len(downs) == 115
    assert sum(told["blocks"].values()) == pytest.approx(1)
    tau = load("lcm")
    squares = sum(float(tau[m].dense(torch.float64).square().sum()) for m in tau)
    assert told["norm"] == pytest.approx(squares**0.5, rel=1e-6)
    shown = run("inspect", "lcm").output
    assert "diffusers; float16" in shown


def test_interfere_shows_and_draws_blocks(tmp_cwd: Path) -> None:
    told = json.loads(run("interfere", "noto", "noto", "--plot", "x.png", "--json").stdout)
    whole = told["blocks"][-1]
    assert whole["block"] == "all"
    assert whole["cosine"] == pytest.approx(1)
    ranks = load("noto")
    for module in told["modules"][::11]:  # the same subspace: n / r times chance
        shape, rank = ranks.shape_of(module["module"]), ranks.rank_of(module["module"])
        assert module["output"] == pytest.approx(shape[0] / rank, rel=1e-6)
    with Image.open("x.png") as picture:
        assert min(picture.size) > 200
    assert fails("interfere", "--plot", "x.png")[0] == 3


@pytest.mark.parametrize(
    ("code", "command"),
    [
        (2, "combine noto:1 lcm:1 --l1 0.5"),
        (3, "combine noto lcm twemoji:x"),
        (2, "combine noto:1,te=0 lcm:1"),
        (2, "combine --method banana"),
        (2, "combine --rank 4 --energy 0.9"),
        (2, "combine --energy 1.5"),
        (2, "reproject --size 0.001"),
        (3, "combine nothing:1 lcm:1"),
        (3, "inspect nothing"),
        (3, "verify"),
        (2, "interfere none lcm"),
    ],
)
def test_mistakes_have_their_exit_codes(tmp_cwd: Path, code: int, command: str) -> None:
    assert fails(*command.split())[0] == code
    assert not list(Path().iterdir())


def test_a_spectrum_says_what_each_rank_loses(parts_cwd: Path) -> None:
    call = ("spectrum", NOTO, LCM, "--l1", "0,0.7", "--l2", "1,-0.5", "--ranks", "3,20")
    told = json.loads(run(*call, "--csv", "s.csv", "--json").stdout)
    assert [(row["l1"], row["l2"]) for row in told["rows"]] == [
        ("0", "1"), ("0", "-0.5"), ("0.7", "1"), ("0.7", "-0.5"),
    ]  # fmt: skip
    for row in told["rows"]:
        tau = float(row["l1"]) * load(NOTO) + float(row["l2"]) * load(LCM)
        spectra = [torch.linalg.svdvals(tau[m].dense(torch.float64).flatten(1)) for m in tau]
        total = sum(float(s.square().sum()) for s in spectra)
        assert row["norm"] == pytest.approx(total**0.5, rel=1e-5)
        for rank in (3, 20):
            lost = sum(float(s[rank:].square().sum()) for s in spectra)
            # float32: a share of 1e-7 of the energy, whose root is the error
            assert row["errors"][str(rank)] == pytest.approx((lost / total) ** 0.5, abs=5e-4)
    lines = Path("s.csv").read_text().splitlines()
    assert lines[0] == "l1,l2,norm,rank 3,rank 20"
    assert len(lines) == 5
    assert "rank 20" in run("spectrum", "none", LCM, "--ranks", "20").output
    assert fails("spectrum", "none", "none")[0] == 2


def test_verify_takes_the_weights_from_the_header_of_named_files(parts_cwd: Path) -> None:
    run("combine", "noto.safetensors:0.7,up.1=0.2", "lcm.safetensors:-0.5", "--rank", "40")
    code, message = fails("verify", "combined.safetensors")
    assert code == 2
    assert "name that file, too" in message
    shown = run(
        "verify", "combined.safetensors", "lcm.safetensors", "noto.safetensors", "--tolerance", "1"
    ).output
    assert "0.7,up.1=0.2 · noto.safetensors + -0.5 · lcm.safetensors" in shown
    run("combine", "noto.safetensors:0.7,up.1=0.2", "lcm.safetensors:-0.5", "--force")
    files_of = ("combined.safetensors", "lcm.safetensors", "noto.safetensors")
    assert json.loads(run("verify", *files_of, "--json").stdout)["error"] < 1e-6
    run("negate", TWEMOJI)
    assert fails("verify", *files_of, "negated.safetensors")[0] == 2
    run("combine", NOTO, LCM, "--method", "cart", "--force")
    code, message = fails("verify", "combined.safetensors")
    assert code == 2
    assert "cart, which is no sum" in message


def test_digests_tell_content_recipe_and_file_apart(parts_cwd: Path) -> None:
    def digests(path: str) -> tuple[str, str, str | None]:
        told = json.loads(run("inspect", path, "--json").stdout)
        return told["sha256"], told["tensors_sha256"], told["recipe_sha256"]

    half, one = f"{NOTO}:0.5", f"{LCM}:1"
    run("combine", half, one, "-o", "a.safetensors")
    run("combine", one, half, "-o", "b.safetensors")
    run("combine", half, one, "-o", "c.safetensors", "--dtype", "float16")
    a, b, c = (digests(f"{name}.safetensors") for name in "abc")
    assert a[2] == c[2]
    assert a[1] != c[1]
    assert a[2] != b[2]  # the order of the terms is the order of the factors
    save_file(load_file("a.safetensors"), "again.safetensors", metadata={"other": "words"})
    again = digests("again.safetensors")
    assert (again[0] == a[0], again[1] == a[1], again[2]) == (False, True, None)


def test_policies_rescale_the_weights(parts_cwd: Path) -> None:
    noto, lcm = load(NOTO), load(LCM)
    run("combine", f"{NOTO}:3", f"{LCM}:-4", "--policy", "energy")
    assert gap("combined.safetensors", 0.6 * noto - 0.8 * lcm) < 1e-6
    run("combine", f"{NOTO}:0.5", f"{LCM}:1", "--policy", "norm", "--force")
    lengths = [
        sum(float(tau[m].dense(torch.float64).square().sum()) for m in tau) ** 0.5
        for tau in (noto, lcm)
    ]
    assert gap("combined.safetensors", 0.5 * lengths[1] / lengths[0] * noto + lcm) < 1e-6
    assert fails("combine", NOTO, LCM, "--policy", "none", "--force")[0] == 2
