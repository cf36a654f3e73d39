"""Reference: the published training, rewritten plainly.

float32, a DataLoader over a TensorDataset on the device, layers in their published order, and a wait for the loss after
every batch.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def to_dataset(images, labels, device):
    """A TensorDataset on the device: float32 images (n, 1, 28, 28) in [0, 1] and int64 labels (n,)."""
    images = torch.tensor(images / 255, dtype=torch.float32).view(-1, 1, 28, 28)
    return TensorDataset(images.to(device), torch.tensor(labels, dtype=torch.int64).to(device))


def dropout_cnn(dropout=0.5):
    """The dropout CNN, with ReLU and dropout before pooling."""
    return nn.Sequential(
        *(nn.Conv2d(1, 64, 5), nn.ReLU(), nn.Dropout(dropout), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 256, 3), nn.ReLU(), nn.Dropout(dropout), nn.MaxPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(256 * 5 * 5, 256), nn.ReLU(), nn.Dropout(dropout)),
        *(nn.Linear(256, 64), nn.ReLU(), nn.Dropout(dropout)),
        nn.Linear(64, 10),
    )


def deeper_lenet():
    """The network of `ladder/deeper`, which scales pixels from [0, 1] to [-1, 1]."""
    return nn.Sequential(
        *(Centred(), nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 4 * 4, 100), nn.ReLU(), nn.Linear(100, 10)),
    )


class Centred(nn.Module):
    """Scales pixels from [0, 1] to [-1, 1]."""

    def forward(self, images):
        return (images - 0.5) / 0.5


def train(model, training, validation, n_epochs, batch_size, after_batch=lambda n_images: None, learning_rate=0.0002):
    """Train on a TensorDataset; returns the validation accuracy after each epoch.

    after_batch: called with the number of images of each batch.

    The published softmax before the loss, and the published reference to the best state, take no time and are left out.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    criterion = nn.CrossEntropyLoss()
    accuracies = []
    for _ in range(n_epochs):
        model.train()
        total_loss, n_correct = 0.0, 0
        for images, labels in DataLoader(training, batch_size, shuffle=True):
            optimizer.zero_grad()
            outputs = model(images)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            total_loss += loss.item()
            n_correct += (outputs.argmax(1) == labels).sum().item()
            after_batch(len(images))
        model.eval()
        total_loss, n_correct = 0.0, 0
        with torch.no_grad():
            for images, labels in DataLoader(validation, batch_size):
                outputs = model(images)
                total_loss += criterion(outputs, labels).item()
                n_correct += (outputs.argmax(1) == labels).sum().item()
        accuracies.append(n_correct / len(validation))
    return accuracies
