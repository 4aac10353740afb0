"""CPC: causal contexts, the cell to find, the start, and what its options refuse."""

import math

import pytest
import torch
from torch.nn import functional as F

from sslkit.errors import RecipeError
from sslkit.interfaces import Encoder, Parts
from sslkit_plugins.heads import Linear
from sslkit_plugins.losses import CrossEntropy
from sslkit_plugins.methods.cpc import Context, Cpc, Predictor, Target, labels, turned


class Nothing(Encoder):
    """Features are the mean pixel."""

    dim = 6

    def forward(self, images):
        return images.mean((2, 3)).repeat(1, 2)

    def maps(self, images):
        return {}


def method(grid=4, dim=6, *, blocks=2, seed=0, **options):
    torch.manual_seed(seed)
    heads = {
        "target": Target(dim, out_dim=5),
        "context": Context(dim, grid**2, hidden_dim=8, blocks=blocks),
        "predictor": Predictor(dim, grid**2, out_dim=5, **{"steps": 2, "skip": 0, **options}),
    }
    return Cpc(Parts(Nothing(), heads, {}, CrossEntropy(), 10))


def cells(images, grid, dim=6, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(images, grid**2, dim, generator=source)


def test_the_context_of_a_row_depends_on_no_lower_row():
    """The gradient is exactly 0. Each block sees one more row: five blocks see rows 1 to 6."""
    torch.manual_seed(0)
    context = Context(3, 49, hidden_dim=8, blocks=5).double()
    given = torch.randn(1, 49, 3, dtype=torch.float64, requires_grad=True)
    rows = context(given).unflatten(1, (7, 7))
    for row in range(7):
        (gradient,) = torch.autograd.grad(rows[:, row].sum(), given, retain_graph=True)
        seen = gradient.unflatten(1, (7, 7)).abs().sum((0, 2, 3)) > 0
        expected = [max(0, row - 5) <= other <= row for other in range(7)]
        assert seen.tolist() == expected


def test_labels_are_those_of_a_triple_loop():
    images, grid, offset = 3, 4, 2
    expected = []
    for image in range(images):
        for row in range(grid - offset):
            for column in range(grid):
                expected.append(image * grid**2 + (row + offset) * grid + column)
    assert labels(images, grid, offset).tolist() == expected
    second = [5 * grid**2 + cell for cell in expected]
    assert labels(images, grid, offset, first=5).tolist() == second


@pytest.mark.parametrize(
    ("direction", "down", "right"),
    [(0, 2, 0), (1, -2, 0), (2, 0, -2), (3, 0, 2)],
    ids=["down", "up", "left", "right"],
)
def test_each_direction_predicts_its_neighbours(direction, down, right):
    grid, offset = 5, 2
    numbers = turned(torch.arange(grid**2).view(1, -1, 1), direction)[0, :, 0]
    sources, found = numbers[: -offset * grid], numbers[labels(1, grid, offset)]
    assert (found // grid - sources // grid).unique().tolist() == [down]
    assert (found % grid - sources % grid).unique().tolist() == [right]


def test_the_loss_is_the_cross_entropy_over_all_cells_of_all_images():
    """Brute force in float64, gradients included: one direction, offsets 1 and 2, scores of
    0.1·<prediction, z>.
    """
    made, given = method(directions=1).double(), cells(2, 4).double()
    targets = made.heads["target"](given)
    context = made.heads["context"](given)
    every = targets.reshape(-1, 5)
    means = []
    for offset in (1, 2):
        terms = []
        for image in range(2):
            for cell in range(16 - 4 * offset):
                prediction = made.heads["predictor"](context[image, cell], 0, offset)
                scores = 0.1 * every @ prediction.double()
                wanted = image * 16 + cell + 4 * offset
                terms.append(scores.logsumexp(0) - scores[wanted])
        means.append(torch.stack(terms).mean())
    found, expected = made.compare(given, targets).loss, torch.stack(means).mean()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    weights = list(made.heads.parameters())
    wanted = torch.autograd.grad(expected, weights, retain_graph=True)
    for one, other in zip(torch.autograd.grad(found, weights), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


def test_it_starts_near_the_logarithm_of_all_cells():
    made, given = method(grid=5, steps=3, skip=1, directions=4), cells(6, 5)
    loss = made.compare(given, made.heads["target"](given)).loss.item()
    assert made.at_start(6) == pytest.approx(math.log(6 * 25)) == made.at_chance(6)["loss"]
    assert loss == pytest.approx(math.log(6 * 25), abs=0.05)
    assert made.at_chance(6)["accuracy"] == 1 / 150


def test_rows_of_other_images_push_the_loss_back():
    """Trained on images whose cells are alike, then with lower rows of the next image."""
    made = method(dim=6, directions=1)
    given = F.one_hot(torch.arange(4), 6).float().unsqueeze(1).repeat(1, 16, 1)
    given = given + 0.3 * cells(4, 4)
    weights = [*made.heads.parameters()]
    optimizer = torch.optim.Adam(weights, lr=0.03)
    for _ in range(80):
        optimizer.zero_grad()
        loss = made.compare(given, made.heads["target"](given)).loss
        loss.backward()
        optimizer.step()
    swapped = given.clone()
    swapped[:, 8:] = given.roll(1, 0)[:, 8:]
    start = math.log(4 * 16)
    assert loss.item() < 0.75 * start
    with torch.no_grad():
        assert made.compare(swapped, made.heads["target"](swapped)).loss.item() > 0.9 * start


def test_each_offset_and_direction_has_a_matrix_of_its_own():
    made = method(grid=6, steps=4, skip=1, directions=3)
    predictor = made.head("predictor")
    assert predictor.offsets == [2, 3, 4] and len(predictor.matrices) == 9
    row = torch.randn(6)
    found = [predictor(row, d, k) for d in range(3) for k in predictor.offsets]
    assert len({tuple(one.tolist()) for one in found}) == 9


def test_targets_have_no_bias():
    """A bias would add the same number to all scores of a prediction."""
    assert [name for name, _ in Target(4, out_dim=3).named_parameters()] == ["project.weight"]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Predictor(4, 9), "an offset of 3 leaves a grid of 3 × 3 cells; use at most 2"),
        (lambda: Predictor(4, 49, skip=3), "all 3 offsets are skipped; use at most 2"),
        (lambda: Context(4, 8), "8 patches are no square grid; use transform patch_grid"),
    ],
    ids=["steps", "skip", "grid"],
)
def test_options_that_do_not_fit_are_a_sentence(make, sentence):
    with pytest.raises(RecipeError, match=sentence):
        make()


def test_other_heads_are_a_sentence():
    heads = {name: Linear(6, out_dim=5) for name in ("target", "context", "predictor")}
    with pytest.raises(RecipeError, match="needs the heads cpc_context"):
        Cpc(Parts(Nothing(), heads, {}, CrossEntropy(), 10))
