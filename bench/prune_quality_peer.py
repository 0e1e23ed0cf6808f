"""Torch-Pruning's cut of one LLaMA-shaped model, as an ordinary checkpoint; run by `prune_quality.py --peers`, in the interpreter
that has torch_pruning.

    python bench/prune_quality_peer.py MODEL OUT magnitude|taylor SAMPLES.npy HIDDEN FFN

As it comes, torch_pruning 1.6.1 does not finish on this model with transformers 5: following the slices of the rotary positions, the
group of one layer's query and key projection grows past 500,000 entries. So the graph is traced with the rotary positions left out,
which changes neither a shape nor what belongs together; gradients for Taylor come from the model as it is. Query heads of one
key/value group can be taken away, groups cannot, so heads stay and the FFN gets smaller.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch_pruning
import transformers
from transformers.models.llama import modeling_llama

torch.set_num_threads(1)


def main(model_path: str, out: str, importance: str, samples: str, hidden: str, ffn: str) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(model_path, attn_implementation="eager", dtype="float32").eval()
    model.config.use_cache = False
    if importance == "taylor":
        for row in torch.from_numpy(np.load(samples)).split(4):
            model(input_ids=row, labels=row).loss.backward()
        measure = torch_pruning.importance.GroupTaylorImportance()
    else:
        measure = torch_pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="mean")
    config = model.config
    heads, ratios = {}, {}
    for layer in model.model.layers:
        heads |= {layer.self_attn.q_proj: config.num_attention_heads, layer.self_attn.k_proj: config.num_key_value_heads,
                  layer.self_attn.v_proj: config.num_key_value_heads}
        for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
            ratios[part] = 1 - int(ffn) / config.intermediate_size
    rotary = modeling_llama.apply_rotary_pos_emb
    modeling_llama.apply_rotary_pos_emb = lambda query, key, *rest, **more: (query, key)
    pruner = torch_pruning.pruner.BasePruner(
        model, example_inputs=torch.arange(8)[None] + 3, importance=measure, global_pruning=False,
        pruning_ratio=1 - int(hidden) / config.hidden_size, pruning_ratio_dict=ratios, ignored_layers=[model.lm_head],
        num_heads=heads, prune_num_heads=True, prune_head_dims=False, head_pruning_ratio=0.0)
    modeling_llama.apply_rotary_pos_emb = rotary
    for group in pruner.step(interactive=True):
        group.prune()
    first = model.model.layers[0]
    config.hidden_size, config.intermediate_size = model.lm_head.in_features, first.mlp.gate_proj.out_features
    if (config.hidden_size, config.intermediate_size) != (int(hidden), int(ffn)):
        raise SystemExit(f"cut to hidden {config.hidden_size}, FFN {config.intermediate_size}, not {hidden}, {ffn}")
    model.save_pretrained(Path(out))
    print(f"{importance}: {sum(p.numel() for p in model.parameters()):,} parameters", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
