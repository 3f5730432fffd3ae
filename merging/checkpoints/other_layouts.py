"""Directories that hold a model in a way that is not read, and what makes them one that is."""

from pathlib import Path

# A pattern of files -> what they are, and what to do.
_LAYOUTS = {
    "*/adapter_config.json": "its folder {folder} is a PEFT adapter; give that",
    "*/model.safetensors*": "its folder {folder} has weights; give that",
    "*/pytorch_model.bin*": "its folder {folder} has weights; give that",
    "zero_to_fp32.py": "it is a checkpoint of DeepSpeed; join its parts: cd {directory} && python {file} "
    ". NEW",
    "*.distcp": "it is a distributed checkpoint of PyTorch; join its parts: python -m "
    "torch.distributed.checkpoint.format_utils dcp_to_torch {directory} NEW.pt",
    "consolidated*": "{file} has the names of the model's authors; convert it to transformers' format",
    "model.*.safetensors": "{file} is a variant of the weights; rename it to model.safetensors",
    "tf_model.h5": "{file} has TensorFlow's weights; convert them with transformers 4: from_pretrained(..., "
    "from_tf=True)",
    "flax_model.msgpack": "{file} has Flax's weights; convert them with transformers 4: from_pretrained(..., "
    "from_flax=True)",
}


def other_layout(directory: Path) -> str:
    """Returns what else a directory holds and what to do, for the end of a message; "" if that is unknown."""
    for pattern, found in _LAYOUTS.items():
        files = sorted(directory.glob(pattern))
        if files:
            return "; " + found.format(directory=directory, file=files[0].name, folder=files[0].parent.name)
    return ""
