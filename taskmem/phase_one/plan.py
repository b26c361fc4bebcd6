"""What Phase One needs of every GPU, before anything starts: `taskmem phase-one --plan`.

A reckoning, not a measurement: each term says what it is made of. What is held always is exact; what a pass needs is taken for
the longest context and completion that the profile allows, so real runs need less. GB are 1e9 bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from taskmem.cluster import ClusterSettings
from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.phase_one.ranks import Ranks
from taskmem.phase_one.sharding import BUCKET, GROUP, LIVE_PARAMETERS
from taskmem.phase_one.share import Share, share_of
from taskmem.phase_one.sizes import Sizes, longest_context

RESERVE = 0.08
"""Share of a GPU that is CUDA's, NCCL's and lost between blocks."""
HEAD_BYTES = 16
"""A logit in fp32 with its logarithm, its probability and their gradients, as many as live at one time."""
KNOWN_MEMORY = (80.0, 141.0, 192.0)
VLLM_GPUS = 2
GB = 1e9
Moment = Literal["always", "sampling", "learning"]


@dataclass(frozen=True)
class Topology:
    """So many nodes of so many GPUs of so many GB."""

    nodes: int
    gpus_per_node: int
    memory: float

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.nodes * self.gpus_per_node

    def __str__(self) -> str:
        return f"{self.nodes} x {self.gpus_per_node} GPUs of {self.memory:g} GB"


@dataclass(frozen=True)
class Term:
    """One part of a GPU's memory: when it is held, GB, and what it is made of."""

    name: str
    moment: Moment
    gb: float
    why: str


@dataclass(frozen=True)
class Plan:
    """All terms of one GPU of a topology, and what the volume for checkpoints needs, GB."""

    topology: Topology
    terms: tuple[Term, ...]
    volume: float
    vllm: float

    def held(self, moment: Moment) -> float:
        """GB of a moment's own terms."""
        return sum(term.gb for term in self.terms if term.moment == moment)

    @property
    def peak(self) -> float:
        """GB at the worst moment."""
        return self.held("always") + max(self.held("sampling"), self.held("learning"))

    @property
    def fits(self) -> bool:
        """Whether the worst moment fits."""
        return self.peak <= self.topology.memory


def topology_of(
    cluster: ClusterSettings | None, nodes: int | None, gpus_per_node: int | None, memory: float | None
) -> Topology:
    """What was given, and what the profile's cluster says of the rest; UserError where neither says it."""
    asked = cluster.stages["phase_one_gspo"].accelerator if cluster else None
    per_node = gpus_per_node or (asked.count if asked else None)
    if per_node is None or (cluster is None and (nodes is None or memory is None)):
        raise UserError(
            "phase-one --plan: the profile asks for no accelerator; give --nodes, --gpus-per-node and --gpu-memory"
        )
    spread = cluster.nodes if cluster else None
    return Topology(
        nodes or (spread.count if spread else 1), per_node, memory or (spread.accelerator_memory if spread else 0.0)
    )


