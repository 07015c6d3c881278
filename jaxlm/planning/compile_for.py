"""Compile the real training step for a slice of TPUs that is not here, and report its memory, costs and time.

The compiler is libtpu's, so memory and collectives are those of the program that would run. Times are estimates, not
measurements: operations and bytes of the program, divided by the peaks of the data sheet.
"""

import dataclasses
import math
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from jaxlm.common.architecture.config import ModelConfig, config_from_dict
from jaxlm.common.architecture.model_flops import model_flops
from jaxlm.common.architecture.presets import preset
from jaxlm.common.step_choices import Remat
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel.mesh import check_batch, check_model, check_sequence, make_mesh
from jaxlm.parallel.mesh_config import MeshConfig
from jaxlm.parallel.sharding import parts_of
from jaxlm.planning.chips import GIB, Chip, chip_of
from jaxlm.planning.hlo_costs import Costs, hlo_costs
from jaxlm.training.abstract_step import abstract_batch, abstract_step
from jaxlm.training.device_memory import Memory, bytes_per_device, compiled_memory
from jaxlm.training.objectives.next_token import next_token
from jaxlm.training.train_step import TrainState
from shared_tokenizer.data.batches import Batch

# Memory that the compiler reserves for the system: it grants 15.75 GiB of the 16 GiB of a v5e.
_RESERVED_BYTES = GIB // 4


@dataclass(frozen=True, kw_only=True)
class CompileForConfig:
    """Model, batch and slice to compile for."""

    topology: str
    """Slice of TPUs to compile for: chip and shape, for example v5e:16x16 or v5p:4x4x4."""
    preset: str = "ternary-tiny"
    """Named model configuration."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of the model that replace the preset's, for example --model.num_layers 6."""
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(data=1, fsdp=-1))
    """Mesh of the chips; by default all of them split the parameters."""
    batch_size: int | None = None
    """Sequences per optimizer step, over all chips; by default one per micro-batch and part of the batch."""
    seq_len: int = 2048
    """Tokens per sequence."""
    grad_accumulation_steps: int = 1
    """Micro-batches per batch."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of activations over float32 weights."""
    unroll_layers: bool = False
    """Layers compiled one after another instead of as a loop."""
    remat: Remat = "products"
    """Gradient checkpointing: arrays of each block that are saved for the backward pass. none: all; products: linear
    outputs and the int8 inputs of o_proj and down_proj; ternary: int8 inputs of ternary linears, and the normalizers of
    attention in tiles; blocks: the input of the block."""
    attention: Literal["xla", "splash"] = "xla"
    """Implementation of attention: xla, by blocks; splash, the kernel for TPUs, whose operations the report omits."""
    loss_chunks: int = 0
    """Chunks of the sequence in which the loss is computed; 0 chooses the fewest that keep the logits small."""
    offload: Literal["optimizer"] | None = None
    """Part of the state in the memory of the host: optimizer, the moments."""
    find_smallest: bool = False
    """Search for the smallest slice that fits; each slice takes a minute or two to compile."""
    output: str | None = None
    """File for the report as JSON."""


@dataclass(frozen=True)
class Roofline:
    """Seconds of one step at the peaks of the data sheet: an ESTIMATE, not a measurement."""

    compute: float
    memory: float
    interconnect: float

    @property
    def fastest(self) -> float:
        """Seconds where the slowest of the three hides the other two."""
        return max(self.compute, self.memory, self.interconnect)

    @property
    def slowest(self) -> float:
        """Seconds where the three run one after another."""
        return self.compute + self.memory + self.interconnect


