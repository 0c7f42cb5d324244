"""Patchscopes: a state of one prompt, put into another prompt's generation; the logit lens as one of them."""

import nnsight
import torch
from nnsight import TransformersModel

torch.set_grad_enabled(False)
model = TransformersModel("nnzoo/tiny-gpt2", task="text-generation", dispatch=True)
layers = model.transformer.h
n_layers = model.config.n_layer


def source_representation(prompt, layer, position=-1):
    with model.trace(prompt):
        hidden = layers[layer].output[0, position].save()
    return hidden


def patchscope(target_prompt, hidden, target_layer, target_position, f=lambda h: h, max_new_tokens=4):
    prompt_length = len(model.tokenizer(target_prompt).input_ids)
    with model.generate(target_prompt, max_new_tokens=max_new_tokens, do_sample=False) as tracer:
        layers[target_layer].output[:, target_position, :] = f(hidden)
        generated = tracer.result.save()
    return model.tokenizer.decode(generated[0, prompt_length:], skip_special_tokens=True)


PROMPT = "The Eiffel Tower is in the city of"
with model.trace() as tracer:
    top_tokens = nnsight.save([])
    top_probs = nnsight.save([])
    for layer in range(n_layers):
        with tracer.invoke(PROMPT):
            layers[n_layers - 1].output[:] = layers[layer].output
            probs = model.output.logits[0].softmax(dim=-1)
            top_tokens.append(probs.argmax(dim=-1))
            top_probs.append(probs.max(dim=-1).values.float())

hidden = source_representation("The capital of Italy is", 2, position=-2)
results = {
    "lens": [row.tolist() for row in top_tokens],
    "probabilities": top_probs,
    "hidden": hidden[:9],
    "texts": [
        patchscope("The capital of France is", hidden, 2, -2),
        patchscope("The capital of France is", hidden, 0, 3, f=lambda h: 2 * h),
    ],
}
