"""Linear layers of blocks that hold fewer bits per weight: int8 and nf4 by bitsandbytes, fp8 and int4 by torch.

As in transformers, the model's config says how: `build_skeleton` then puts quantized layers where linear ones were, and
`load_weights` quantizes each weight as it comes. Which layers those are is transformers' own rule, so that the result
is the model that `from_pretrained` makes with the same `BitsAndBytesConfig`. Norms, embedding, head and fused experts
stay as they are. Integers of four bits in a checkpoint stay what they are, where the device multiplies them.
"""

import copy
import importlib.util
import logging
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import ScalingType, scaled_mm
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from chainserve.errors import DeviceError, UnsupportedModelError, UsageError
from chainserve.models.int4 import Int4Linear, kernel_group, reason_against, rounded
from chainserve.models.names import FP8, INT4, INT8, NF4
from chainserve.models.packed import PACKED, ROUNDED, Packing, packing_of

logger = logging.getLogger(__name__)

BITSANDBYTES = "bitsandbytes"
OWN_FP8, OWN_INT4 = "chainserve-fp8", "chainserve-int4"
"""No checkpoint is quantized so."""
NEEDED = {
    "mxfp4": "Triton kernels, on a GPU",
    "torchao": "the package torchao",
}
"""What transformers runs weights with that we do not read."""

CODE_BYTES = 16 * 4
"""The sixteen numbers of a 4-bit type, in float32, which each weight has of its own."""
NESTED_BYTES = 256 * 4 + 4
"""Those of 8 bits that scales are quantized to, and their mean, where scales are quantized too."""
NESTED_BLOCK = 256

PLAIN_LAYERS = "chainserve_plain_layers"
"""Where a config says which layers of blocks a checkpoint of integers holds unquantized."""

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
FP8_MULTIPLE = 16
"""Sizes that float8 kernels take are multiples of it; layers of other sizes stay as they are."""


class Fp8Linear(nn.Module):
    """A linear layer with float8 weights and a scale for each row of them; its inputs get one for each token.

    No token changes another's result. Products are added up in float32 and come out as bfloat16, which is what
    torch's kernel gives with such scales.
    """

    scale: Tensor  # (1, out_features)

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty_like(linear.weight, device="meta"), requires_grad=False)
        self.bias = linear.bias
        self.register_buffer("scale", None, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1])
        scaled, scale = _to_fp8(rows)
        output = scaled_mm(
            scaled,
            self.weight.t(),
            scale,
            ScalingType.RowWise,
            self.scale,
            ScalingType.RowWise,
            output_dtype=torch.bfloat16,
        ).to(inputs.dtype)
        if self.bias is not None:
            output += self.bias
        return output.view(*inputs.shape[:-1], -1)


def quantize_blocks(config: PretrainedConfig, method: str, *, dtype: torch.dtype, device: torch.device) -> None:
    """From now on blocks of `config` are quantized by `method`, one of `names.QUANTIZATIONS`, and compute in `dtype`.

    UsageError if they are quantized already, if a package is missing, or if the device cannot do it.
    """
    if already := quantization_of(config):
        raise UsageError(f"the weights of this model are quantized already ({already}): leave --quant out")
    if method == FP8:
        check_fp8(device)
        config.quantization_config = {"quant_method": OWN_FP8}
        return
    if method == INT4:
        if reason := reason_against(device):
            raise DeviceError(f"--quant int4 cannot be computed here, as {reason}: take int8 or nf4")
        config.quantization_config = {"quant_method": OWN_INT4}
        return
    _bitsandbytes()
    if method == INT8:
        # Without a threshold, which would let one token's outliers change how the others of a batch are rounded.
        config.quantization_config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    else:
        config.quantization_config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=NF4, bnb_4bit_compute_dtype=dtype
        )


def check_readable(name: str, quantization: object) -> None:
    """UnsupportedModelError, saying what would be needed, for a checkpoint quantized in a way that we do not read."""
    fields = quantization if isinstance(quantization, dict) else {}
    if not quantization or isinstance(quantization, BitsAndBytesConfig) or _is_bitsandbytes(fields):
        return
    method = str(fields.get("quant_method", "an unknown method"))
    if method in (OWN_FP8, OWN_INT4):
        return
    if method in PACKED:
        if isinstance(reason := packing_of(fields), str):
            raise UnsupportedModelError(
                f"{name} is quantized by {method}, and {reason}: take another copy of the model, or the unquantized "
                f"one with --quant"
            )
        return
    needs = f" (transformers runs that with {NEEDED[method]})" if method in NEEDED else ""
    raise UnsupportedModelError(
        f"{name} is quantized by {method}, of which single blocks cannot be run{needs}: take the unquantized model "
        f"with --quant, one quantized by bitsandbytes, or a GGUF file"
    )


