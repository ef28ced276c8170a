"""Names of pictures: of all that changes pixels, and of nothing else."""

import json
from pathlib import Path

import torch
from support import random_vector

from lcm_arith.adapters import load
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.saving import provenance, save, save_folder


def test_the_configuration_beside_a_peft_adapter_is_part_of_what_it_is_called(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "peft"
    save_folder(random_vector(4, 4.0, 1), folder)
    tau, digest = load(folder), Sources().vector_digest(str(folder))
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(config.items()))))
    assert Sources().vector_digest(str(folder)) == digest
    path.write_text(json.dumps({**config, "lora_alpha": 3 * config["lora_alpha"]}))
    (module, *_) = tau
    assert torch.allclose(load(folder)[module].dense(), 3 * tau[module].dense())
    assert Sources().vector_digest(str(folder)) != digest
    assert provenance(load(folder)) != provenance(tau)


def test_a_plain_file_is_called_by_its_sha256(tmp_path: Path) -> None:
    written = save(random_vector(4, 4.0, 1), tmp_path / "x.safetensors")
    assert Sources().vector_digest(str(tmp_path / "x.safetensors")) == written.sha256
