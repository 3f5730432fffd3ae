"""Tells floating dtypes by their safetensors names, without torch."""


def is_floating(dtype: str) -> bool:
    """Returns whether a dtype, by its safetensors name, is floating."""
    return dtype in ("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2")
