"""How a fine-tuned model differs from its base beside the weights: adapter, name prefixes, config.json."""

from collections.abc import Container, Mapping

from flexswitch.codecs.format.records import ModelRecord
from flexswitch.merging.checkpoints.architecture import detect_adapter
from flexswitch.merging.checkpoints.pairing import Headers, Pairing

# Entries of config.json that say where a model came from, not how it is run.
_PROVENANCE_KEYS = {"_name_or_path", "transformers_version", "_commit_hash"}


def model_record(
    base: Headers,
    finetuned: Headers,
    pairing: Pairing,
    base_config: Mapping[str, object],
    config: Mapping[str, object],
) -> ModelRecord:
    """Returns the record of a fine-tuned model that artifacts and task vector files store."""
    shapes = [
        (base.tensors[name].shape, finetuned.tensors[other].shape) for name, other in pairing.tensors.items()
    ]
    cut: set[tuple[object, object]] = {(one[0], other[0]) for one, other in shapes if one != other}
    return ModelRecord(
        adapter=detect_adapter(config, pairing.extras),
        base_prefix=pairing.base_prefix,
        prefix=pairing.prefix,
        config=config_changes(base_config, config, cut),
    )


def config_changes(
    base: Mapping[str, object], finetuned: Mapping[str, object], cut: Container[tuple[object, object]]
) -> dict[str, object]:
    """Returns the entries of a fine-tuned config.json that are missing or different in the base's.

    cut: (base, fine-tuned) row counts of the tensors that take the base's rows. An entry that holds such a
    count (vocab_size) is left out.
    """
    return {
        key: value
        for key, value in finetuned.items()
        if key not in _PROVENANCE_KEYS
        and (key not in base or base[key] != value)
        and not (type(value) is int and (base.get(key), value) in cut)
    }