@dataclass(frozen=True)
class Report:
    """Memory and costs of the compiled step, for one chip and one step."""

    topology: str
    mesh: dict[str, int]
    batch_size: int
    fits: bool
    hbm_bytes: int
    """Memory of the chip, in bytes."""
    memory: Memory
    costs: Costs
    model_flops: float
    """Operations of the model on paper, for all chips together, see `model_flops`."""
    chip: Chip
    state_bytes: int
    """Bytes per chip of parameters, optimizer state and codes."""
    gradient_bytes: int
    """Bytes per chip of the gradient."""

    @property
    def num_chips(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def roofline(self) -> Roofline:
        chip, costs = self.chip, self.costs
        compute = costs.flops["int8"] / chip.int8_flops + costs.flops["float"] / chip.bfloat16_flops
        return Roofline(compute, costs.hbm_bytes / chip.hbm_bandwidth, costs.wire_bytes / chip.receive_bandwidth)

    def mfu(self, seconds: float) -> float:
        """Return the model FLOPs utilisation at this many seconds per step, relative to the bfloat16 peak."""
        return self.model_flops / (seconds * self.num_chips * self.chip.bfloat16_flops)


def compile_for(settings: CompileForConfig) -> Report:
    """Compile the step for the slice, and return its memory and costs.

    Raises ValueError where topology, mesh, batch and model do not fit together, and where libtpu is missing.
    """
    chip = chip_of(settings.topology)
    config = resolve_model(settings)
    mesh = make_mesh(settings.mesh, topology_devices(settings.topology, chip))
    smallest_batch = parts_of("batch", mesh) * settings.grad_accumulation_steps
    batch_size = smallest_batch if settings.batch_size is None else settings.batch_size
    check_batch(mesh, batch_size, settings.grad_accumulation_steps)
    check_sequence(mesh, settings.seq_len, settings.loss_chunks)
    check_model(mesh, config)
    step, state = abstract_step(
        LanguageModel(config, jnp.dtype(settings.dtype), settings.unroll_layers, settings.remat, settings.attention),
        mesh,
        grad_accumulation_steps=settings.grad_accumulation_steps,
        objective=next_token(settings.loss_chunks),
        offload=settings.offload,
    )
    memory, costs, fits = compile_step(step, state, abstract_batch(mesh, batch_size, settings.seq_len), mesh)
    return Report(
        topology=settings.topology,
        mesh=dict(mesh.shape),
        batch_size=batch_size,
        fits=fits,
        hbm_bytes=chip.hbm_bytes,
        memory=memory,
        costs=costs,
        model_flops=model_flops(config, batch_size, settings.seq_len),
        chip=chip,
        state_bytes=bytes_per_device(state),
        gradient_bytes=bytes_per_device(state.params),
    )


def resolve_model(settings: CompileForConfig) -> ModelConfig:
    """Return the preset with its replaced fields.

    max_seq_len grows to seq_len, since positions are not parameters. Raises ValueError on fields that do not fit
    together.
    """
    fields = dataclasses.asdict(preset(settings.preset))
    if {"hidden_size", "num_heads"} & set(settings.model) and "head_dim" not in settings.model:
        fields["head_dim"] = 0  # derived from hidden_size and num_heads
    fields["max_seq_len"] = max(fields["max_seq_len"], settings.seq_len)
    return config_from_dict(fields | settings.model)


def topology_devices(topology: str, chip: Chip) -> list[Any]:
    """Return the devices of a slice as libtpu describes them. Raises ValueError where it is missing or knows no such
    slice."""
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, chip_config_name=chip.chip_config_name
        )
    except jax.errors.JaxRuntimeError as error:
        message = str(error).splitlines()[0]
        shapes = ", ".join(chip.slices)
        raise ValueError(f"topology: found {topology!r}, expected a shape such as {shapes} ({message})") from error
    except RuntimeError as error:
        raise ValueError("libtpu: not found, expected the compiler for TPUs; pip install '.[tpu-aot]'") from error
    return list(described.devices)


def compile_step(step: jax.stages.Wrapped, state: TrainState, batch: Batch, mesh: Mesh) -> tuple[Memory, Costs, bool]:
    """Compile a step, and return its memory and costs per device, and True if the compiler accepted its memory.

    Raises ValueError where the compiler fails for another reason.
    """
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
        # The compiler writes the text itself: it does so for programs that are too large as well, and jax cannot write
        # the text of some asynchronous instructions.
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = None
        lowered = step.lower(state, batch)
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise ValueError(f"compiler: {str(error).splitlines()[0]}") from error
        costs = hlo_costs(_dumped(folder, "after_optimizations.txt"))
        if compiled is not None:
            return compiled_memory(compiled), costs, True
        temporaries = _temporaries(_dumped(folder, "buffer-assignment.txt"))
    arguments = bytes_per_device(state) + bytes_per_device(batch)
    return Memory(arguments, temporaries, 0), costs, False


