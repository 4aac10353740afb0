"""The encoder `timm`: any model at the recipe's sizes, its weights, norms, tokens and stages."""

import json
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from hub import on_hub, serving
from safetensors.torch import load_file, save, save_file
from timm_models import SMALLEST
from torch import nn

from sslkit import distributed, recipe
from sslkit.errors import RecipeError, SslkitError
from sslkit.runs import checkpoint, files
from sslkit.training.build import build
from sslkit_plugins.encoders import Timm, norms

REAL = (
    "resnet18",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_atto",
    "mobilenetv3_small_050",
    "levit_128s",
    "coat_tiny",
    "test_efficientnet",
    "regnetx_002",
    "gmlp_ti16_224",
)


def encoder(model: str = "test_resnet", *, sizes=(64,), channels: int = 3, **options) -> Timm:
    torch.manual_seed(0)
    return Timm(sizes, channels, model=model, **options)


def noise(count: int = 2, channels: int = 3, side: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, side, side, generator=generator)


def opened(made: Timm, library: str, folder: Path, size: int = 64) -> nn.Module:
    """Export, then run the lines that load it."""
    folder.mkdir(parents=True, exist_ok=True)
    scope = {"folder": str(folder)}
    exec(made.export(library, folder, size), scope)
    return scope["model"]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-6 * one.abs().max())


# ---------------------------------------------------------------------------------- any model


@pytest.mark.parametrize("model", REAL)
def test_it_trains_a_step_and_timm_opens_its_export(model, tmp_path):
    made = encoder(model)
    before = {name: value.clone() for name, value in made.named_parameters()}
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    features = made.train()(noise())
    assert features.shape == (2, made.dim)
    features.square().mean().backward()
    optimizer.step()
    assert any(not torch.equal(value, before[name]) for name, value in made.named_parameters())
    other = opened(made, "timm", tmp_path)
    with torch.no_grad():
        assert same(made.eval()(noise()), other(noise()))
    data = timm.data.resolve_data_config(model=other)
    assert list(data["input_size"]) == [3, 64, 64]
    assert tuple(data["mean"]) == made.normalisation.mean
    again = Timm((64,), 3, **Timm.opens(tmp_path)).eval()
    with torch.no_grad():
        assert same(made(noise()), again(noise()))
    layers = made.maps(noise()).values()
    assert all(values.dim() == 4 for values in layers)


@pytest.mark.slow
@pytest.mark.parametrize("model", SMALLEST)
def test_every_module_of_timm_fits_or_is_refused(model):
    """On PyTorch's meta device at 96 px: a forward and a backward pass, and the layers."""
    if not timm.is_model(model):
        pytest.skip("not in this version of timm")
    images = torch.empty(2, 3, 96, 96, device="meta")
    try:
        with torch.device("meta"):
            made = Timm((96,), 3, model=model)
    except RecipeError as error:
        assert "does not accept images of 96 px" in str(error) and "\n" not in str(error)
        return
    features = made.train()(images)
    assert features.shape == (2, made.dim)
    features.sum().backward()
    assert all(value.grad is not None for value in made.parameters() if value.requires_grad)
    if model.startswith("gemma4"):
        return  # its layers ask for a number, which the meta device does not have
    assert all(values.dim() == 4 for values in made.eval().maps(images).values())


@pytest.mark.skipif(timm.__version__ != "1.0.31", reason="the list is that of timm 1.0.31")
def test_the_list_of_models_is_complete():
    known = {timm.models._registry._model_to_module[model] for model in SMALLEST}
    assert len(known) == len(SMALLEST) == 98


# --------------------------------------------------------------------------- sizes and options


@pytest.mark.parametrize(
    "model, sizes, options",
    [
        pytest.param("resnet18", (64, 18), {}, id="a ResNet takes any"),
        pytest.param("vit_tiny_patch16_224", (224,), {}, id="a ViT its own"),
        pytest.param(
            "vit_tiny_patch16_224",
            (96, 48),
            {"img_size": 96, "dynamic_img_size": True},
            id="a ViT two sizes",
        ),
        pytest.param("gmlp_ti16_224", (96,), {"img_size": 96}, id="an MLP one size"),
    ],
)
def test_options_are_found_for_the_sizes(model, sizes, options):
    made = encoder(model, sizes=sizes).eval()
    assert made.options == options
    with torch.no_grad():
        for side in sizes:
            assert made(noise(side=side)).shape == (2, made.dim)


