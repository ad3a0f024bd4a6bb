"""Tables of the parameters of every model, as the demo builds it: a change of any must be meant.

python -m tests.parameter_tables        # writes tests/golden/parameters/MODEL.txt anew
"""

from pathlib import Path

from flax.traverse_util import flatten_dict

from configs import demo, models
from xmodal_jax.models import build_model
from xmodal_jax.models.batch import batch_spec
from xmodal_jax.train_state import abstract_params

PATH = Path(__file__).parent / "golden" / "parameters"


def parameter_table(variant: str) -> str:
    """One line a parameter: path, shape; the number of all at the end."""
    config = demo.get_config(variant)
    model = build_model(config.model, feature_width=112, vocab_size=42, num_predicates=7)
    params = flatten_dict(abstract_params(model, batch_spec(config, 112)), sep="/")
    lines = [f"{path} {'x'.join(map(str, p.shape))}" for path, p in sorted(params.items())]
    total = sum(p.size for p in params.values())
    return "\n".join([*lines, f"total {total} of kind {model.kind}"]) + "\n"


if __name__ == "__main__":
    PATH.mkdir(exist_ok=True)
    for name in models.VARIANTS:
        (PATH / f"{name}.txt").write_text(parameter_table(name))
