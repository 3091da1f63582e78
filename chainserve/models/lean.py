"""Blocks of the usual kind with a third of the operators, on the CPU.

A family's own forward of a block is some seventy operators and twenty calls of modules, most of which work on a few
hundred numbers when a step has few rows: on small models launching them takes a fifth of the time. What is done here is
the same with fewer, and layers that take the same input are joined. Nothing is known of families: a block is taken only
if it consists of the usual parts, and if what comes out for some rows is what the family's own forward gives. All
others run as ever.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from chainserve.models.attention import ATTENTION_ARGUMENTS, Ragged, packed_attention
from chainserve.models.cache_name import CACHE
from chainserve.models.int4 import Int4Linear
from chainserve.models.linear import pack
from chainserve.models.skeleton import with_skips
from chainserve.types import Span

logger = logging.getLogger(__name__)

LEAST_ROTATIONS, MOST_ROTATIONS = 1024, 32_768
"""Positions whose rotary embeddings are kept: the most are 32 MB where heads have 128 numbers in float32."""

ASKS = "chainserve-asks"
"""Name under which transformers finds the attention that notes what it is asked for."""
ASKED, NOTED = "_chainserve_asked", "_chainserve_noted"
"""Attributes of blocks and of their attention, for what is known of them."""
LINEARS = (nn.Linear, Int4Linear)

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.05}
"""How far the two may be apart, relative to what the block adds: all numbers together, as in 16 bits single ones are
rounded by chance. Of the bundled model's blocks in bfloat16 it is 0.016 at most."""

