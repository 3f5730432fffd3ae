"""The versions that a report of a bug needs, which `flexswitch --version` prints."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    "numpy", "numba", "torch", "safetensors", "zstandard", "faiss", "huggingface_hub", "transformers",
)  # fmt: skip
# They all install the module `faiss`, so that of two of them a part of each may be in place.
_FAISS = (
    "faiss-cpu", "faiss-gpu", "faiss-cuda", "faiss-gpu-cu11", "faiss-gpu-cu12", "faiss-gpu-cu12-cuvs",
    "faiss-gpu-cu13-cuvs", "faiss-gpu-cuvs",
)  # fmt: skip


def version_lines() -> Iterator[str]:
    """Yields a line for flexswitch, Python, the platform and each package; no package is imported."""
    yield f"flexswitch {version('flexswitch')}"
    yield f"python {platform.python_version()} ({platform.python_implementation()})"
    yield f"platform {platform.platform()}"
    for package in _PACKAGES:
        names = _FAISS if package == "faiss" else (package,)
        installed = [f"{name} {found}" for name in names if (found := _version(name))]
        yield ", ".join(installed) or f"{package} is not installed"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
