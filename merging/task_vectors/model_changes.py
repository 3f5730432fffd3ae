"""How a fine-tuned model differs from its base beside the weights: adapter, name prefixes, config.json."""

from collections.abc import Collection, Mapping

from flexswitch.codecs.format.records import ModelRecord
from flexswitch.merging.checkpoints.architecture import detect_adapter
from flexswitch.merging.checkpoints.config import DTYPE_KEYS
from flexswitch.merging.checkpoints.model_config import with_defaults
from flexswitch.merging.checkpoints.pairing import Headers, Pairing
from flexswitch.merging.task_vectors.implied_config import implied_config

# Entries of config.json that say where a model came from, not how it is run.
_PROVENANCE_KEYS = {"_name_or_path", "transformers_version", "_commit_hash"}
_CLASS_NAMES = {"id2label", "label2id"}  # with an entry for each class, by which transformers counts them


def model_record(
    base: Headers,
    finetuned: Headers,
    pairing: Pairing,
    base_config: Mapping[str, object],
    config: Mapping[str, object],
) -> ModelRecord:
    """Returns the record of a fine-tuned model that artifacts and task vector files store.

    config: the fine-tuned config.json, empty if there is none.
    """
    config = config or implied_config(base_config, base, finetuned, pairing)
    return ModelRecord(
        adapter=detect_adapter(config, pairing.extras),
        base_prefix=pairing.base_prefix,
        prefix=pairing.prefix,
        config=config_changes(base_config, config, cut_rows(base, finetuned, pairing)),
    )


def cut_rows(base: Headers, finetuned: Headers, pairing: Pairing) -> set[tuple[int, int]]:
    """Returns the (base, fine-tuned) row counts of the tensors of which only the base's rows are taken."""
    shapes = [
        (base.tensors[name].shape, finetuned.tensors[other].shape) for name, other in pairing.tensors.items()
    ]
    return {(one[0], other[0]) for one, other in shapes if one != other}


def config_changes(
    base: Mapping[str, object], finetuned: Mapping[str, object], cut: Collection[tuple[int, int]]
) -> dict[str, object]:
    """Returns the entries of a fine-tuned config.json that are missing or different in the base's.

    Of entries that only the base's has, the fine-tuned model has the default.
    cut: as `cut_rows` returns it. Where there is any, entries with such a count (vocab_size) and the ids of
    tokens are the base's. So is the dtype, since the weights are restored in the base's.
    """
    kept = fitting(with_defaults(base, finetuned), base, cut)
    return {key: value for key, value in kept.items() if key not in base or base[key] != value}


def fitting(
    document: Mapping[str, object], base: Mapping[str, object], cut: Collection[tuple[int, int]]
) -> dict[str, object]:
    """Returns a config whose counts and token ids fit the base's rows: those that do not are the base's."""
    found: dict[str, object] = {}
    for key, value in document.items():
        before = base.get(key)
        if key in _PROVENANCE_KEYS:
            continue
        if key in _CLASS_NAMES and isinstance(value, dict) and any(len(value) == own for _, own in cut):
            found |= {key: before} if key in base else {}
        elif isinstance(value, dict):
            found[key] = fitting(value, before if isinstance(before, dict) else {}, cut)
        elif (
            key not in DTYPE_KEYS and not _is_cut(before, value, cut) and not (cut and _is_token(key, value))
        ):
            found[key] = value
        elif key in base:
            found[key] = before
    return found


def _is_token(key: str, value: object) -> bool:
    """Returns whether an entry holds the ids of tokens."""
    return "token" in key and all(
        type(each) is int for each in (value if isinstance(value, list) else [value])
    )


def _is_cut(before: object, value: object, cut: Collection[tuple[int, int]]) -> bool:
    """Returns whether an entry holds the number of rows before some were left out."""
    return type(value) is int and any((before, value) == counts for counts in cut)