PARTS = {
    "": {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}
HEAD_NORMS = {"q_norm", "k_norm"}
"""Which some families have beside the parts of attention."""

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary embeddings of some rows: cosines, and sines negative in their first half, (rows, 1, dim)."""

    cosines: Tensor
    sines: Tensor

    @classmethod
    def at(cls, base: nn.Module, hidden: Tensor, positions: Tensor) -> "Rotation":
        """As the family has them at positions (rows,)."""
        cosines, sines = base.get_submodule("rotary_emb")(hidden.unsqueeze(0), positions.unsqueeze(0))
        half = sines.shape[-1] // 2
        return cls(cosines[0].unsqueeze(1), torch.cat((-sines[0, :, :half], sines[0, :, half:]), dim=-1).unsqueeze(1))

    def turn(self, heads: Tensor) -> Tensor:
        """Queries or keys (rows, heads, dim), turned."""
        return torch.addcmul(heads * self.cosines, heads.roll(self.cosines.shape[-1] // 2, dims=-1), self.sines)


class Rotations:
    """Rotary embeddings of a model, each made once: they hang on nothing but positions in all families that are served
    (support.LENGTH_DEPENDENT_ROPE). Making those of a step anew takes as long as half of one small block."""

    def __init__(self, base: nn.Module, *, like: Tensor) -> None:
        """`like` is of the hidden states' type."""
        self._base = base
        self._like = like
        self._made = Rotation(torch.empty(0), torch.empty(0))

    def at(self, positions: Tensor) -> Rotation:
        """Of positions (rows,)."""
        end = int(positions.max()) + 1
        if end > MOST_ROTATIONS:
            return Rotation.at(self._base, self._like, positions)
        if end > len(self._made.cosines):
            some = torch.arange(max(LEAST_ROTATIONS, 1 << (end - 1).bit_length()))
            self._made = Rotation.at(self._base, self._like, some)
        return Rotation(self._made.cosines[positions], self._made.sines[positions])


class LeanBlock(nn.Module):
    """One block, of the family's layers; those that are joined are copied."""

    def __init__(self, block: nn.Module, arguments: Mapping[str, Any]) -> None:
        """`arguments` are what the family gives to attention."""
        super().__init__()
        attention, mlp = block.get_submodule("self_attn"), block.get_submodule("mlp")
        inner, widening = (
            [parent.get_submodule(name) for name in names]
            for parent, names in ((attention, ("q_proj", "k_proj", "v_proj")), (mlp, ("gate_proj", "up_proj")))
        )
        self.layers = nn.ModuleList(
            (joined(inner), attention.get_submodule("o_proj"), joined(widening), mlp.get_submodule("down_proj"))
        )
        pack(self.layers)
        self.attention_type = getattr(block, "attention_type", None)  # as in skips
        self._inner, self._out, self._widen, self._down = (cast(Operator, layer.forward) for layer in self.layers)
        self._arguments = arguments
        self._number = cast(int, attention.layer_idx)
        self._dim = cast(int, attention.head_dim)
        num_heads = [cast(int, layer.out_features) // self._dim for layer in inner]
        self._num_queries, self._num_turned = num_heads[0], num_heads[0] + num_heads[1]
        self._before, self._between = _norm(block, "input_layernorm"), _norm(block, "post_attention_layernorm")
        names = {name for name, _ in attention.named_children()}
        self._of_queries, self._of_keys = (
            _norm(attention, name) if name in names else None for name in ("q_norm", "k_norm")
        )
        self._act: Operator = mlp.get_submodule("act_fn").forward

    def forward(self, hidden: Tensor, rotation: Rotation, cache: Any) -> Tensor:
        """Hidden states (rows, hidden) to (rows, hidden)."""
        num_rows = len(hidden)
        heads = self._inner(self._before(hidden)).view(num_rows, -1, self._dim)
        turned, values = heads[:, : self._num_turned], heads[:, self._num_turned :]
        if self._of_queries is not None and self._of_keys is not None:
            queries, keys = turned[:, : self._num_queries], turned[:, self._num_queries :]
            turned = torch.cat((self._of_queries(queries), self._of_keys(keys)), dim=1)
        turned = rotation.turn(turned)
        queries, keys = turned[:, : self._num_queries], turned[:, self._num_queries :]
        all_keys, all_values = cache.update(_packed(keys), _packed(values), self._number)
        attended, _ = packed_attention(self, _packed(queries), all_keys, all_values, None, **self._arguments)
        hidden = hidden + self._out(attended.view(num_rows, -1))
        gate, up = self._widen(self._between(hidden)).chunk(2, dim=-1)
        return hidden + self._down(self._act(gate).mul_(up))


class _Beside(nn.Module):
    """Layers of the same input whose weights cannot be joined: what they give, side by side."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([layer(input) for layer in self.layers], dim=-1)


def joined(layers: Sequence[nn.Module]) -> nn.Module:
    """One layer that gives what these give, side by side."""
    if not all(type(layer) is nn.Linear for layer in layers):
        return _Beside(layers)
    weights = [cast(Tensor, layer.weight) for layer in layers]
    made = nn.Linear(weights[0].shape[1], sum(map(len, weights)), bias=False, device="meta")
    made.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
    if any(layer.bias is not None for layer in layers):
        biases = [
            weight.new_zeros(len(weight)) if layer.bias is None else cast(Tensor, layer.bias)
            for layer, weight in zip(layers, weights, strict=True)
        ]
        made.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return made


def run_lean(hidden: Tensor, rotation: Rotation, cache: Any, blocks: Iterable[nn.Module]) -> Tensor:
    """Hidden states (rows, hidden) through lean blocks, turned as their positions want it."""
    for block in blocks:
        hidden = block(hidden, rotation, cache)
    return hidden


@torch.inference_mode()
def make_lean(base: nn.Module, blocks: nn.ModuleList, span: Span, *, like: Tensor) -> None:
    """Put lean blocks in the place of those of `span` that can be; `like` is of the hidden states' type, on the CPU.

    Nothing else may use the blocks meanwhile, unless they were asked about before.
    """
    for number in span:
        block = blocks[number]
        if not isinstance(block, LeanBlock) and ASKED not in block.__dict__:
            block.__dict__[ASKED] = True
            blocks[number] = _lean(base, with_skips(blocks, Span(number, number + 1)), number, like=like) or block
    base.layers = blocks  # nothing keeps those that were replaced


def _lean(base: nn.Module, blocks: nn.ModuleList, number: int, *, like: Tensor) -> LeanBlock | None:
    """The block of this number, the only one that is not skipped, if it gives the same."""
    block = blocks[number]
    if like.dtype not in TOLERANCE or not _has_the_usual_parts(block):
        return None
    positions = torch.tensor([3, 40, 700])
    drawn = torch.empty(len(positions), like.shape[-1]).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    hidden = (drawn / 16).to(like.dtype)  # small, or what a block of small weights adds is lost in rounding
    try:
        with _noting(block.get_submodule("self_attn")) as arguments:
            wanted = run_family(base, hidden, positions, _NothingCached(), blocks)
        lean = LeanBlock(block, arguments)
        given = lean(hidden, Rotation.at(base, hidden, positions), _NothingCached())
    except Exception as error:  # noqa: BLE001 (of a family's code, to which this was never promised: any kind)
        logger.info("blocks of %s run by their own forward: %s", type(base).__name__, error)
        return None
    apart, added = ((one - other).float().norm() for one, other in ((given, wanted), (wanted, hidden)))
    rounded = torch.finfo(like.dtype).eps * hidden.float().norm()
    if not apart <= TOLERANCE[like.dtype] * added + rounded:
        logger.info("blocks of %s run by their own forward: theirs differs by %.2g", type(base).__name__, apart)
        return None
    return lean


class _NothingCached:
    """The cache of a sequence that begins."""

    def update(self, keys: Tensor, values: Tensor, *_args: object, **_kwargs: object) -> tuple[Ragged, Ragged]:
        num_new = [keys.shape[2]]
        return Ragged([keys], num_new), Ragged([values], num_new)

    def get_seq_length(self, _layer_idx: int = 0) -> int:
        return 0


def run_family(base: nn.Module, hidden: Tensor, positions: Tensor, cache: object, blocks: nn.ModuleList) -> Tensor:
    """Hidden states (rows, hidden) at `positions` (rows,) through blocks, by the base model's own forward."""
    base.layers = blocks
    output = base(
        inputs_embeds=hidden.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=True, **{CACHE: cache}
    )
    result: Tensor = output.last_hidden_state.squeeze(0)
    return result


def _has_the_usual_parts(block: nn.Module) -> bool:
    """Whether the block consists of the parts that `LeanBlock` runs, and of no others."""
    for parent, wanted in PARTS.items():
        children = dict(block.get_submodule(parent).named_children())
        names = children.keys() - HEAD_NORMS if children.keys() >= HEAD_NORMS else children.keys()
        linears = [child for name, child in children.items() if name.endswith("_proj")]
        if names != wanted or not all(type(child) in LINEARS for child in linears):
            return False
    return True


def _norm(parent: nn.Module, name: str) -> Operator:
    """A norm by its root mean square, of half as many operators as torch's own."""
    module = parent.get_submodule(name)
    [weight] = module.parameters()
    scaled = weight.float() * len(weight) ** 0.5
    least = torch.tensor(len(weight) * cast(float, module.variance_epsilon)).sqrt()

    def norm(rows: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float32)
        return torch.div(rows, torch.hypot(length, least)).mul_(scaled).to(rows.dtype)

    return norm


def _packed(heads: Tensor) -> Tensor:
    """Rows (rows, heads, dim) as attention and cache want them: (1, heads, rows, dim)."""
    return heads.transpose(0, 1).unsqueeze(0)


@contextmanager
def _noting(attention: nn.Module) -> Iterator[dict[str, Any]]:
    """What the family gives to attention beside queries, keys and values, once it has run."""
    noted: dict[str, Any] = {}
    config: Any = attention.config
    noting = copy.copy(config)
    noting._attn_implementation = ASKS
    attention.config = noting
    attention.__dict__[NOTED] = noted
    try:
        yield noted
    finally:
        attention.config = config
        del attention.__dict__[NOTED]


def _attention_that_notes(module: nn.Module, *tensors: Any, **arguments: Any) -> tuple[Tensor, None]:
    module.__dict__[NOTED].update({name: arguments[name] for name in ATTENTION_ARGUMENTS & arguments.keys()})
    return packed_attention(module, *tensors, **arguments)


AttentionInterface.register(ASKS, _attention_that_notes)
