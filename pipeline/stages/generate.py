"""generate: train a conditional GAN on the training rows, generate digits, and measure them against held-out rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline import config, networks, specs, store
from pipeline.declarations import Stage, StageContext
from pipeline.reports import captions
from pipeline.settings import Recipe
from pipeline.store import Manifest
from pipeline.workflow import Workflow

if TYPE_CHECKING:
    from pipeline.analysis.generated_study import GeneratedStudy, LabelledDigits
    from pipeline.networks import TrainedNetwork

JUDGE = "quick"  # the recipe of the classifier that recognizes the digits, and whose features are compared


def run(context: StageContext) -> dict[str, Any]:
    from pipeline.nn.precision import library_settings
    from pipeline.reports import generated_report

    recipe, folder = context.only.recipe, context.output_dir
    request = _judge_request(context)
    (judge,) = networks.ensure(context, [request])
    (gan,) = networks.ensure(context, [networks.Request(_gan_spec(context), request.arrays, context.only)])
    with library_settings(context.workflow.device):
        generated = _generate(context, gan)
        study = _study(context, generated, judge)
    store.write_array(folder / "samples.npy", generated.images)
    store.write_array(folder / "labels.npy", generated.labels)
    history = gan.history()
    frames = store.read_array(gan.folder / "frames.npy", "uint8", (len(history), 5, 10, 28, 28))
    pictures = generated_report.draw(study, frames, history)
    for name, picture in pictures.items():
        store.write(folder / name, picture)
    numbers = study.numbers()
    store.write_json(folder / "generate.json", numbers)
    page = generated_report.render(recipe, JUDGE, pictures, numbers)
    store.write(folder / "generate.html", page)
    context.say(" ".join(generated_report.summarize(numbers)))
    context.workflow.say(f"page: {context.published_dir / 'generate.html'}")
    return {
        "networks": networks.network_summary([judge, gan]),
        "judge": _judge_digest(recipe),
        **{name: numbers["generated"][name] for name in ("recognized", "frechet_distance", "precision", "recall")},
    }


def _judge_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the classifier, trained on the same rows as the generator."""
    return config.load_recipe(JUDGE).replace(split=recipe.split, augment=recipe.augment)


def _judge_digest(recipe: Recipe) -> str:
    return config.digest(config.flatten(_judge_recipe(recipe), ("affine", "model", "train")))


def _judge_request(context: StageContext) -> networks.Request:
    from pipeline.dataset.training_arrays import load_arrays

    judge = _judge_recipe(context.only.recipe)
    (spec,) = networks.network_specs(judge, context.only, networks.make_pool(context))
    arrays = load_arrays(judge, context.files)
    return networks.Request(spec, arrays, context.only, label=f"the classifier ({JUDGE})")


def _gan_spec(context: StageContext) -> specs.GanSpec:
    return networks.gan_spec(context.settings.gan, context.only, networks.make_pool(context))


def _generate(context: StageContext, gan: TrainedNetwork) -> LabelledDigits:
    """Digits of all classes in turn."""
    import numpy as np
    import safetensors.torch

    from pipeline.analysis.generated_study import LabelledDigits
    from pipeline.nn import gan_training
    from pipeline.nn.generators import make_generator

    device, settings = context.workflow.device, context.settings
    generator = make_generator(settings.gan)
    generator.load_state_dict(safetensors.torch.load((gan.folder / "weights.safetensors").read_bytes()))
    inputs, labels = gan_training.random_inputs(
        settings.generate.samples, settings.gan.latent_size, settings.generate.seed
    )
    images = gan_training.generate(generator.to(device), inputs.to(device), device, "fp32")
    return LabelledDigits(images.cpu().numpy(), labels.numpy().astype(np.uint8))


def _study(context: StageContext, generated: LabelledDigits, judge: TrainedNetwork) -> GeneratedStudy:
    from pipeline.analysis.generated_study import GeneratedStudy, LabelledDigits
    from pipeline.dataset.training_arrays import read_digits, read_rows
    from pipeline.nn.models import load_networks

    device = context.workflow.device
    training_digits = LabelledDigits(*read_digits(context.files, "augment/"))
    images, labels = read_digits(context.files)
    rows = read_rows(context.files, len(labels))
    (loaded,) = load_networks(judge.folder / "weights.safetensors", device)
    held_out = LabelledDigits(images[rows], labels[rows])
    with context.show_progress("measure") as on_progress:
        return GeneratedStudy(generated, training_digits, held_out, loaded, device, on_progress)


def _why_stale(workflow: Workflow, manifest: Manifest) -> str:
    is_equal = manifest["numbers"].get("judge") == _judge_digest(workflow.recipe)
    return "" if is_equal else f"the recipe {JUDGE} changed"


STAGE = Stage(
    name="generate",
    run=run,
    folder=lambda workflow: f"data/generated/{workflow.name}",
    settings=("augment", "gan", "generate", "split"),
    inputs={
        "download": (),
        "prepare": ("train_images.npy", "train_labels.npy", "validation_rows.npy"),
        "augment": ("images.npy", "labels.npy"),
    },
    outputs=("samples.npy", "labels.npy", "generate.json", "generate.html", *captions.GENERATED),
    code=lambda recipe: (
        *specs.GAN_CODE,
        *specs.training_code(_judge_recipe(recipe)),
        "analysis.dataset_statistics",
        "analysis.embedding",
        "analysis.generated_study",
        "analysis.metrics",
        "analysis.network_internals",
        "analysis.sample_quality",
        "dataset.copies",
        "stages.generate",
    ),
    on_demand=True,
    disk_space=lambda context: 2 * context.input_bytes() + 785 * context.only.settings.generate.samples,
    ensures_inputs=True,
    recipes="gans",
    single_recipe=True,
    uses_device=True,
    resumes=True,
    stale_reason=_why_stale,
)
