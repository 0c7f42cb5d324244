"""Names of nnsight's that are not here: what stands for each, said where somebody asks for it."""

_PLAIN = "a body is ordinary Python: plain {} does"
INSTEAD = {
    "inputs": "the ids of a prompt: model.hook_tokens.output in the body, or model.tokenizer(prompt).input_ids",
    "apply": "a body is ordinary Python: call the function itself",
    "log": "print(value) in the body shows it, and runs the model as far as that needs",
    "cond": _PLAIN.format("if"),
    "local": "nothing is needed: a body runs on this machine, and its graph where it is sent",
    "NNsight": "nnzoo.LanguageModel(name), or nnzoo.transformer_lens.HookedRootModule for a module of your own",
    "Int": _PLAIN.format("0"),
    "int": _PLAIN.format("0"),
    "float": _PLAIN.format("0.0"),
    "bool": _PLAIN.format("False"),
    "str": _PLAIN.format('""'),
    "list": _PLAIN.format("[]"),
    "dict": _PLAIN.format("{}"),
    "trace": "it is of a model: with model.trace(prompt):",
    "stop": "it is of a trace: tracer.stop()",
    "next": "it is of a trace: tracer.next()",
    "all": "it is of a trace: tracer.all()",
    "iter": "it is of a trace: for step in tracer.iter[:]:",
    "barrier": "none is needed: a value of one invoke may be used in any other",
}


def absent(where: str, name: str) -> AttributeError:
    """The error for a name that `where` does not have.

    >>> absent("nnzoo", "list")
    AttributeError("nnzoo has no 'list'; a body is ordinary Python: plain [] does")
    >>> absent("the tracer", "nonsense")
    AttributeError("the tracer has no 'nonsense'")
    """
    hint = f"; {INSTEAD[name]}" if name in INSTEAD else ""
    return AttributeError(f"{where} has no {name!r}{hint}")
