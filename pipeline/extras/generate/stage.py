"""generate: train a conditional GAN on the training rows, generate digits, and measure them against held-out rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import safetensors.torch

from pipeline.errors import display_path
from pipeline.extras.generate import report, training
from pipeline.extras.generate.generators import make_generator
from pipeline.extras.generate.judge import JUDGE, judge_digest, judge_recipe
from pipeline.extras.generate.spec import GanSpec, gan_spec
from pipeline.extras.generate.study import GeneratedStudy, LabelledDigits
from pipeline.nn.networks import load_networks
from pipeline.nn.precision import library_settings
from pipeline.training import ensure, plan
from pipeline.training.arrays import load_arrays, read_digits, read_rows
from pipeline.training.ensure import TrainedNetwork
from pipeline.training.pool import make_pool
from pipeline.workflow import store
from pipeline.workflow.context import StageContext


def run(context: StageContext) -> dict[str, Any]:
    recipe, folder = context.recipe, context.output_dir
    request = _judge_request(context)
    (judge,) = ensure.ensure(context, [request])
    (gan,) = ensure.ensure(context, [ensure.Request(_gan_spec(context), request.arrays, context)])
    with library_settings(context.run.device):
        generated = _generate(context, gan)
        study = _study(context, generated, judge)
    store.write_array(folder / "samples.npy", generated.images)
    store.write_array(folder / "labels.npy", generated.labels)
    history = gan.history()
    frames = store.read_array(gan.folder / "frames.npy", "uint8", (len(history), 5, 10, 28, 28))
    pictures = report.draw(study, frames, history)
    for name, picture in pictures.items():
        store.write(folder / name, picture)
    numbers = study.numbers()
    store.write_json(folder / "generate.json", numbers)
    page = report.render(recipe, JUDGE, pictures, numbers)
    store.write(folder / "generate.html", page)
    context.say(" ".join(report.summarize(numbers)))
    context.run.report("page", display_path(context.published_dir / "generate.html"))
    return {
        "networks": ensure.network_summary([judge, gan]),
        "judge": judge_digest(recipe),
        **{name: numbers["generated"][name] for name in ("recognized", "frechet_distance", "precision", "recall")},
    }


def _judge_request(context: StageContext) -> ensure.Request:
    judge = judge_recipe(context.recipe)
    (spec,) = plan.network_specs(judge, context, make_pool(context))
    arrays = load_arrays(judge, context.files)
    return ensure.Request(spec, arrays, context, label=f"the classifier ({JUDGE})")


def _gan_spec(context: StageContext) -> GanSpec:
    return gan_spec(context.recipe.gan, context, make_pool(context))


def _generate(context: StageContext, gan: TrainedNetwork) -> LabelledDigits:
    """Digits of all classes in turn."""
    device, settings = context.run.device, context.recipe
    generator = make_generator(settings.gan)
    generator.load_state_dict(safetensors.torch.load((gan.folder / "weights.safetensors").read_bytes()))
    inputs, labels = training.random_inputs(settings.generate.samples, settings.gan.latent_size, settings.generate.seed)
    images = training.generate(generator.to(device), inputs.to(device), device, "fp32")
    return LabelledDigits(images.cpu().numpy(), labels.numpy().astype(np.uint8))


def _study(context: StageContext, generated: LabelledDigits, judge: TrainedNetwork) -> GeneratedStudy:
    device = context.run.device
    training_digits = LabelledDigits(*read_digits(context.files, "augment/"))
    images, labels = read_digits(context.files)
    rows = read_rows(context.files, len(labels))
    (loaded,) = load_networks(judge.folder / "weights.safetensors", device)
    held_out = LabelledDigits(images[rows], labels[rows])
    with context.show_progress("measure") as on_progress:
        return GeneratedStudy(generated, training_digits, held_out, loaded, device, on_progress)