def settle_quantized(config: PretrainedConfig, device: torch.device) -> None:
    """Make sure that blocks can be computed as they are quantized; UsageError if not.

    Integers that this device does not multiply are turned into plain numbers as they are read: the config then says
    nothing of them any more.
    """
    if (packing := stored_packing(config)) and (reason := reason_against(device)):
        logger.warning("weights quantized by %s become plain numbers here: %s", packing.method, reason)
        del config.quantization_config
    elif isinstance(settings(config), BitsAndBytesConfig):
        supported = getattr(_bitsandbytes(), "supported_torch_devices", {"cpu", "cuda"})
        if device.type not in supported:
            raise DeviceError(f"bitsandbytes cannot compute on {device}: {', '.join(sorted(supported))} can")


def check_fp8(device: torch.device) -> None:
    """DeviceError, with the reason, unless the device multiplies float8 numbers."""
    reason = None
    if device.type != "cuda":
        reason = f"{device} would only emulate it"
    elif torch.version.hip:
        reason = f"{torch.cuda.get_device_name(device)} is not made by NVIDIA, and its float8 is another"
    elif (capability := torch.cuda.get_device_capability(device)) < (8, 9):
        reason = f"{torch.cuda.get_device_name(device)} has {'.'.join(map(str, capability))}"
    else:
        try:
            layer = Fp8Linear(nn.Linear(FP8_MULTIPLE, FP8_MULTIPLE, bias=False))
            quantize_weight(layer, torch.ones(FP8_MULTIPLE, FP8_MULTIPLE), device=device)
            layer(torch.ones(1, FP8_MULTIPLE, dtype=torch.bfloat16, device=device))
        except RuntimeError as error:
            reason = f"torch {torch.__version__} cannot here: {str(error).partition(chr(10))[0]}"
    if reason:
        raise DeviceError(
            f"--quant fp8 multiplies float8 numbers, for which a GPU of compute capability 8.9 or newer (RTX 40, L4, "
            f"H100) is needed, and {reason}: take int8 or nf4"
        )


def quantization_of(config: PretrainedConfig) -> str | None:
    """How the blocks are quantized, in a word; None if they are not."""
    match settings(config):
        case None:
            return None
        case BitsAndBytesConfig() as bits:
            return INT8 if bits.load_in_8bit else str(bits.bnb_4bit_quant_type)
        case fields:
            method = str(fields["quant_method"])
            return {OWN_FP8: FP8, OWN_INT4: INT4}.get(method, method)


def settings(config: PretrainedConfig) -> BitsAndBytesConfig | Mapping[str, Any] | None:
    """What the config says about quantization, which in a checkpoint's is written as a dict."""
    found = getattr(config, "quantization_config", None)
    if isinstance(found, dict) and _is_bitsandbytes(found):
        _bitsandbytes()  # which making the settings asks for
        bits: BitsAndBytesConfig = BitsAndBytesConfig.from_dict(dict(found))
        return bits
    return found


def unquantized(config: PretrainedConfig) -> PretrainedConfig:
    """A config of the same model with plain layers: its shapes and what its blocks ask for are the same."""
    if getattr(config, "quantization_config", None) is None:
        return config
    plain = copy.deepcopy(config)
    del plain.quantization_config
    return plain


def kept_modules(model: PreTrainedModel) -> list[str]:
    """Names of what is not quantized, by transformers' rules; `model` has all its parts still."""
    found: Any = model.config.quantization_config
    skipped = found.get("llm_int8_skip_modules") if isinstance(found, dict) else found.llm_int8_skip_modules
    in_float32 = list(model._keep_in_fp32_modules or ())
    kept: list[str] = HfQuantizer.get_modules_to_not_convert(model, skipped, in_float32)
    return kept + (found.get(PLAIN_LAYERS, []) if isinstance(found, dict) else [])


def replace_linears(model: PreTrainedModel, kept: Collection[str]) -> None:
    """Put quantized layers, still without weights, where linear ones are, all but those that are `kept`."""
    linears = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and should_convert_module(name, list(kept))
    }
    if not linears:
        return  # as of a client's ends, which then needs no package
    how = settings(model.config)
    if isinstance(how, BitsAndBytesConfig):
        _bitsandbytes()
        from transformers.integrations.bitsandbytes import replace_with_bnb_linear

        replace_with_bnb_linear(model, modules_to_not_convert=list(kept), quantization_config=how)
        return
    if quantization_of(model.config) != FP8:
        stored = stored_packing(model.config) or ROUNDED
        for name, linear in linears.items():
            if group_size := kernel_group(linear, stored.group_size):
                model.set_submodule(name, Int4Linear(linear, group_size, is_ordered=stored.is_ordered))
        return
    for name, linear in linears.items():
        if not (linear.in_features % FP8_MULTIPLE or linear.out_features % FP8_MULTIPLE):
            model.set_submodule(name, Fp8Linear(linear))


