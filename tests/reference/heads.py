"""Files that torch.save makes of a small layer, and a look at one that Beige made."""

from pathlib import Path

import torch

FOLDER = Path(__file__).parent.parent / "golden" / "heads"


def main() -> None:
    """Writes the files that PyTorch makes, and reads the one that it does not."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    weight = torch.arange(6, dtype=torch.float32).view(2, 3) / 2
    bias = torch.tensor([-1.0, 4.0])
    layer = torch.nn.Linear(3, 2)
    layer.load_state_dict({"weight": weight, "bias": bias})
    state = layer.state_dict()
    # As FlagEmbedding does it.
    single = type(state)({key: value.clone().cpu() for key, value in state.items()})
    half = type(state)({key: value.half() for key, value in single.items()})
    both = torch.cat([bias, weight.flatten()])
    files = {
        "single": single,
        "half": half,
        "module": state,
        "views": {"weight": both[2:].view(2, 3), "bias": both[:2]},
        "double": {"weight": weight.double(), "bias": bias.double()},
        "transposed": {"weight": weight.t(), "bias": bias},
        "list": [weight, bias],
        "number": {"weight": weight, "bias": 3},
    }
    for name, content in files.items():
        torch.save(content, FOLDER / f"{name}.pt")
    ours = torch.load(FOLDER / "ours.pt", weights_only=True)
    assert list(ours) == ["weight", "bias"], list(ours)
    layer.load_state_dict(ours)
    assert torch.equal(ours["weight"], weight), ours["weight"]
    assert torch.equal(ours["bias"], bias), ours["bias"]
    print(f"torch {torch.__version__} reads ours.pt")


if __name__ == "__main__":
    main()