def predict_smallest(report: Report) -> str | None:
    """Return the smallest slice of the same chip that should fit with the same batch per chip, or None.

    All chips of the slice split the parameters. State and gradient per chip shrink with the number of these chips;
    everything else stays.
    """
    parts = report.mesh["fsdp"] * report.mesh["sequence"] * report.mesh["tensor"]
    split = report.state_bytes + report.gradient_bytes
    limit = report.hbm_bytes - _RESERVED_BYTES
    if not report.fits:  # the compiler refused this much memory, even where it is below the limit
        limit = min(limit, report.memory.total - 1)
    for shape in _shapes(report):
        if report.memory.total + (parts / chips_of(shape) - 1) * split <= limit:
            return f"{report.chip.name}:{shape}"
    return None


def find_smallest(settings: CompileForConfig, report: Report) -> str | None:
    """Return the smallest slice that fits with the same batch per chip, or None. Compiles up or down from the predicted
    slice."""
    shapes = [f"{report.chip.name}:{shape}" for shape in _shapes(report)]
    predicted = predict_smallest(report)
    index = len(shapes) - 1 if predicted is None else shapes.index(predicted)
    # A mesh with copies of the model is another program, so its report does not count here.
    fits = {report.topology: report.fits} if report.mesh["data"] == 1 else {}

    def compiles(shape: str) -> bool:
        if shape not in fits:
            fits[shape] = compile_for(resized(settings, report, shape)).fits
        return fits[shape]

    while index < len(shapes) and not compiles(shapes[index]):
        index += 1
    while 0 < index < len(shapes) and compiles(shapes[index - 1]):
        index -= 1
    return shapes[index] if index < len(shapes) else None


def _shapes(report: Report) -> list[str]:
    """Return the slices of the same chip that the axes sequence and tensor divide, with a whole batch, by size."""
    sharing = report.mesh["sequence"] * report.mesh["tensor"]
    return [
        shape
        for shape in report.chip.slices
        if chips_of(shape) % sharing == 0 and report.batch_size * chips_of(shape) % report.num_chips == 0
    ]


def resized(settings: CompileForConfig, report: Report, topology: str) -> CompileForConfig:
    """Return the settings of another slice with the same batch per chip, whose chips all split the parameters.

    The axes sequence and tensor stay.
    """
    chips = chips_of(topology.partition(":")[2])
    return dataclasses.replace(
        settings,
        topology=topology,
        mesh=MeshConfig(data=1, fsdp=-1, sequence=report.mesh["sequence"], tensor=report.mesh["tensor"]),
        batch_size=report.batch_size * chips // report.num_chips,
    )


def chips_of(shape: str) -> int:
    """Return the number of chips of a slice of this shape, such as 4x4x8."""
    return math.prod(int(size) for size in shape.split("x"))


def _temporaries(buffer_assignment: str) -> int:
    """Return the bytes of temporaries in main memory of a program that the compiler refused.

    The dump marks other memories with a color.
    """
    line = r"^allocation \d+: size (\d+), (?:page \d+, )?preallocated-temp:"
    found = re.findall(line, buffer_assignment, re.MULTILINE)
    if not found:
        raise ValueError("compiler: found no temporaries in its dump, expected the form of libtpu 0.0.40 or newer")
    return sum(map(int, found))


def _dumped(folder: str, ending: str) -> str:
    """Return the text of the largest file with this ending: the module of the step, not that of a part."""
    files = sorted(Path(folder).glob(f"*{ending}"), key=lambda path: path.stat().st_size)
    if not files:
        raise ValueError(f"compiler: found no *{ending} in its dump, expected the files of libtpu 0.0.40 or newer")
    return files[-1].read_text()
