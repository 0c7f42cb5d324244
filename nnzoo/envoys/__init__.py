"""The modules of a model as its users see them: by Hugging Face's paths, and by the native model's.

envoy.py       Envoy: a module's values inside a trace, its children as attributes
outputs.py     Outputs: a module's output that is a tuple
tree.py        which modules there are, and where their values stand
aliases.py     further names, given by the user
attached.py    modules of the user's own, put into the tree
calling.py     a module applied to a value, outside of the pass
weights.py     parameters by Hugging Face's names
whole.py       what only a whole model can do: move, change its dtype
printing.py    the tree as text
"""
