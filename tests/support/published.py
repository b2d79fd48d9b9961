"""Key names of the files on the Hugging Face hub, which differ from those of the installed transformers."""

OLD_ATTENTION = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}
# family: model_type in config.json, renames from this transformers version to the published file, prefix, named network
FORMATS: dict[str, tuple[str, dict[str, str], str, str]] = {
    "dinov2": ("dinov2", OLD_ATTENTION, "", "dinov2-base"),
    "dinov3": ("dinov3_vit", {"model.layer.": "layer."}, "", "dinov3-vitb16"),
    "vjepa2": ("vjepa2", {}, "", "vjepa2-vitl"),
    "ast": (
        "audio-spectrogram-transformer",
        {**OLD_ATTENTION, "layers.": "encoder.layer.", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"},
        "audio_spectrogram_transformer.",
        "ast-14-14",
    ),
    "bert": ("bert", {}, "bert.", "matscibert"),
}


def published(key: str, renames: dict[str, str], prefix: str) -> str:
    for new, old in renames.items():
        key = key.replace(new, old)
    return prefix + key
