"""Tasks whose values are computed by a vector that their zoo stores once, the shared vector.

Its file is an artifact like a task's. A task names it by its hash, never by a path.
"""

from flexswitch.codecs.errors import ArtifactError
from flexswitch.codecs.format.container import Artifact


def check_shared(artifact: Artifact, fingerprint: str) -> None:
    """Checks that an artifact can be a zoo's shared vector. fingerprint: of the zoo's base.

    Raises: ArtifactError.
    """
    header = artifact.header
    by_base = [name for name, record in header.tensors.items() if record.base_factor] + list(header.exact)
    if header.shared is not None or header.extras or by_base or header.base.fingerprint != fingerprint:
        raise ArtifactError(
            f"{artifact.path}: belongs to the base {header.base.fingerprint[:12]} and holds "
            f"{len(header.extras)} extras and {len(by_base)} tensors that need the base; expected a shared "
            f"vector of the base {fingerprint[:12]}, which holds none; pack the zoo again"
        )


def join(task: Artifact, shared: Artifact | None, sha256: str | None) -> None:
    """Gives a task's artifact the shared vector of its zoo, which has the given hash, if it names one.

    Raises: ArtifactError if it names another one, or their tensors do not fit.
    """
    named = task.header.shared
    if named is None:
        return
    if shared is None or named.sha256 != sha256:
        listed = "none" if sha256 is None else sha256[:12]
        raise ArtifactError(
            f"{task.path}: needs the shared vector {named.sha256[:12]}, and its zoo has {listed}; "
            "pack the zoo again"
        )
    if task.header.exact:
        raise ArtifactError(f"{task.path}: holds exact tensors beside a shared vector; it is damaged")
    for name, record in task.header.tensors.items():
        found = shared.header.tensors.get(name)
        if found is None and named.rule == "sum":
            continue
        if found is None or found.shape != record.shape:
            held = "no such tensor" if found is None else f"it with the shape {found.shape}"
            raise ArtifactError(
                f"{task.path}: tensor '{name}' of shape {record.shape} needs a shared one, and "
                f"{shared.path} has {held}; pack the zoo again"
            )
    task.shared = shared
