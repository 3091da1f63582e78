"""Linear layers of blocks that hold fewer bits per weight: int8 and nf4 by bitsandbytes, fp8 and int4 by torch.

As in transformers, the model's config says how: `build_skeleton` then puts quantized layers where linear ones were, and
`load_weights` quantizes each weight as it comes. Which layers those are is transformers' own rule, so that the result
is the model that `from_pretrained` makes with the same `BitsAndBytesConfig`. Norms, embedding, head and fused experts
stay as they are. Integers of four bits in a checkpoint stay what they are, where the device multiplies them.
"""

import copy
import logging
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from chainserve.errors import DeviceError, UnsupportedModelError, UsageError
from chainserve.models.bits import BITSANDBYTES, BitsLayer, bits_layer, load_bitsandbytes, prevent_failing_reordering
from chainserve.models.fp8 import Fp8Linear, check_fp8, takes_fp8
from chainserve.models.int4 import Int4Linear, kernel_group, reason_against
from chainserve.models.names import FP8, INT4, INT8, NF4
from chainserve.models.packed import PACKED, ROUNDED, Packing, packing_of

logger = logging.getLogger(__name__)

OWN_FP8, OWN_INT4 = "chainserve-fp8", "chainserve-int4"
"""No checkpoint is quantized so."""
NEEDED = {
    "mxfp4": "Triton kernels, on a GPU",
    "torchao": "the package torchao",
}
"""What transformers runs weights with that we do not read."""

PLAIN_LAYERS = "chainserve_plain_layers"
"""Where a config says which layers of blocks a checkpoint of integers holds unquantized."""

QuantizedLayer = Fp8Linear | Int4Linear | BitsLayer
"""Each knows its `nbytes`, and takes a weight of plain numbers by `quantize`."""


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
    load_bitsandbytes()
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
        supported = getattr(load_bitsandbytes(), "supported_torch_devices", {"cpu", "cuda"})
        if device.type not in supported:
            raise DeviceError(f"bitsandbytes cannot compute on {device}: {', '.join(sorted(supported))} can")


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
        load_bitsandbytes()  # which making the settings asks for
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
        load_bitsandbytes()
        from transformers.integrations.bitsandbytes import replace_with_bnb_linear

        replace_with_bnb_linear(model, modules_to_not_convert=list(kept), quantization_config=how)
        prevent_failing_reordering(model)
        return
    stored = stored_packing(model.config) or ROUNDED
    for name, linear in linears.items():
        if quantization_of(model.config) == FP8:
            if takes_fp8(linear):
                model.set_submodule(name, Fp8Linear(linear))
        elif group_size := kernel_group(linear, stored.group_size):
            model.set_submodule(name, Int4Linear(linear, group_size, is_ordered=stored.is_ordered))


def quantized_layer(module: nn.Module) -> QuantizedLayer | None:
    """The layer whose weight is quantized, or is to be; None if it is a plain one."""
    return module if isinstance(module, Fp8Linear | Int4Linear) else bits_layer(module)


def stored_packing(config: PretrainedConfig) -> Packing | None:
    """How integers of a checkpoint are stored, if blocks of this config keep them."""
    found = getattr(config, "quantization_config", None)
    packing = packing_of(found) if isinstance(found, dict) and found.get("quant_method") in PACKED else None
    return packing if isinstance(packing, Packing) else None


def _is_bitsandbytes(fields: Mapping[str, Any]) -> bool:
    return fields.get("quant_method") == BITSANDBYTES or bool(fields.get("load_in_8bit") or fields.get("load_in_4bit"))