def is_quantized(module: nn.Module) -> bool:
    """Whether the weight of `module` is to be quantized, or is so."""
    return isinstance(module, Fp8Linear | Int4Linear) or type(module).__name__ in ("Linear8bitLt", "Linear4bit")


def quantize_weight(module: Any, value: Tensor, *, device: torch.device) -> None:
    """Give a quantized layer its weight, which comes as it is in the unquantized model."""
    if isinstance(module, Fp8Linear):
        weight, scale = _to_fp8(value.to(device))
        module.weight = nn.Parameter(weight, requires_grad=False)
        module.scale = scale.view(1, -1)
        return
    if isinstance(module, Int4Linear):
        module.fill(rounded(value.to(device), module.group_size), device=device)
        return
    bits, empty = _bitsandbytes().nn, module.weight
    if isinstance(module, bits.Linear8bitLt):
        module.weight = bits.Int8Params(value.cpu(), requires_grad=False, has_fp16_weights=False).to(device)
    else:
        module.weight = bits.Params4bit(
            value,
            requires_grad=False,
            compress_statistics=empty.compress_statistics,
            quant_type=empty.quant_type,
            quant_storage=empty.quant_storage,
            module=module,
        ).to(device)


def stored_statistics(module: nn.Module, name: str, checkpoint: Collection[str]) -> list[str]:
    """What a checkpoint holds beside the weight `name` if that is stored as `module` quantizes it, else nothing."""
    match type(module).__name__:
        case "Linear8bitLt":
            scales = f"{name.removesuffix('weight')}SCB"
            return [scales] if scales in checkpoint else []
        case "Linear4bit":
            return [other for other in checkpoint if other.startswith(f"{name}.")]
        case _:
            return []


def restore_weight(module: Any, value: Tensor, statistics: Mapping[str, Tensor], *, device: torch.device) -> None:
    """Give a quantized layer its weight as the checkpoint holds it, with what `stored_statistics` named.

    ValueError, or others, if they do not fit together.
    """
    bits, shape = _bitsandbytes().nn, tuple(module.weight.shape)
    if isinstance(module, bits.Linear8bitLt):
        [scales] = statistics.values()
        weight = bits.Int8Params(value, requires_grad=False, has_fp16_weights=False, SCB=scales).to(device)
        found = tuple(weight.shape)
    else:
        weight = bits.Params4bit.from_prequantized(value, dict(statistics), device=device, module=module)
        found = tuple(weight.quant_state.shape)
    if found != shape:
        raise ValueError(f"its shape is {found}, {shape} by the config")
    module.weight = weight


def quantized_bytes(module: Any) -> int:
    """Memory that the weight of a quantized layer without weights will take, with its scales."""
    if isinstance(module, Int4Linear):
        return module.nbytes
    num_rows: int = module.weight.shape[0]
    num_weights: int = module.weight.numel()
    if isinstance(module, Fp8Linear) or type(module).__name__ == "Linear8bitLt":
        return num_weights + 4 * num_rows
    num_scales = -(-num_weights // int(module.weight.blocksize))
    half = -(-num_weights // 2) + CODE_BYTES
    if not module.weight.compress_statistics:
        return half + 4 * num_scales
    return half + num_scales + 4 * -(-num_scales // NESTED_BLOCK) + NESTED_BYTES


def stored_packing(config: PretrainedConfig) -> Packing | None:
    """How integers of a checkpoint are stored, if blocks of this config keep them."""
    found = getattr(config, "quantization_config", None)
    packing = packing_of(found) if isinstance(found, dict) and found.get("quant_method") in PACKED else None
    return packing if isinstance(packing, Packing) else None


def _to_fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as float8, and the scale of each (rows, 1)."""
    scale = rows.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-12) / FP8_MAX
    return (rows / scale).to(torch.float8_e4m3fn), scale


def _is_bitsandbytes(fields: Mapping[str, Any]) -> bool:
    return fields.get("quant_method") == BITSANDBYTES or bool(fields.get("load_in_8bit") or fields.get("load_in_4bit"))


def _bitsandbytes() -> ModuleType:
    """The package; UsageError if it is not installed."""
    if importlib.util.find_spec(BITSANDBYTES) is None:
        raise UsageError('int8 and nf4 need bitsandbytes, which is not installed: pip install "chainserve[quant]"')
    import bitsandbytes

    # It says for every product that inputs become float16, which int8 always has them be.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    module: ModuleType = bitsandbytes
    return module