def test_the_width_is_that_of_the_vectors():
    made = encoder("mobilenetv3_small_050")
    assert made.dim == 1024 != made.model.num_features


def test_the_trial_leaves_the_weights_as_timm_draws_them():
    made = encoder("resnet18")
    after = torch.rand(1)
    torch.manual_seed(0)
    other = timm.create_model("resnet18", num_classes=0)
    assert torch.equal(after, torch.rand(1))
    assert all(torch.equal(v, other.state_dict()[n]) for n, v in made.weights().items())


@pytest.mark.parametrize(
    "options, sentence",
    [
        (
            {"model": "resnt18"},
            "encoder.model  timm has no model 'resnt18'; did you mean resnet18 or ",
        ),
        (
            {"model": "vit_tiny_patch16_224", "sizes": (64, 18)},
            "encoder.model  'vit_tiny_patch16_224' does not accept images of 64 px and 18 px "
            "(Input height (18) should be divisible by patch size (16)",
        ),
        (
            {"model": "gmlp_ti16_224", "sizes": (96, 64)},
            "does not accept images of 96 px and 64 px",
        ),
        (
            {"model": "vit_tiny_patch16_224", "options": {"img_sise": 64}},
            "encoder.options  'vit_tiny_patch16_224' has no option 'img_sise'",
        ),
        (
            {"model": "vgg11", "drop_path_rate": 0.1},
            "encoder.drop_path_rate  'vgg11' has no option 'drop_path_rate'",
        ),
        ({"img_size": 64}, "encoder.img_size  'test_resnet' has no option 'img_size'"),
        ({"options": {"num_classes": 3}}, "encoder.options  'num_classes' is set by the encoder"),
        (
            {"global_pool": ""},
            "encoder.global_pool  'test_resnet' with these options returns [2, 96",
        ),
        ({"channels": 5}, "encoder.mean  the images have 5 channels; set encoder.mean and"),
        ({"mean": (0.5,)}, "encoder.mean  the images have 3 channels"),
        ({"std": (0.0, 1.0, 1.0)}, "encoder.std  0.0 is not greater than 0"),
        (
            {"model": "vit_tiny_patch16_224", "stem": "small"},
            "encoder.stem  'small' requires a plain ResNet such as resnet50",
        ),
        (
            {"model": "vit_tiny_patch16_224", "norm": "group"},
            "encoder.norm  'vit_tiny_patch16_224' has no batch norm",
        ),
        (
            {"weights": "timm", "norm": "group"},
            "encoder.norm  timm's weights belong to batch norms, which 'group' replaces",
        ),
        (
            {"weights": "nowhere"},
            f"encoder.weights  there is no file or folder {Path('nowhere').absolute()}; put",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(options, sentence):
    with pytest.raises(RecipeError) as caught:
        encoder(**options)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_five_channels_are_stated_in_the_export(tmp_path):
    made = encoder(channels=5, mean=(0.1, 0.2, 0.3, 0.4, 0.5), std=(1.0,) * 5)
    other = opened(made, "timm", tmp_path)
    with torch.no_grad():
        assert same(made.eval()(noise(channels=5)), other(noise(channels=5)))
    data = timm.data.resolve_data_config(model=other)
    assert list(data["input_size"]) == [5, 64, 64] and tuple(data["mean"]) == (
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
    )


def test_an_export_starts_a_classifier(tmp_path):
    """timm adds a new head to the folder's weights, as for its own models."""
    made = encoder("resnet18")
    opened(made, "timm", tmp_path)
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7)
    assert other(noise()).shape == (2, 7)
    assert torch.equal(other.conv1.weight, made.model.conv1.weight)


# --------------------------------------------------------------------------------------- norms


@pytest.mark.parametrize("model", ["resnet18", "test_efficientnet", "regnetx_002", "levit_128s"])
def test_group_norm_keeps_activations(model, tmp_path):
    made, plain = encoder(model, norm="group", norm_groups=8), encoder(model)
    groups = [m for m in made.modules() if isinstance(m, nn.GroupNorm)]
    assert len(groups) == len(norms.batch_norms(plain)) and not norms.batch_norms(made)
    assert all(m.num_channels % m.num_groups == 0 and m.num_groups <= 8 for m in groups)
    kinds = [[type(m) for m in each.modules()] for each in (made, plain)]
    for kind in (nn.ReLU, nn.SiLU, nn.Hardswish):
        assert kinds[0].count(kind) == kinds[1].count(kind)
    other = opened(made, "timm", tmp_path)
    with torch.no_grad():
        assert same(made.eval()(noise()), other(noise()))
    again = Timm((64,), 3, **Timm.opens(tmp_path)).eval()
    with torch.no_grad():
        assert same(made(noise()), again(noise()))


def test_group_norm_of_one_image_ignores_the_others():
    made = encoder("resnet18", norm="layer").train()
    images = noise(3)
    with torch.no_grad():
        torch.testing.assert_close(made(images)[:1], made(images[:1]), rtol=1e-4, atol=1e-5)


def test_a_split_batch_norm_normalises_parts():
    old = nn.BatchNorm1d(1, momentum=0.5)
    split = norms.SplitBatchNorm(old, 2).train()
    found = split(torch.tensor([[0.0], [2.0], [10.0], [30.0]]))
    torch.testing.assert_close(found.flatten(), torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    assert split.running_mean.item() == pytest.approx(0.5 * (1 + 20) / 2)
    assert split.running_var.item() == pytest.approx(0.5 * 1 + 0.5 * (2 + 200) / 2)
    rows = torch.tensor([[0.0], [2.0], [4.0], [10.0], [30.0]])
    whole = nn.BatchNorm1d(1).train()
    torch.testing.assert_close(split(rows), torch.cat([whole(rows[:3]), whole(rows[3:])]))
    assert split.num_batches_tracked == 2


@pytest.mark.parametrize("norm", ["split", "frozen"])
def test_replaced_batch_norms_evaluate_as_before(norm, tmp_path):
    for model in ("resnet18", "test_efficientnet", "regnetx_002"):
        made, plain = encoder(model, norm=norm).eval(), encoder(model).eval()
        with torch.no_grad():
            assert torch.equal(made(noise()), plain(noise()))
        assert list(made.weights()) == list(plain.weights())
        other = opened(made, "timm", tmp_path / model)
        with torch.no_grad():
            assert same(made(noise()), other(noise()))


def test_frozen_batch_norms_do_not_change():
    made = encoder("resnet18", norm="frozen").train()
    before = {name: value.clone() for name, value in made.weights().items() if "bn" in name}
    made(noise()).sum().backward()
    assert all(torch.equal(made.weights()[name], value) for name, value in before.items())
    assert made.model.bn1.weight.grad is None and made.model.conv1.weight.grad is not None
    assert made.model.training and not made.model.bn1.training


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_small_stem_is_built_step_by_step(library, tmp_path):
    made = encoder("resnet18", stem="small").eval()
    other, again = opened(made, library, tmp_path), Timm((64,), 3, **Timm.opens(tmp_path)).eval()
    with torch.no_grad():
        assert same(made(noise()), other(noise())) and same(made(noise()), again(noise()))


def test_norms_over_ranks_keep_activations(monkeypatch):
    """PyTorch's conversion drops the activations that timm's batch norms hold."""
    made = encoder("test_efficientnet").eval()
    with torch.no_grad():
        before = made(noise())
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", lambda method, **_: method)
    after = distributed.parallel(made, sync_batchnorm=True, device=torch.device("cpu"))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in after.modules())
    with torch.no_grad():
        assert torch.equal(after(noise()), before)


# ------------------------------------------------------------------------------------- weights


def saved(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.clone() for name, value in tensors.items()}, path)
    return str(path)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.encoder.", "backbone."])
def test_prefixes_and_classifiers_are_left_out(prefix, tmp_path):
    trained = timm.create_model("resnet18", num_classes=7)
    tensors = {f"{prefix}{name}": value for name, value in trained.state_dict().items()}
    made = encoder("resnet18", weights=saved(tmp_path / "a.safetensors", tensors))
    assert all(torch.equal(v, trained.state_dict()[n]) for n, v in made.weights().items())


def test_weights_that_do_not_fit_are_counted(tmp_path):
    tensors = encoder("resnet18").weights()
    small = {**tensors, "conv1.weight": torch.zeros(64, 3, 3, 3)}
    less = {name: value for name, value in tensors.items() if name != "bn1.weight"}
    more = encoder("resnet34").weights()
    for given, sentence in [
        (
            small,
            "119 fit, 1 of another shape (conv1.weight [64, 3, 3, 3] instead of [64, 3, 7, 7])",
        ),
        (less, "119 fit, 1 missing (bn1.weight)"),
        (more, "120 fit, 96 too many (layer1.2."),
    ]:
        path = saved(tmp_path / "a.safetensors", given)
        with pytest.raises(RecipeError) as caught:
            encoder("resnet18", weights=path)
        assert "encoder.weights  a.safetensors does not fit: of 120 tensors" in str(caught.value)
        assert sentence in str(caught.value)


def test_positions_are_resampled_to_another_size(tmp_path):
    big = encoder("vit_tiny_patch16_224", sizes=(96,))
    path = saved(tmp_path / "a.safetensors", big.weights())
    small = encoder("vit_tiny_patch16_224", sizes=(64,), weights=path)
    assert small.model.pos_embed.shape == (1, 17, 192)
    assert torch.equal(small.model.pos_embed[:, :1], big.model.pos_embed[:, :1])
    assert torch.equal(small.model.blocks[0].attn.qkv.weight, big.model.blocks[0].attn.qkv.weight)


def test_files_that_could_run_code_are_refused(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(
        RecipeError, match=r"is not a \.safetensors file, and other formats can run code"
    ):
        encoder(weights=str(tmp_path / "a.pth"))
    (tmp_path / "b.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RecipeError, match="cannot be read"):
        encoder(weights=str(tmp_path / "b.safetensors"))
    with pytest.raises(RecipeError, match=r"has neither model\.safetensors nor encoder"):
        encoder(weights=str(tmp_path))


def test_a_run_folder_gives_its_encoder(tmp_path):
    trained = encoder()
    saved(tmp_path / "encoder.safetensors", trained.weights())
    for text in (
        "encoder: {use: timm, model: test_resnet}",
        "encoder: {use: timm, mean: 5}",
        "[",
        "",
    ):
        (tmp_path / "recipe.yaml").write_text(text)
        made = encoder(weights=str(tmp_path))
        assert torch.equal(made.model.conv1[0].weight, trained.model.conv1[0].weight)
    (tmp_path / "recipe.yaml").write_text("encoder: {use: timm, model: resnet18}")
    with pytest.raises(RecipeError, match="these weights are of 'resnet18'"):
        encoder(weights=str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("encoder: {use: timm, mean: [0.1, 0.2, 0.3]}")
    with pytest.raises(RecipeError, match=r"encoder\.mean  the weights were trained with \[0\.1"):
        encoder(weights=str(tmp_path))


def test_an_exported_folder_gives_its_encoder(tmp_path):
    trained = encoder("vit_tiny_patch16_224", sizes=(96,), mean=(0.1, 0.2, 0.3))
    opened(trained, "timm", tmp_path, 96)
    assert Timm.own_size({"model": "vit_tiny_patch16_224", "weights": str(tmp_path)}) == 96
    made = Timm((96,), 3, **Timm.opens(tmp_path)).eval()
    assert made.normalisation == trained.normalisation
    with torch.no_grad():
        assert same(trained.eval()(noise(side=96)), made(noise(side=96)))
    bigger = Timm((128, 64), 3, **Timm.opens(tmp_path)).eval()
    with torch.no_grad():
        assert same(trained(noise(side=128)), bigger(noise(side=128)))


def test_folders_that_are_no_export_are_not_opened(tmp_path):
    assert Timm.opens(tmp_path) is None
    for text in ("[", "5", "{}", '{"architecture": "resnet18"}', "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        assert Timm.opens(tmp_path) is None
    opened(encoder(), "timm", tmp_path)
    assert Timm.opens(tmp_path)["model"] == "test_resnet"
    (tmp_path / "model.safetensors").unlink()
    assert Timm.opens(tmp_path) is None


def test_own_sizes_are_those_of_timm():
    assert Timm.own_size({"model": "resnet18"}) == 224
    assert Timm.own_size({"model": "test_vit", "weights": "timm"}) == 160


def test_downloaded_weights_need_no_network(tmp_path, monkeypatch):
    trained = timm.create_model("test_resnet")
    path = saved(tmp_path / "model.safetensors", trained.state_dict())
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *words: path)
    for options in ({"weights": "timm"}, {"pretrained": True}):
        made = encoder(**options)
        assert all(torch.equal(v, trained.state_dict()[n]) for n, v in made.weights().items())


MAKE = """
from safetensors.torch import save_file
from sslkit_plugins.encoders import Timm
save_file(Timm((64,), 3, model="test_resnet", weights="timm").weights(), "made")
"""


def test_weights_of_timm_are_downloaded(tmp_path):
    trained = timm.create_model("test_resnet").state_dict()
    with serving({"model.safetensors": save(trained)}) as hub:
        done = on_hub(tmp_path, hub.address, "-c", MAKE)
    assert done.returncode == 0, done.stderr
    assert all(torch.equal(v, trained[n]) for n, v in load_file(tmp_path / "made").items())


def test_without_a_network_a_sentence_says_so(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *words: None)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(
        RecipeError, match=r"are not on this machine, and http://127\.0\.0\.1:1 does"
    ):
        encoder(weights="timm")
    with pytest.raises(RecipeError, match="timm has no weights for 'ghostnet_050'"):
        encoder("ghostnet_050", weights="timm")


# ----------------------------------------------------------------------------- tokens and stages


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "test_vit", "deit_tiny_patch16_224"])
@torch.no_grad()
def test_tokens_of_kept_patches(model):
    made = encoder(model).eval()
    every = torch.arange(16).expand(2, 16)
    rows = made.tokens(noise())
    assert rows.shape == (2, made.prefix_tokens + 16, made.model.embed_dim)
    torch.testing.assert_close(made.tokens(noise(), every), rows)
    turned = made.tokens(noise(), every.flip(1))
    torch.testing.assert_close(turned[:, 1:].flip(1), rows[:, 1:], rtol=1e-4, atol=1e-5)
    few = torch.tensor([[3, 8, 9], [0, 1, 15]])
    images = noise()
    kept = made.tokens(images, few)
    assert kept.shape[1] == made.prefix_tokens + 3
    images[0, :, :16, :16] = 0.0  # patch 0 of the first image, which is not kept
    torch.testing.assert_close(made.tokens(images, few), kept)
    images[0, :, :16, 48:] = 0.0  # patch 3, which is
    assert not torch.allclose(made.tokens(images, few)[0], kept[0])


def test_models_without_tokens_say_so():
    with pytest.raises(SslkitError, match="'test_resnet' has no tokens; use a vision transformer"):
        encoder().tokens(noise())
    with pytest.raises(SslkitError, match="cannot leave out patches"):
        encoder("vit_tiny_patch16_dinov3_qkvb").tokens(
            noise(), torch.zeros(2, 1, dtype=torch.int64)
        )


@pytest.mark.parametrize("stem", ["model", "small"])
def test_stages_in_sequence_give_the_maps(stem):
    made = encoder("resnet18", stem=stem).eval()
    images = values = noise()
    stages = made.sequence()
    with torch.no_grad():
        maps = made.maps(images)
        for name, stage in stages.items():
            values = stage(values)
            assert torch.equal(values, maps[name])
    held = {id(value) for stage in stages.values() for value in stage.parameters()}
    assert held == {id(value) for value in made.parameters()}
    assert list(made.stages()) == list(maps) == ["conv1", "res2", "res3", "res4", "res5"]


def test_models_without_a_chain_say_so():
    with pytest.raises(SslkitError, match="is not a sequence of stages; use a ResNet"):
        encoder("test_vit").sequence()


@pytest.mark.parametrize(
    "model, stages",
    [
        ("test_vit", ["stem", *(f"stage{i}" for i in range(1, 7))]),
        ("test_convnext", ["stem", "stage1", "stage2", "stage3", "stage4"]),
        ("regnety_002", ["stem", "block1", "block2", "block3", "block4"]),
    ],
)
def test_models_without_a_chain_have_timms_stages(model, stages):
    made = encoder(model)
    assert list(made.stages()) == stages
    maps = list(made.eval().maps(noise()))
    assert stages[1].startswith("block") or maps == stages[1:]
    deepest = {id(value) for one in made.stages()[stages[-1]] for value in one.parameters()}
    last = list(made.model.parameters())[-1]  # the final norm, where there is one
    assert id(last) in deepest


def test_models_that_timm_does_not_group_say_so(monkeypatch):
    made = encoder("test_vit")
    monkeypatch.delattr(type(made.model), "group_matcher")
    with pytest.raises(SslkitError, match="timm has no stages of 'test_vit'"):
        made.stages()


# ------------------------------------------------------------------------------------------ runs

RECIPE = """\
name: encoders
method: {use: npid}
data: {use: shapes, images: 8}
transform: {use: augment, size: 64}
encoder: {use: timm, model: test_resnet}
heads: {image: {use: linear, out_dim: 16}}
sampler: {use: memory_bank, negatives: 4}
loss: {use: lambda_nce}
optimizer: {lr: 0.1}
train: {epochs: 1, batch_size: 4, device: cpu, precision: fp32, workers: 0}
"""


def read(folder: Path, *settings: str):
    path = folder / "recipe.yaml"
    path.write_text(RECIPE)
    return recipe.read(path, overrides=settings)


def test_shared_tensors_are_saved_and_come_back(tmp_path):
    """Modules of CoaT share parameters, which safetensors refuses to write."""
    run = build(read(tmp_path, "encoder.model=coat_tiny"))
    own = {name: value.clone() for name, value in run.method.encoder.weights().items()}
    checkpoint.save(run, tmp_path)
    path = checkpoint.save_encoder(run, tmp_path)
    assert all(torch.equal(value, own[name]) for name, value in load_file(path).items())
    torch.nn.init.zeros_(run.method.encoder.model.cls_token1)
    newest, _, _ = checkpoint.newest(tmp_path)
    checkpoint.load_method(run.method, newest)
    assert all(torch.equal(v, own[n]) for n, v in run.method.encoder.weights().items())


def test_only_shared_memory_is_copied():
    one = torch.arange(6.0)
    found = files.unshared({"a": one, "b": one, "c": one[:3], "d": torch.zeros(2)})
    assert found["a"].data_ptr() == one.data_ptr()
    places = [value.untyped_storage().data_ptr() for value in found.values()]
    assert len(set(places)) == 4 and torch.equal(found["c"], one[:3])


def test_a_run_does_not_need_its_initial_weights_again(tmp_path):
    path = Path(saved(tmp_path / "a.safetensors", encoder().weights()))
    made = read(tmp_path, f"encoder.weights={path}")
    run = build(made)
    assert torch.equal(run.method.encoder.weights()["bn1.weight"], load_file(path)["bn1.weight"])
    path.unlink()
    build(made, restored=True)
    with pytest.raises(RecipeError, match=r"there is no file or folder .*; put it back, or name"):
        build(made)
    assert json.loads(json.dumps(made.as_dict()))["encoder"]["weights"] == str(path)
