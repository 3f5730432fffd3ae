"""A synthetic model of any size in plain torch, and artifacts of random fine-tunes of it."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.merging.commands.compress import compress

VOCABULARY = 1024
SEED = 0


class Block(nn.Module):
    """A transformer's layer: causal attention, then a perceptron, each after a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the next hidden states, (row, token, width)."""
        rows, tokens, width = hidden.shape
        parts = self.inner(self.norm(hidden)).view(rows, tokens, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # (row, head, token, entry) each
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.outer(mixed.transpose(1, 2).reshape(rows, tokens, width))
        return hidden + self.down(functional.gelu(self.up(self.second_norm(hidden))))


class Decoder(nn.Module):
    """Embeddings, layers, and the last token's hidden state."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Returns the hidden state of each row's last token, (row, width)."""
        hidden = self.table(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden[:, -1]


def decoder(size: str, device: str, dtype: torch.dtype = torch.float32) -> Decoder:
    """Returns a decoder with random weights; size: "small", or "large" for 1 B weights."""
    width, layers, heads = (2048, 20, 16) if size == "large" else (64, 2, 2)
    torch.manual_seed(SEED)
    with torch.device(device):
        return Decoder(width, layers, heads).to(dtype).eval()


def token_ids(rows: int, tokens: int, device: str) -> Tensor:
    """Returns random ids (row, token)."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(VOCABULARY, (rows, tokens), generator=generator).to(device)


def finetuned(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Returns a state whose every entry has changed by 3 % of its tensor's standard deviation."""
    torch.manual_seed(seed)
    return {
        name: tensor + 0.03 * (tensor.float().std(correction=0) + 1e-3).to(tensor) * torch.randn_like(tensor)
        for name, tensor in state.items()
    }


def artifacts(
    folder: Path, model: nn.Module, count: int, method: str = "t-switch", **settings: object
) -> list[Artifact]:
    """Returns artifacts of fine-tunes of a model, which are made in a folder unless it has them."""
    folder.mkdir(parents=True, exist_ok=True)
    base, state = folder / "base.safetensors", model.state_dict()
    if not base.exists():
        save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, base)
    found = []
    for number in range(count):
        path = folder / f"task{number}.fsw"
        if not path.exists():
            checkpoint = folder / "finetuned.safetensors"
            own = finetuned(state, 1 + number)
            save_file({name: tensor.cpu().contiguous() for name, tensor in own.items()}, checkpoint)
            compress(checkpoint, path, base=base, method=method, settings=settings)
            checkpoint.unlink()
        found.append(open_artifact(path))
    return found
