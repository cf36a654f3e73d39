"""The published way, rewritten as a plain reference, in training: float32, a DataLoader over a TensorDataset that lies
on the device, layers in their published order, and a wait for the loss after every batch.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def on_device(images, labels, device):
    """A TensorDataset of float32 images (n, 1, 28, 28) in [0, 1] and int64 labels (n,)."""
    images = torch.tensor(images / 255, dtype=torch.float32).view(-1, 1, 28, 28)
    return TensorDataset(images.to(device), torch.tensor(labels, dtype=torch.int64).to(device))


def network(dropout=0.5):
    """The dropout CNN, ReLU and dropout before pooling."""
    return nn.Sequential(
        *(nn.Conv2d(1, 64, 5), nn.ReLU(), nn.Dropout(dropout), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 256, 3), nn.ReLU(), nn.Dropout(dropout), nn.MaxPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(256 * 5 * 5, 256), nn.ReLU(), nn.Dropout(dropout)),
        *(nn.Linear(256, 64), nn.ReLU(), nn.Dropout(dropout)),
        nn.Linear(64, 10),
    )


def deeper():
    """The network of `ladder/deeper` on pixels from -1 to 1, which the loop's images are brought to first."""
    return nn.Sequential(
        *(Centred(), nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 4 * 4, 100), nn.ReLU(), nn.Linear(100, 10)),
    )


class Centred(nn.Module):
    def forward(self, images):
        return (images - 0.5) / 0.5


def epochs(model, train, validation, count, batch, after_batch=lambda images: None, learning_rate=0.0002):
    """Train on a TensorDataset for `count` epochs; returns the validation accuracy after each.

    `after_batch` is called with the number of images in each batch. The published softmax before the loss and its
    reference to the best state cost no time and are left out.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    criterion = nn.CrossEntropyLoss()
    accuracies = []
    for _ in range(count):
        model.train()
        total, right = 0.0, 0
        for images, labels in DataLoader(train, batch, shuffle=True):
            optimizer.zero_grad()
            outputs = model(images)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
            right += (outputs.argmax(1) == labels).sum().item()
            after_batch(len(images))
        model.eval()
        total, right = 0.0, 0
        with torch.no_grad():
            for images, labels in DataLoader(validation, batch):
                outputs = model(images)
                total += criterion(outputs, labels).item()
                right += (outputs.argmax(1) == labels).sum().item()
        accuracies.append(right / len(validation))
    return accuracies