def plan(sizes: Sizes, profile: Profile, topology: Topology) -> Plan:
    """The memory of one GPU; UserError where the batch cannot be shared by so many."""
    share = share_of(profile.phase_one, Ranks(0, topology.gpus, 0))
    terms = (
        *(_sharded(sizes, profile, topology.gpus) if profile.phase_one.spread.zero else _whole(sizes, profile)),
        *_sampling(sizes, profile, share),
        *_learning(sizes, profile, share),
        Term("reserve", "always", RESERVE * topology.memory, f"{RESERVE:.0%} of the GPU: CUDA, NCCL, fragments"),
    )
    weights = (2 if profile.phase_one.spread.zero else 4) * sizes.parameters / GB
    state = 12 * sizes.parameters / GB if profile.phase_one.spread.zero else 8 * sizes.parameters / GB
    steps = profile.phase_one.off_policy_steps + profile.phase_one.on_policy_steps
    written = -(-steps // profile.phase_one.validate_every)
    # a newer one is written before the oldest is stripped
    full = min(written, (profile.phase_one.spread.full_checkpoints or written) + 1)
    vllm = 2 * sizes.parameters / VLLM_GPUS / GB
    return Plan(topology, terms, written * weights + full * state, vllm)


def _sharded(sizes: Sizes, profile: Profile, gpus: int) -> Iterator[Term]:
    each = sizes.parameters / gpus / GB
    share = f"{sizes.parameters / GB:.2f} B parameters over {gpus} GPUs"
    yield Term("weights", "always", 2 * each, f"bf16, 2 bytes of {share}")
    yield Term("gradients", "always", 2 * each, "bf16, 2 bytes of each of them")
    yield Term("fp32 master", "always", 4 * each, "what the optimiser really moves, 4 bytes")
    yield Term("optimiser", "always", 8 * each, "Adam's two moments in fp32, 8 bytes")
    if profile.phase_one.kl:
        yield Term("reference", "always", 2 * each, "the base policy, which the KL term is against, bf16")


def _whole(sizes: Sizes, profile: Profile) -> Iterator[Term]:
    every = sizes.parameters / GB
    yield Term("weights", "always", 4 * every, f"fp32, all {every:.2f} B parameters in each process (no ZeRO)")
    yield Term("gradients", "always", 8 * every, "fp32, and as much again in the buckets that are exchanged")
    yield Term("fp32 master", "always", 0.0, "the weights are fp32 themselves")
    yield Term("optimiser", "always", 8 * every, "Adam's two moments in fp32, 8 bytes")
    yield Term("autocast", "always", 2 * every, "bf16 copies of the weights during a pass")
    if profile.phase_one.kl:
        yield Term("reference", "always", 4 * every, "the base policy, which the KL term is against")


def _live(sizes: Sizes) -> float:
    return 2 * min(LIVE_PARAMETERS, sizes.parameters) / GB


def _sampling(sizes: Sizes, profile: Profile, share: Share) -> Iterator[Term]:
    phase, context = profile.phase_one, longest_context(sizes, profile)
    size, length = phase.group_size, context.tokens + profile.policy.max_completion_tokens
    contexts = min(phase.spread.sampled or max(1, 128 // size), len(share.slots))
    if phase.spread.zero and phase.spread.sampling == "whole":
        yield Term("gathered weights", "sampling", 2 * sizes.parameters / GB, "ZeRO-3 brings all of them together")
    elif phase.spread.zero:
        yield Term(
            "gathered layers", "sampling", _live(sizes), f"ZeRO-3, at most {LIVE_PARAMETERS / GB:g} B at one time"
        )
    cache = contexts * size * length * sizes.cache / GB
    yield Term("key-value cache", "sampling", cache, f"{contexts} x {size} rollouts of {length:,} tokens, bf16")
    # forward alone keeps half of what backward would want
    layer = max(contexts * context.tokens * sizes.layer, contexts * context.patches * sizes.vision_layer) / 2 / GB
    yield Term("a layer", "sampling", layer, f"while {contexts * context.tokens:,} tokens of prompts are read")


def _learning(sizes: Sizes, profile: Profile, share: Share) -> Iterator[Term]:
    spread, context = profile.phase_one.spread, longest_context(sizes, profile)
    pieces = share.passes[0]
    rows, length = len(pieces), pieces[0].last - pieces[0].first
    completion = length * profile.policy.max_completion_tokens
    row = context.tokens + completion
    if spread.zero:
        yield Term(
            "gathered layers", "learning", _live(sizes), f"ZeRO-3, at most {LIVE_PARAMETERS / GB:g} B at one time"
        )
        buckets = (2 * 2 * BUCKET + 2 * sizes.leaf) / GB
        why = f"two of {BUCKET / GB:g} B gradients and a layer's {sizes.leaf / GB:.1f} B of experts, bf16"
        yield Term("gradient buckets", "learning", buckets, why)
        yield Term(
            "optimiser step", "learning", 4 * GROUP / GB, f"gradients of {GROUP / GB:g} B weights in fp32 at a time"
        )
    packed = rows * (2 * row**2 + context.patches * sizes.pixels) / GB
    why = f"{rows} of {row:,} tokens ({length} completions): attention mask, pixels"
    yield Term("packed rows", "learning", packed, why)
    text, patches = rows * row, rows * context.patches
    kept = (sizes.layers * text * sizes.carried + sizes.vision_layers * patches * sizes.vision_carried) / GB
    everything = (sizes.layers * text * sizes.layer + sizes.vision_layers * patches * sizes.vision_layer) / GB
    if spread.gradient_checkpointing:
        yield Term(
            "activations", "learning", kept, f"what enters each layer; without checkpointing {everything:,.0f} GB"
        )
    else:
        yield Term("activations", "learning", everything, f"what each layer keeps; with checkpointing {kept:,.1f} GB")
    # a layer's gradients are as large as what it kept
    again = (2 if spread.gradient_checkpointing else 1) * max(text * sizes.layer, patches * sizes.vision_layer) / GB
    head = HEAD_BYTES * rows * completion * sizes.vocabulary / GB
    yield Term(
        "layer or head", "learning", max(again, head), f"the larger of a layer ({again:.1f}) and logits ({head:.1f})"
    )


def fitting(sizes: Sizes, profile: Profile, given: Topology) -> list[Topology]:
    """The smallest topologies that fit, for GPUs of the given memory and of the usual ones, in nodes of up to eight."""
    found = []
    for memory in sorted({given.memory, *KNOWN_MEMORY}):
        for exponent in range(12):
            gpus = 2**exponent
            topology = Topology(max(1, gpus // 8), min(gpus, 8), memory)
            try:
                fits = plan(sizes, profile, topology).fits
            except UserError:  # more GPUs than the batch has parts
                break
            if fits:
                found.append(topology)
                break
    return found


def checked(sizes: Sizes, profile: Profile, topology: Topology) -> Plan:
    """The plan of a topology; UserError with what would fit if it does not."""
    planned = plan(sizes, profile, topology)
    if planned.fits:
        return planned
    others = fitting(sizes, profile, topology)
    instead = ", or ".join(map(str, others)) or "nothing known; use smaller segments, windows or completions"
    raise UserError(f"phase-one on {topology}: needs {planned.peak:.0f} GB of each; what fits: {instead}")
