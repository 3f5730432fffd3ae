"""Tiny random configurations of many architectures of transformers."""

import random
from collections.abc import Iterator
from typing import Any

MIXTURES = (
    "MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM", "OlmoeForCausalLM", "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM", "GraniteMoeForCausalLM", "PhimoeForCausalLM", "JetMoeForCausalLM", "Glm4MoeForCausalLM",
    "Ernie4_5_MoeForCausalLM", "FlexOlmoForCausalLM", "MiniMaxForCausalLM",
    "GptOssForCausalLM", "NllbMoeForConditionalGeneration", "SwitchTransformersForConditionalGeneration",
    "AfmoeForCausalLM", "GraniteMoeSharedForCausalLM", "SolarOpenForCausalLM", "Glm4MoeLiteForCausalLM",
)  # fmt: skip
VISION_LANGUAGE = (
    "LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration", "PaliGemmaForConditionalGeneration",
    "Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration", "Gemma3ForConditionalGeneration",
    "Mistral3ForConditionalGeneration", "InternVLForConditionalGeneration", "VipLlavaForConditionalGeneration",
    "AyaVisionForConditionalGeneration", "Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration", "BlipForConditionalGeneration",
    "Blip2ForConditionalGeneration", "CLIPModel", "SiglipModel", "GitForCausalLM", "Qwen3VLForConditionalGeneration",
    "MllamaForConditionalGeneration", "FuyuForCausalLM", "Idefics2ForConditionalGeneration",
)  # fmt: skip
PLAIN = (
    "BertForSequenceClassification", "BertForMaskedLM", "RobertaForTokenClassification", "AlbertForMaskedLM",
    "DistilBertForQuestionAnswering", "DebertaV2ForSequenceClassification", "ElectraForPreTraining", "MPNetForMaskedLM",
    "ModernBertForMaskedLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM", "OPTForCausalLM", "BloomForCausalLM",
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM",
    "Gemma2ForCausalLM", "PhiForCausalLM", "Phi3ForCausalLM", "FalconForCausalLM", "StableLmForCausalLM",
    "T5ForConditionalGeneration", "BartForConditionalGeneration", "PegasusForConditionalGeneration", "MambaForCausalLM",
    "WhisperForConditionalGeneration", "ViTForImageClassification", "DeiTForImageClassification",
    "BeitForImageClassification", "SwinForImageClassification",
    "ResNetForImageClassification", "Dinov2ForImageClassification", "ViTMAEForPreTraining", "Wav2Vec2ForCTC",
    "HubertForCTC", "YolosForObjectDetection", "ASTForAudioClassification",
    "Starcoder2ForCausalLM", "CohereForCausalLM", "OlmoForCausalLM", "Olmo2ForCausalLM", "MobileBertForMaskedLM",
)  # fmt: skip

_SIZES: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 16, "d_model": 16, "n_embd": 16, "embed_dim": 16, "dim": 16, "hidden_dim": 24,
    "embedding_size": 16, "word_embed_proj_dim": 16, "projection_dim": 8, "true_hidden_size": 16, "intra_bottleneck_size": 16,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "num_layers": 2,
    "num_decoder_layers": 2, "depth": 2, "num_attention_heads": 2, "n_head": 2, "n_heads": 2, "num_heads": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "d_kv": 8,
    "intermediate_size": 20, "d_ff": 20, "n_inner": 20, "ffn_dim": 20, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20,
    "max_position_embeddings": 32, "n_positions": 32, "max_source_positions": 16, "max_target_positions": 16,
    "image_size": 16, "patch_size": 8, "num_mel_bins": 8, "max_length": 64, "temporal_patch_size": 2, "mlp_ratio": 2,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "moe_intermediate_size": 12, "shared_expert_intermediate_size": 12, "n_group": 1, "topk_group": 1, "moe_num_experts": 4,
    "moe_k": 2, "moe_num_shared_experts": 1, "first_k_dense_replace": 1, "num_dense_layers": 1, "q_lora_rank": 8,
    "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "kv_channels": 8,
    "expert_capacity": 4, "encoder_sparse_step": 1, "decoder_sparse_step": 1, "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1, "out_hidden_size": 16, "state_size": 4, "time_step_rank": 4, "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_hidden_size": 16,
    "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1, "decoder_intermediate_size": 20, "window_size": 2,
    "num_detection_tokens": 3, "image_token_id": 47, "image_token_index": 47, "video_token_id": 46, "vision_start_token_id": 45,
    "vision_end_token_id": 44, "mm_tokens_per_image": 1, "encoder_hidden_size": 16, "num_image_tokens": 4, "moe_layer_start_index": 1,
    "resampler_n_latents": 2, "resampler_depth": 1, "scale_factor": 1, "num_query_tokens": 2, "in_channels": 3,
    "num_nextn_predict_layers": 0, "bottleneck_size": 8, "vision_feature_layer": -1, "num_classes": 3,
    "vision_output_dim": 16, "num_global_layers": 1, "max_num_tiles": 1,
}  # fmt: skip
_LISTS: dict[str, Any] = {
    "conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2,
    "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "sr_ratios": [2, 1], "patch_sizes": [3, 3], "strides": [2, 2],
    "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "out_features": None, "out_indices": None, "layer_types": None,
    "mlp_layer_types": None, "deepstack_visual_indexes": [0], "fullatt_block_indexes": [0], "mrope_section": [1, 1, 2],
    "intermediate_layers_indices": [0], "cross_attention_layers": [1], "vision_feature_select_strategy": "full",
    "num_experts_per_tok": 2, "supported_aspect_ratios": [[1, 1]],
}  # fmt: skip


def tiny_model(name: str, seed: int) -> Any:
    """Returns a model without pretrained weights whose sizes are small, some of them by chance."""
    import torch
    import transformers

    kind = getattr(transformers, name)
    config = kind.config_class(**dict(_changes(kind.config_class(), random.Random(f"{name}{seed}"))))
    torch.manual_seed(seed)
    return kind(config)


def _changes(config: Any, chance: random.Random) -> Iterator[tuple[str, Any]]:
    """Yields the entries of a config that make a model small, those of its parts included."""
    from transformers import PreTrainedConfig

    for key, value in config.to_dict().items():
        part = getattr(config, key, None)
        if isinstance(part, PreTrainedConfig):
            yield key, {"model_type": part.model_type, **dict(_changes(part, chance))}
        elif isinstance(value, list) or value is None:
            if key in _LISTS and isinstance(value, list):
                yield key, _LISTS[key]
        elif (
            key in ("rope_parameters", "rope_scaling")
            and isinstance(value, dict)
            and "mrope_section" in value
        ):
            yield key, {**value, "mrope_section": [1, 1, 2]}
        elif key in _SIZES:
            yield key, _SIZES[key]
        elif key in ("attention_bias", "qkv_bias") and isinstance(value, bool):
            yield key, chance.random() < 0.5
