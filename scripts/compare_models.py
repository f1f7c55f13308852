"""The same weights in each engine's own form, for scripts/compare; run by the Python of the engine concerned.

usage: compare_models.py hf MODEL.gguf VOCABULARY_FOLDER OUT_FOLDER    a Hugging Face directory, bf16
       compare_models.py openvino HF_FOLDER fp16|int8|int4 OUT_FOLDER  OpenVINO's form, by optimum-intel's converter
       compare_models.py llama-quantize MODEL.gguf q4_0 OUT.gguf       another number format, by llama.cpp
"""
import json
import os
import shutil
import subprocess
import sys

# GGUF's names of a GPT-2 block's tensors and transformers'; the matrices of the latter (Conv1D) are [inputs, outputs].
BLOCK = {"attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2",
         "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
TOP = {"token_embd.weight": "wte.weight", "position_embd.weight": "wpe.weight", "output_norm.weight": "ln_f.weight",
       "output_norm.bias": "ln_f.bias"}


def tell_apart(tensors, blocks):
    """Makes the blocks of a grown model that add nothing differ from each other, still adding nothing to speak of.

    OpenVINO's converter stores equal matrices once, so that a grown model would read a third of the bytes that every
    other engine, and OpenVINO with any other model of that size, reads."""
    for block in range(blocks):
        name = f"transformer.h.{block}."
        if any(bool(tensors[f"{name}{part}.weight"].any()) for part in ("attn.c_proj", "mlp.c_proj")):
            continue
        for part in ("attn.c_attn", "mlp.c_fc"):
            tensors[f"{name}{part}.weight"] = tensors[f"{name}{part}.weight"].roll(block + 1, dims=0)
        for part in ("attn.c_proj", "mlp.c_proj"):
            tensors[f"{name}{part}.weight"][block, block] = 1e-3


def hugging_face(source, vocabulary, out):
    import gguf
    import torch
    from safetensors.torch import save_file

    reader = gguf.GGUFReader(source)

    def key(name):
        return reader.fields[f"gpt2.{name}"].contents()

    tensors = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("float32"))
        values = values.reshape([int(n) for n in reversed(tensor.shape)])
        name = tensor.name
        if name.startswith("blk."):
            _, block, part, kind = name.split(".")
            if kind == "weight" and values.dim() == 2:
                values = values.t()
            new = f"h.{block}.{BLOCK[part]}.{kind}"
        elif name == "output.weight":
            raise SystemExit(f"{source}: found output.weight, expected a model whose output is its embedding")
        else:
            new = TOP[name]
        tensors[f"transformer.{new}"] = values.to(torch.bfloat16).contiguous()
    tell_apart(tensors, key("block_count"))
    width = key("embedding_length")
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new",
              "vocab_size": tensors["transformer.wte.weight"].shape[0], "n_positions": key("context_length"),
              "n_embd": width, "n_layer": key("block_count"), "n_head": key("attention.head_count"),
              "n_inner": key("feed_forward_length"), "layer_norm_epsilon": key("attention.layer_norm_epsilon"),
              "bos_token_id": 50256, "eos_token_id": 50256, "tie_word_embeddings": True, "dtype": "bfloat16"}
    save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(out, "config.json"), "w") as file:
        json.dump(config, file, indent=1)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(os.path.join(vocabulary, name), out)
    with open(os.path.join(out, "tokenizer_config.json"), "w") as file:
        json.dump({"tokenizer_class": "GPT2Tokenizer", "model_max_length": key("context_length"),
                   "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}, file)


def openvino(source, form, out):
    # A number format asked for is the whole model's: without --ratio 1 int4 keeps some layers at 8 bits.
    more = ["--ratio", "1.0", "--group-size", "32", "--sym"] if form == "int4" else []
    subprocess.run([os.path.join(os.path.dirname(sys.executable), "optimum-cli"), "export", "openvino", "-m", source,
                    "--task", "text-generation-with-past", "--weight-format", form, *more, out],
                   check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"})


def llama_quantize(source, form, out):
    import llama_cpp
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = {"q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}[form]
    parameters.pure = True  # the embedding too, which is the output matrix
    parameters.nthread = 1
    if llama_cpp.llama_model_quantize(source.encode(), out.encode(), parameters):
        raise SystemExit(f"{source}: llama.cpp could not make {form} of it")


def main():
    kind, source, *rest = sys.argv[1:]
    out = rest[-1]
    part = out + ".part"
    if os.path.isdir(part):
        shutil.rmtree(part)
    if kind == "llama-quantize":
        llama_quantize(source, rest[0], part)
    else:
        os.makedirs(part)
        {"hf": hugging_face, "openvino": openvino}[kind](source, rest[0], part)
    if os.path.isdir(out):
        shutil.rmtree(out)
    os.replace(part, out)  # what is there is whole


main()
