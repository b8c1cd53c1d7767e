"""A Lightning trainer goes through the curriculum as a plain loop does."""

import runpy

import pytest
import torch

from fuseq.qat import Curriculum, QatModel, finalize
from tests.qat.networks import batches, prepared
from tests.shown_blocks import ROOT, session, write_files  # noqa: F401
from tests.zoo.packages import declare_missing_operators

declare_missing_operators()  # torchmetrics imports torchvision, where there is one

import pytorch_lightning as lightning  # noqa: E402

from fuseq.qat.lightning import QATCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start"),  # layers as captured
]

EPOCHS = 6


class Student(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.qat: QatModel = prepared()

    def training_step(self, batch, index):
        return (self.qat(batch) - batch).square().mean()

    def validation_step(self, batch, index):
        assert not self.qat.training
        self.log("loss", (self.qat(batch) - batch).square().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


def loader():
    return torch.utils.data.DataLoader(list(torch.cat(batches())), batch_size=2)  # type: ignore[arg-type]


def fit(student, folder, epochs=EPOCHS, callback=None, checkpoint=None, **options):
    """A trainer that has trained until an epoch."""
    if callback is None:
        callback = QATCallback(Curriculum(student, observe=2, tune=2, freeze=2))
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=[callback],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(student, loader(), loader(), ckpt_path=checkpoint)
    return trainer


def plain_loop(step_of, lengths, accumulate=1):
    """The same training without Lightning."""
    model = prepared()
    observe, tune, freeze = lengths
    curriculum = Curriculum(model, observe=observe, tune=tune, freeze=freeze)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    steps = 0
    for epoch in range(EPOCHS):
        for index, batch in enumerate(batches()):
            curriculum.step(step_of(epoch, steps))
            ((model(batch) - batch).square().mean() / accumulate).backward()
            if (index + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
                curriculum.clip_weights()
                steps += 1
    return model.state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def by_epoch():
    return plain_loop(lambda epoch, steps: epoch, (2, 2, 2))


def test_a_trainer_does_what_a_loop_does(by_epoch, tmp_path):
    student = Student()
    fit(student, tmp_path)
    assert same(student.qat.state_dict(), by_epoch)
    x = batches(1, seed=7)[0]
    assert torch.equal(finalize(student.qat)(x), student.qat.eval()(x))


def test_stages_may_count_steps_of_the_optimizer(tmp_path):
    student = Student()
    callback = QATCallback(Curriculum(student, observe=3, tune=4, freeze=5), by_step=True)
    fit(student, tmp_path, callback=callback, accumulate_grad_batches=2)
    expected = plain_loop(lambda epoch, steps: steps, (3, 4, 5), accumulate=2)
    assert same(student.qat.state_dict(), expected)


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_resumed_trainer_does_what_one_without_a_stop_does(by_epoch, stop, tmp_path):
    fit(Student(), tmp_path, epochs=stop).save_checkpoint(tmp_path / "last.ckpt")
    student = Student()
    callback = QATCallback(Curriculum(student, observe=2, tune=2, freeze=2))
    fit(student, tmp_path, callback=callback, checkpoint=tmp_path / "last.ckpt")
    assert same(student.qat.state_dict(), by_epoch)
    assert callback.curriculum.position == EPOCHS - 1


def test_the_loop_of_the_manual_runs(session):  # noqa: F811
    write_files(ROOT / "docs" / "qat.md", session.directory)
    runpy.run_path("train_lightning.py")
    assert (session.directory / "build" / "lightning" / "fuseq.json").is_file()


def test_a_checkpoint_holds_the_position_of_the_curriculum(tmp_path):
    trainer = fit(Student(), tmp_path, epochs=3)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt")
    assert checkpoint["callbacks"]["QATCallback"] == {"position": 2}
