"""Pickles: opened by ``convert --allow-pickle`` alone, in a child under limits, believed last."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pickle
import re
import resource
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from commands import fails, run
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcm_arith.adapters import load
from lcm_arith.errors import (
    InvalidContentError,
    LcmArithError,
    NotFoundError,
    StorageError,
    UsageError,
)
from lcm_arith.formats import pickle_child, pickles
from lcm_arith.saving import provenance

ROOT: Final = Path(__file__).resolve().parents[1]
SHARED: Final = ROOT.parent / "shared" / "adapters"
M: Final = "unet.mid_block.attentions.0.proj_in"
A, B = f"{M}.lora_A.weight", f"{M}.lora_B.weight"
ONES: Final = torch.ones(2, 3)


def saved(value: object, **options: Any) -> bytes:
    """What torch.save makes of a value."""
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def legacy(value: object) -> bytes:
    return saved(value, _use_new_zipfile_serialization=False)


def zipped(program: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch's, around a pickle of any opcodes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in (("data.pkl", program), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", data)
    return file.getvalue()


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def script() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    return file.getvalue()


def as_key(opcodes: bytes) -> bytes:
    """A dict whose one key is what the opcodes leave on the stack."""
    return zipped(b"\x80\x02}" + opcodes + b"K\x01s.")


# Nested tuples are hashed again at each look (Python before 3.14), so two of each take 2 ** 60
# steps; and by recursion in C, so a million of them take more stack than there is.
ENDLESS: Final = as_key(b")q\x00" + b"h\x00\x86q\x00" * 60)
CRASH: Final = as_key(b")" + b"\x85" * 1_000_000)

REFUSED: Final[dict[str, tuple[Callable[[], bytes], str]]] = {
    "os.system": (lambda: saved({A: Call(os.system, "true")}), "system, which builds no tensor"),
    "a legacy os.system": (lambda: legacy({A: Call(os.system, "true")}), "system, which builds no"),
    "eval": (lambda: saved(Call(eval, "1")), "calls for eval"),
    "a module": (lambda: saved(torch.nn.Linear(2, 2)), "torch.nn.modules.linear.Linear"),
    "numpy": (lambda: saved({A: ONES.numpy()}), "numpy"),
    "TorchScript": (script, "TorchScript"),
    "no torch.save": (lambda: pickle.dumps({"a": 1}), "torch.load cannot read it"),
    "a cut zip": (lambda: saved({A: ONES})[:-30], "failed finding central directory"),
    "a legacy file cut": (lambda: legacy({A: ONES})[:-5], "unexpected EOF"),
    "a legacy file cut early": (lambda: legacy({A: ONES})[:60], "EOFError"),
    "a zip of text": (lambda: zipped(b"hello"), "torch.load cannot read it (KeyError: 101)"),
    "a list": (lambda: saved([ONES]), "of type list, not a dict"),
    "a tensor": (lambda: saved(ONES), "of type Tensor, not a dict"),
    "nothing": (lambda: saved(None), "of type NoneType, not a dict"),
    "a number": (lambda: saved({A: ONES, "epoch": 3}), "1 of 2 entries are refused: epoch: of ty"),
    "a nested dict": (lambda: saved({"unet": {A: ONES}}), "unet: of type dict, not a tensor"),
    "more than a state dict": (lambda: saved({"state_dict": {A: ONES}, "epoch": 1}), "2 of 2"),
    "a state dict in another": (
        lambda: saved({"state_dict": {"state_dict": {}}}),
        "state_dict: of",
    ),
    "a number as key": (lambda: saved({3: ONES}), "a key of type int, not a name"),
    "a key that cannot be printed": (lambda: as_key(b")q\x00" + b"h\x00\x86q\x00" * 18), "tuple"),
    "a terminal's escape": (lambda: saved({"a\x1b[31m": ONES}), "name is not printable"),
    "half a character": (lambda: saved({"a\ud800": ONES}), "name is not printable"),
    "sparse": (lambda: saved({A: ONES.to_sparse()}), "a tensor that is sparse"),
    "sparse by rows": (lambda: saved({A: ONES.to_sparse_csr()}), "a tensor that is sparse"),
    "quantized": (
        lambda: saved({A: torch.quantize_per_tensor(ONES, 1.0, 0, torch.qint8)}),
        "quantized",
    ),
    "meta": (lambda: saved({A: ONES.to("meta")}), "(meta)"),
    "nested": (lambda: saved({A: torch.nested.nested_tensor([ONES])}), "a tensor that is nested"),
    "complex": (lambda: saved({A: ONES.to(torch.complex64)}), "torch.complex64 is not a floating"),
    "integers": (lambda: saved({A: ONES.long()}), "torch.int64 is not a floating-point number"),
    "eight bits": (lambda: saved({A: ONES.to(torch.float8_e4m3fn)}), "float8_e4m3fn is not"),
    "many": (lambda: saved({f"x{i}": i for i in range(9)}), "9 of 9 entries are refused: x0: of"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's: beta states of odd tensors
def test_what_is_not_a_dict_of_plain_tensors_is_refused_by_name(name: str) -> None:
    make, told = REFUSED[name]
    with pytest.raises(InvalidContentError) as caught:
        pickle_child.read(io.BytesIO(make()))
    assert told in caught.value.message
    assert caught.value.hint
    assert str(caught.value).replace("\n", " ").isprintable()
    assert "weights_only=False" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_nothing_is_ever_unpickled_but_weights() -> None:
    """Checkpoints of our own trainings, which ``restore`` reads, are no more than that, either."""
    calls = [
        (path.relative_to(ROOT).as_posix(), call)
        for folder in ("lcm_arith", "cli", "evaluation", "tools")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for call in re.findall(r"^[^#\"`]*\b((?:torch|pickle)\.loads?\(.*)", path.read_text(), re.M)
    ]
    assert all(re.match(r"torch\.load\(.*\bweights_only=True\)$", call) for _, call in calls)
    assert "lcm_arith/formats/pickle_child.py" in dict(calls)


def good() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What people pickle, and the numbers that it must come to."""
    big = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    values = {
        "unet.a.lora_A.weight": big[:2],
        "unet.a.lora_B.weight": big[:, :2],  # a view of the same memory, with gaps
        "unet.a.alpha": torch.tensor(3.0),
        "unet.b.lora_A.weight": torch.nn.Parameter(big[2:4].clone()),
        "unet.b.lora_B.weight": big.T[:, :2].clone().requires_grad_(),
        "unet.c.lora_A.weight": big[:2].bfloat16(),
        "unet.c.lora_B.weight": big[:2].double().T,
        "unet.d.lora_A.weight": big[:2],  # the same tensor again
        "unet.d.lora_B.weight": torch._neg_view(big[:3, :2].half()),
    }
    return values, {k: t.detach().resolve_neg().clone() for k, t in values.items()}


