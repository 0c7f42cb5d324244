"""Activation patching: what one run has at one place, put into another run.

Papers: Vig et al. 2020, causal mediation analysis (https://arxiv.org/abs/2004.12265); Meng et al. 2022, Locating and
Editing Factual Associations in GPT (https://arxiv.org/abs/2202.05262); Wang et al. 2022, Interpretability in the Wild
(https://arxiv.org/abs/2211.00593); how to read the numbers: Heimersheim and Nanda 2024
(https://arxiv.org/abs/2404.15255).
"""

from collections.abc import Sequence

from nnzoo.analysis.metrics import Metric
from nnzoo.analysis.results import Effects
from nnzoo.analysis.sites import sites_of, values_at
from nnzoo.analysis.subject import Model, Prompts, Subject, exclusive
from nnzoo.analysis.sweep import Base


@exclusive
def patch_activations(
    model: Model,
    base: Prompts,
    source: Prompts,
    metric: Metric,
    *,
    at: str = "resid_pre",
    by: str | None = None,
    layers: Sequence[int] | None = None,
    batch_size: int | None = None,
) -> Effects:
    """The metric of the run on `base` after a value of the run on `source` was put into it, for each place in turn.

    With corrupted prompts as `base` and clean ones as `source` it asks what is enough for the answer (denoising), the
    other way round what is needed for it (noising). `at` is a hook point that every block has: "resid_pre",
    "resid_mid", "resid_post", "attn_out", "mlp_out", or of heads "z", "q", "k", "v", "pattern", or of neurons "post".
    `by` names the axes to go through: by default "head" where there is one, else "pos"; "pos head", "head query",
    "d_mlp" as well. Values are [layer *by], the mean over prompts; `.restored` gives 0 for no effect and 1 for the
    metric of `source`.

    Prompts are texts or ids, as many tokens in both. `metric` is a token, a pair (right, wrong) or a function of the
    logits (nnzoo.analysis.metrics). `batch_size` is how many patches make one pass.
    Raises ValueError where prompts do not match, KeyError for a hook point that is not there.

    >>> from nnzoo import LanguageModel
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> clean = "When Mary and John went to the store, John gave a drink to"
    >>> corrupted = "When Mary and John went to the store, Mary gave a drink to"
    >>> patched = patch_activations(model, corrupted, clean, (" Mary", " John"))
    >>> patched.shape
    {'layer': 4, 'pos': 14}
    >>> patched.restored.top(1)[0].place  # before block 0, the changed word alone decides
    {'layer': '0', 'pos': ' Mary'}
    >>> heads = patch_activations(model, corrupted, clean, (" Mary", " John"), at="z", by="head")
    >>> heads.shape
    {'layer': 4, 'head': 4}
    """
    subject = Subject(model)
    base_tokens, source_tokens = subject.pair(base, source)
    sites = sites_of(subject, base_tokens, at, by, layers)
    run = Base(subject, base_tokens, metric)
    experiments = sites.replacements(values_at(subject, source_tokens, sites.names))
    scores = run.run(experiments, batch_size, f"patching {at}")
    end = Base(subject, source_tokens, metric)
    return Effects(f"patching {at}", run.quantity, scores.view(sites.shape), sites.axes, run.score, end.score)
