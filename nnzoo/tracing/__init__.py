"""Lazy traces: a body records a graph, leaving it plans and runs the model just as far as the graph needs.

The path of a value, from `model.transformer.h[5].output` to the tensor:

1. ../envoys/envoy.py   the path is the name of a hook point
2. tracer.py            the `with` block: what is read in its body; and at its end, what is still held is asked for
3. places.py            the value at the hook point is a node of the graph, and a LazyTensor stands for the node
4. walk.py              the pass of the model comes to the hook point and gives the node its value
5. filling.py           the LazyTensor becomes a tensor with that value

The body. lazy.py: what looks like a tensor. recorder.py, writing.py: what is done to it becomes nodes, in a graph
(graph.py); infer.py, effects.py: what an operation gives, without running it; shape_rules.py, shape_rules_common.py,
shape_rules_elementwise.py, shape_rules_parts.py, shape_rules_reductions.py: what common operations give; arguments.py,
lines.py: its arguments, and where it stands; modes.py, random_numbers.py: PyTorch's state there; custom.py:
autograd.Functions; aten.py: what torch.vmap and torch.func are made of; gradients.py, freed.py: backward and `.grad`;
shapes.py: what places hold; wholes.py: the whole batch; pass_order.py: what cannot be; blame.py: what an error says of
the values that did not fit; saved_numbers.py: numbers that were looked at.

The run. plan.py, schedule.py: what must run, in which passes; execution.py: runs it, resuming.py: from where a look
stopped; batch.py: several prompts as one; run.py: values and how long they live; shortcuts.py: what is left out;
decoding.py: who chooses tokens.

Other blocks. traced.py: what LanguageModel offers. invoking.py, session.py, scanning.py, saving.py, caching.py, and for
generation steps.py, step_lists.py, users_lists.py, pending.py. editing.py, edit_steps.py: an edit's body; edits.py:
what it did, on a tape (tape.py, lengths.py); playback.py: done in later traces; edit_files.py: edits in a file.

The graph as data. graph_object.py: `tracer.graph`. entries.py: nodes as plain data; graph_json.py, values.py,
stored_tensors.py, functions.py: how they are written; replay.py, call_checks.py: recorded again on a model, and
believed in nothing; memory.py: what they will hold. graph_plan.py, graph_text.py, graph_layout.py, graph_html.py: what
one sees.
"""