@pytest.mark.parametrize("wrap", [dict, lambda values: {"state_dict": values}])
@pytest.mark.parametrize("save", [saved, legacy])
def test_views_parameters_and_number_formats_are_read_as_they_are(
    tmp_path: Path, save: Callable[[object], bytes], wrap: Callable[[Any], Any]
) -> None:
    values, want = good()
    tensors = pickle_child.read(io.BytesIO(save(wrap(values))))
    pickle_child.write(tensors, tmp_path / "x.safetensors", most=2**20)
    got = load_file(tmp_path / "x.safetensors")
    assert got.keys() == want.keys()
    assert all(got[k].dtype == want[k].dtype and torch.equal(got[k], want[k]) for k in want)


@pytest.fixture
def places(tmp_cwd: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder beside one for temporary files, which must be empty at the end."""
    temporary, work = tmp_cwd / "temporary", tmp_cwd / "work"
    temporary.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = children()
    yield work
    assert not list(temporary.glob("lcm-arith-*"))  # torch has a folder there, too
    assert children() == before


def children() -> str:
    """Processes that this one has started and that go on."""
    return Path("/proc/thread-self/children").read_text()


def change(monkeypatch: pytest.MonkeyPatch, **limits: Any) -> None:
    """Other limits than the default ones."""
    usual = pickles.limits
    monkeypatch.setattr(pickles, "limits", lambda size: dataclasses.replace(usual(size), **limits))


def test_convert_writes_what_the_child_read_with_the_digest_of_the_pickle(places: Path) -> None:
    values, want = good()
    data = saved({k: v for k, v in values.items() if ".d." not in k})
    Path("my old.bin").write_bytes(data)
    run("convert", "my old.bin", "-o", "x.safetensors", "--format", "diffusers", "--allow-pickle")
    tau = load("x.safetensors")
    for m, scale in {"a": 1.5, "b": 1.0, "c": 1.0}.items():
        down, up = (want[f"unet.{m}.lora_{f}.weight"].double() for f in "AB")
        # a factor and the scale are rounded to float32 once
        torch.testing.assert_close(
            tau[f"unet.{m}"].dense(torch.float64), scale * up @ down, rtol=1e-6, atol=1e-6
        )
    (term,) = json.loads(tau.terms[0][1].metadata["lcm_arith"])["terms"]
    assert term == {"sha256": hashlib.sha256(data).hexdigest(), "weight": "1.0"}
    assert {path.name for path in places.iterdir()} == {"my old.bin", "x.safetensors"}


HOSTILE: Final[dict[str, tuple[bytes, dict[str, float], str]]] = {
    "8 GiB of nothing": (saved({A: Call(bytearray, 2**33)}), {}, "more memory than a file of its"),
    "one number as 64 MiB": (
        saved({A: torch.ones(1).expand(2**12, 2**12)}),
        {"output": 2**27, "memory": 2**25},
        "more memory than a file of its",
    ),
    "an endless loop": (
        ENDLESS,
        {"cpu": 1},
        "more than 1 s of processor time" if sys.version_info < (3, 14) else "of type tuple",
    ),
    "a crash": (CRASH, {}, "ended by signal 11 (Segmentation fault)"),
    "no time": (saved({A: ONES}), {"wall": 0.2}, "was not read within 0 s"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_child_that_takes_too_much_or_dies_is_an_error_like_any_other(
    places: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    data, limits, told = HOSTILE[name]
    change(monkeypatch, **limits)
    Path("x.bin").write_bytes(data)
    code, message = fails("convert", "x.bin", "-o", "y.safetensors", "--allow-pickle")
    assert (code, [path.name for path in places.iterdir()]) == (4, ["x.bin"])
    assert message.startswith("x.bin: ")
    assert told in message


def test_the_child_sets_every_limit_and_keeps_lower_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {kind: (resource.RLIM_INFINITY,) * 2 for kind in LIMITED} | {resource.RLIMIT_AS: (7, 9)}
    monkeypatch.setattr(resource, "getrlimit", own.__getitem__)
    done: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "setrlimit", done.__setitem__)
    pickle_child.limit(memory=10**9, output=123, cpu=5)
    assert done.keys() == LIMITED
    assert done[resource.RLIMIT_AS] == (7, 7)
    assert done[resource.RLIMIT_FSIZE] == (123, 123)
    assert done[resource.RLIMIT_CORE] == (0, 0)
    soft, hard = done[resource.RLIMIT_CPU]
    assert 5 <= soft - time.process_time() <= 6
    assert hard == soft + 1
    own[resource.RLIMIT_AS] = own[resource.RLIMIT_CPU]
    pickle_child.limit(memory=10**9, output=123, cpu=5)
    assert done[resource.RLIMIT_AS][0] - 10**9 == pytest.approx(taken(), rel=0.1)


LIMITED: Final = {
    resource.RLIMIT_AS,
    resource.RLIMIT_CPU,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_CORE,
}


def taken() -> int:
    """Bytes of this process's address space."""
    (line,) = re.findall(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024


def test_the_child_inherits_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PYTHONSTARTUP", "x.py")
    told = pickles._environment(tmp_path)
    assert not {"HF_TOKEN", "PYTHONSTARTUP", "PATH"} & told.keys()
    assert told["HOME"] == told["TMPDIR"] == str(tmp_path)
    assert all(map(os.path.isabs, told["PYTHONPATH"].split(os.pathsep)))


def test_a_pickle_that_runs_a_command_does_not_run_it(places: Path) -> None:
    proof = places / "ran"
    call = Call(os.system, f"touch '{proof}'")
    pickle.loads(pickle.dumps(call))
    assert proof.exists()  # so it does run where anything is unpickled
    proof.unlink()
    Path("x.ckpt").write_bytes(saved({A: ONES, B: call}))
    code, message = fails("convert", "x.ckpt", "-o", "y.safetensors", "--allow-pickle")
    assert (code, [path.name for path in places.iterdir()]) == (4, ["x.ckpt"])
    assert "system, which builds no tensor" in message


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({A: ONES * float("nan"), B: ONES}, "x.pt (as safetensors): NaN or infinity in 1 of 2"),
        ({A: torch.ones(1, 1, 1, 1, 1, 1)}, "6 axes, more than 5"),
        ({A: torch.ones(0, 3)}, "shape [0, 3]"),
        ({"x" * 600: ONES}, "1 to 512 printable bytes"),
        ({"__metadata__": ONES, A: ONES}, "metadata"),
        ({}, "it holds no tensors"),
        ({A: ONES}, "x.pt: 1 of 1 target modules cannot be read"),
        ({"model.weight": ONES}, "x.pt: not an adapter that can be read"),
        ({A: torch.ones(1).expand(2**20, 2**20)}, "4,194,304 MiB, more than the 8 MiB"),
    ],
)
def test_what_the_child_wrote_is_checked_like_any_file(
    places: Path, inline: None, value: dict[str, Tensor], told: str
) -> None:
    Path("x.pt").write_bytes(saved(value))
    with pytest.raises(InvalidContentError) as caught:
        load("x.pt", allow_pickle=True)
    assert told in caught.value.message
    assert "temporary" not in str(caught.value)


