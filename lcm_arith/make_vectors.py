"""From pictures to a proven file: what ``finetune`` and ``distill`` do from end to end."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch

from lcm_arith import durable
from lcm_arith.adapters import DTYPES, check_output, load, provenance, save
from lcm_arith.bases import Base, load_base
from lcm_arith.condition import Condition
from lcm_arith.data.drawing import TrainingSet
from lcm_arith.data.prepare import prepare
from lcm_arith.data.sources import survey
from lcm_arith.embedded import pictures
from lcm_arith.errors import IncompatibleError, NotFoundError, UsageError
from lcm_arith.families import Family, family
from lcm_arith.modules import weight_shapes
from lcm_arith.proof import prove_loads
from lcm_arith.targets import resolve
from lcm_arith.training.adapter import TRAINED, adapter_vector, add_adapter
from lcm_arith.training.checkpoint import Checkpoint
from lcm_arith.training.denoising import Denoising, denoising
from lcm_arith.training.distillation import Distillation, Lesson, distillation
from lcm_arith.training.log import Log
from lcm_arith.training.loop import Outcome, Run, Step, fit
from lcm_arith.training.numbers import Numbers, numbers
from lcm_arith.training.plan import Plan, Training
from lcm_arith.training.processes import Processes, find_processes
from lcm_arith.training.request import CHECKPOINT, Request
from lcm_arith.training.roles import on_one_base, three_networks, with_adapters
from lcm_arith.training.watch import SHOWN, Column, Sheets, looks
from lcm_arith.training.whole_model import check_model_output, write_model
from lcm_arith.vector import TaskVector