def test_a_file_that_changes_meanwhile_is_refused(
    places: Path, inline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = pickles._open_in_child

    def and_change(path: Path, *others: Any) -> None:
        usual(path, *others)
        path.write_bytes(saved({A: ONES, B: 2 * ONES}))

    monkeypatch.setattr(pickles, "_open_in_child", and_change)
    Path("x.pt").write_bytes(saved({A: ONES, B: ONES.T.contiguous()}))
    with pytest.raises(InvalidContentError, match="was changed while it was read"):
        load("x.pt", allow_pickle=True)


def test_no_room_is_the_disks_fault_not_the_files(
    places: Path, inline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("x.pt").write_bytes(saved({A: ONES}))
    monkeypatch.setattr(tempfile, "tempdir", str(places / "nowhere"))
    with pytest.raises(StorageError, match=r"x\.pt: .*No such file"):
        load("x.pt", allow_pickle=True)
    with pytest.raises(StorageError, match="no room"):
        pickle_child.write({A: ONES}, places / "nowhere" / "x", most=2**20)


def test_what_the_child_says_is_passed_on_in_its_class(tmp_path: Path) -> None:
    (tmp_path / "stderr.txt").write_text("Traceback\n  at x\nImportError: no torch\n\n")
    failed = pickles._refusal(Path("x.pt"), tmp_path, 1)
    assert "x.pt: the process that reads pickles failed: ImportError: no torch" in str(failed)
    assert failed.exit_code == 1
    for error in (StorageError("no room", hint="h"), InvalidContentError("a list", hint="h")):
        (tmp_path / "refusal.json").write_text(json.dumps([error.message, error.hint]))
        told = pickles._refusal(Path("x.pt"), tmp_path, error.exit_code)
        assert (type(told), str(told)) == (type(error), f"x.pt: {error.message}\nHint: h")


def test_a_peft_folder_of_before_safetensors_keeps_its_alpha(places: Path, inline: None) -> None:
    values = {f"base_model.model.{k[5:]}": t for k, t in ((A, ONES), (B, torch.ones(4, 2)))}
    Path("mine").mkdir()
    Path("mine/adapter_model.bin").write_bytes(saved(values))
    Path("mine/adapter_config.json").write_text('{"r": 2, "lora_alpha": 6}')
    assert torch.equal(load("mine", allow_pickle=True)[M].dense(), torch.full((4, 3), 6.0))
    with pytest.raises(UsageError, match="give the folder: mine"):
        load("mine/adapter_model.bin", allow_pickle=True)
    with pytest.raises(InvalidContentError, match=r"convert mine -o mine\.safetensors --allow-pic"):
        load("mine")


COMMANDS: Final = (
    "convert x.bin", "combine x.bin lcm", "combine noto:1 x.bin:1", "negate x.bin", "inspect x.bin",
    "reproject x.bin --rank 1", "fuse x.bin:1", "interfere x.bin lcm", "verify x.bin",
    "verify lcm x.bin:1", "generate fox --vector x.bin:1", "grid-eval x.bin lcm",
    "finetune --from x.bin --data data", "distill --from x.bin --data data",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_other_command_refuses_and_names_the_one_that_reads(
    places: Path, command: str
) -> None:
    Path("x.bin").write_bytes(saved({A: ONES, B: ONES.T.contiguous()}))
    Path("data").mkdir()
    Image.new("RGB", (64, 64)).save("data/x.png")
    Path("data/x.txt").write_text("fox")
    code, message = fails(*command.split())
    assert code == 4
    assert "x.bin: not a readable safetensors file: it is a zip archive or a PyTorch" in message
    assert "lcm-arith convert x.bin -o x.safetensors --allow-pickle" in message
    assert {path.name for path in places.iterdir()} == {"x.bin", "data"}


def test_a_legacy_pickle_is_known_too(places: Path) -> None:
    Path("x.pth").write_bytes(legacy({A: ONES}))
    with pytest.raises(InvalidContentError, match=r"a Python pickle.*\n.* --allow-pickle"):
        load("x.pth")


def test_a_disguised_pickle_is_told_another_name_for_the_result(places: Path) -> None:
    Path("a b.safetensors").write_bytes(saved({A: ONES}))
    told = "convert 'a b.safetensors' -o converted.safetensors --allow-pickle"
    with pytest.raises(InvalidContentError, match=told):
        load("a b.safetensors")


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda path: path.write_bytes(b""), InvalidContentError, "it is empty"),
        (lambda path: path.write_text("hello, I am a text"), InvalidContentError, "begin with {"),
        (lambda path: path.write_text("<html></html>"), InvalidContentError, "a web page"),
        (Path.mkdir, NotFoundError, "adapter_config.json"),
        (os.mkfifo, NotFoundError, "is no regular file"),
        (lambda path: None, NotFoundError, "no file of that name"),
    ],
)
def test_what_is_no_pickle_is_refused_as_ever(
    places: Path, make: Callable[[Path], Any], error: type[LcmArithError], told: str
) -> None:
    make(Path("x.bin"))
    with pytest.raises(error, match=told):
        load("x.bin", allow_pickle=True)


def test_the_option_takes_nothing_away(places: Path) -> None:
    # a header of 640 bytes begins with the two bytes of a pickle
    name = "unet." + "x" * 200
    tensors = {f"{name}.lora_A.weight": ONES, f"{name}.lora_B.weight": ONES.T.contiguous()}
    for pad in range(400):
        save_file(tensors, "x.bin", {"a": "x" * pad})
        if Path("x.bin").read_bytes().startswith(b"\x80\x02"):
            break
    else:
        pytest.fail("no header of 640 bytes was written")
    assert torch.equal(load("x.bin", allow_pickle=True)[name].dense(), ONES.T @ ONES)
    assert load("lcm", allow_pickle=True).modules == load("lcm").modules


@pytest.mark.parametrize("lacks", ["resource", "procfs", "torch"])
def test_without_limits_or_with_an_unsafe_torch_nothing_is_opened(
    places: Path, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    if lacks == "resource":
        monkeypatch.setitem(sys.modules, "resource", None)
    elif lacks == "procfs":
        monkeypatch.setattr(pickles, "STATM", places / "nowhere")
    else:
        monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    Path("x.bin").write_bytes(saved({A: ONES}))
    code, message = fails("convert", "x.bin", "-o", "y.safetensors", "--allow-pickle")
    assert code == 2
    assert ("CVE-2026-24747" if lacks == "torch" else "only under limits") in message


def test_a_pickle_larger_than_any_adapter_is_not_opened(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("x.bin").write_bytes(saved({A: ONES}))
    os.truncate("x.bin", pickles.MOST_PICKLE + 1)  # a hole, which takes no disk
    with pytest.raises(InvalidContentError, match=r"it has 4\.0 GiB"):
        load("x.bin", allow_pickle=True)


def test_a_real_pickle_gives_the_bits_that_it_holds(places: Path) -> None:
    """The pickle of catundchat/stable-diffusion-v1.5-lora against torch's own view of it.

    The repository's safetensors file has its names and shapes but the numbers of another training
    (cosines of the updates around 0), so the twin is written here, by safetensors' own writer.
    """
    path = SHARED / "catundchat_sd15.bin"
    if not path.exists():
        pytest.skip("the real adapters are not at hand")
    tau = load(path, allow_pickle=True)
    stored = torch.load(path, map_location="cpu", weights_only=True)
    save_file(stored, "twin.safetensors")
    twin, sibling = load("twin.safetensors"), load(path.with_suffix(".safetensors"))
    assert tau.modules == twin.modules == sibling.modules
    for module in tau:
        assert torch.equal(tau[module].up, twin[module].up)
        assert torch.equal(tau[module].down, twin[module].down)
        assert tau[module].scale == twin[module].scale
        assert tau.shape_of(module) == sibling.shape_of(module)
    (term,) = provenance(tau)["terms"]
    assert term["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
